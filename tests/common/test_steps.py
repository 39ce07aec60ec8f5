from __future__ import annotations

import json
import time

import pytest

from common.errors import UserError
from common.steps import Record, ScriptFailed, Step, run_script


def touch(path):
    def run():
        path.write_text("made")
        return {"size": 4}

    return run


@pytest.fixture
def steps(tmp_path):
    """b and c rest on a; d on nothing."""
    needs = {"a": (), "b": ("a",), "c": ("b",), "d": ()}
    return [Step(name, touch(tmp_path / name), (name,), needs[name]) for name in needs]


@pytest.fixture
def make(tmp_path, steps):
    return lambda **settings: Record(tmp_path / "journey.json", settings, steps)


@pytest.fixture
def record(make):
    record = make()
    record.prepare(fresh=False)
    record.complete({"cores": 2})
    return record


def test_what_is_done_is_not_done_again(make, record, tmp_path, capsys):
    (tmp_path / "d").unlink()
    (tmp_path / "a").write_text("kept")
    again = make()
    again.prepare(fresh=False)
    assert "done: a, b, c. --fresh starts over" in capsys.readouterr().out
    again.complete({"cores": 4})
    assert (tmp_path / "a").read_text() == "kept" and (tmp_path / "d").exists()
    assert [entry["figures"] for entry in again.entries.values()] == 4 * [{"size": 4}]
    assert again.runs == [{"cores": 2}, {"cores": 4}]
    again.complete({"cores": 8})
    assert len(again.runs) == 2
    assert json.loads(again.path.read_text())["runs"] == again.runs
    make().prepare(fresh=False)
    assert "all steps are done" in capsys.readouterr().out


def test_a_step_that_is_done_again_voids_all_that_rests_on_it(record, tmp_path, steps):
    (tmp_path / "a").unlink()
    record.carry_out(steps[0])
    assert [record.is_done(step) for step in steps] == [True, False, False, True]
    assert not (tmp_path / "b").exists() and not (tmp_path / "c").exists()


def test_an_interrupted_attempt_keeps_its_seconds_and_what_it_left(tmp_path):
    def interrupted():
        (tmp_path / "a").write_text("half")
        time.sleep(0.2)
        raise KeyboardInterrupt

    path = tmp_path / "journey.json"
    record = Record(path, {}, [Step("a", interrupted, ("a",))])
    with pytest.raises(KeyboardInterrupt):
        record.complete({})
    again = Record(path, {}, [step := Step("a", lambda: None, ("a",))])
    again.prepare(fresh=False)
    assert not again.is_done(step)
    again.complete({})
    assert again.is_done(step) and (tmp_path / "a").read_text() == "half"
    assert again.entries["a"]["attempts"] == 2 and again.entries["a"]["seconds"] >= 0.2


def test_fresh_removes_what_the_run_made_and_nothing_else(make, record, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "page.html").write_text("made")
    outside = tmp_path.parent / "outside"
    outside.mkdir()
    (outside / "x").write_text("mine")
    (tmp_path / "d").unlink()
    (tmp_path / "d").symlink_to(outside)
    make(seed=1).prepare(fresh=True, pages=("page.html",))
    assert "Starting afresh" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["journey.json", "notes.txt"]
    assert (outside / "x").exists()


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_of_something_else_is_left_alone(make, tmp_path, fresh):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(UserError, match=r"no journey\.json in it says that a journey made it"):
        make().prepare(fresh)
    assert (tmp_path / "a").read_text() == "mine"


def test_other_settings_and_a_damaged_record_are_told(make):
    make(seed=0).prepare(fresh=False)
    with pytest.raises(UserError, match="was made with seed 0, found 1 now"):
        make(seed=1).prepare(fresh=False)
    make().path.write_text("{")
    with pytest.raises(UserError, match=r"journey\.json: damaged"):
        make(seed=0).prepare(fresh=False)


def test_a_script_that_fails_ends_the_run_with_its_code(tmp_path, capfd):
    script = tmp_path / "script.py"
    script.write_text("import sys; print(*sys.argv[1:]); sys.exit(int(sys.argv[1]))")
    step = Step("first", lambda: run_script(script, 3, "two words"))
    with pytest.raises(SystemExit) as caught:
        Record(tmp_path / "journey.json", {}, [step]).complete({})
    assert caught.value.code == 3
    out, err = capfd.readouterr()
    assert "script.py 3 'two words'" in out and "3 two words\n" in out
    assert "error: step 'first': " in err and "script.py ended with exit code 3" in err
    assert run_script(script, 0)["command"].endswith("script.py 0")


def test_a_script_ended_by_a_signal_has_the_code_of_a_shell(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import os, signal; os.kill(os.getpid(), signal.SIGTERM)")
    with pytest.raises(ScriptFailed, match="exit code -15") as caught:
        run_script(script)
    assert caught.value.code == 143
