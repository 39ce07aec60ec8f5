from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from common.errors import UserError
from common.panoramas import CLASS_NAMES

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "quickstart.py"


@pytest.fixture(scope="module")
def quickstart():
    spec = importlib.util.spec_from_file_location("quickstart_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def run(folder, *flags):
    return subprocess.run(
        [sys.executable, SCRIPT, "--tiny", "--device", "cpu", "--output", folder, *flags],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_the_whole_quickstart_and_what_a_second_run_leaves_alone(tmp_path):
    folder = tmp_path / "run"
    first = run(folder)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "Starting afresh" in first.stdout

    metrics = json.loads((folder / "metrics.json").read_text())
    figures = metrics["figures"]
    assert set(figures) == {
        "psnr", "agreement", "far_agreement", "classifier_accuracy", "seconds"
    }  # fmt: skip
    assert figures["agreement"]["count"] == 18
    assert figures["far_agreement"]["count"] == 4 * len(CLASS_NAMES)
    assert figures["far_agreement"]["first_pixel"] == 768
    assert all(value >= 0 for value in metrics["seconds"].values())
    assert metrics["settings"]["seed"] == 0 and not metrics["resumed"]
    assert len(metrics["commands"]) == 5
    with Image.open(folder / "panorama.png") as strips:
        assert strips.width >= 16 * 64 and strips.height >= 64 * len(CLASS_NAMES)
    with Image.open(folder / "token_meaning.gif") as animation:
        assert animation.size == (256, 256) and animation.n_frames >= 17
    page = (folder / "report.html").read_text()
    assert page.count("data:image/") == 5

    kept = {
        name: (folder / name).stat().st_mtime_ns
        for name in ("tokenizer.ckpt", "latents.safetensors", "generator/checkpoint-last.pth")
    }
    (folder / "panorama.png").unlink()
    second = run(folder)
    assert second.returncode == 0, second.stderr
    assert "Resuming" in second.stdout and "scripts/" not in second.stdout
    assert (folder / "panorama.png").exists()
    assert kept == {name: (folder / name).stat().st_mtime_ns for name in kept}
    again = json.loads((folder / "metrics.json").read_text())
    assert again["resumed"] and again["seconds"]["tokenizer"] == metrics["seconds"]["tokenizer"]

    other = run(folder, "--seed", "1")
    assert other.returncode == 2
    assert "was made with seed 0, found 1 now" in other.stderr


def record_of(quickstart, folder, **settings):
    record = quickstart.Record(folder, settings)
    folder.mkdir(exist_ok=True)
    record.write()
    return record


def touch(path):
    def run():
        path.write_text("made")
        return {"size": 4}

    return run


@pytest.fixture
def steps(quickstart, tmp_path):
    make = quickstart.Step
    return [
        make("a", touch(tmp_path / "a"), ("a",)),
        make("b", touch(tmp_path / "b"), ("b",), ("a",)),
        make("c", touch(tmp_path / "c"), ("c",), ("b",)),
        make("d", touch(tmp_path / "d"), ("d",)),
    ]


def test_a_step_that_is_done_again_voids_all_that_rests_on_it(quickstart, tmp_path, steps):
    record = record_of(quickstart, tmp_path)
    for step in steps:
        record.carry_out(step, steps)
    assert all(map(record.is_done, steps))
    (tmp_path / "a").unlink()
    record.carry_out(steps[0], steps)
    assert [record.is_done(step) for step in steps] == [True, False, False, True]
    assert not (tmp_path / "b").exists() and not (tmp_path / "c").exists()


def test_seconds_of_an_interrupted_attempt_are_kept(quickstart, tmp_path):
    def interrupted():
        time.sleep(0.2)
        raise KeyboardInterrupt

    record = record_of(quickstart, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        record.carry_out(step := quickstart.Step("a", interrupted), [step])
    again = quickstart.Record(tmp_path, {})
    again.read()
    step = quickstart.Step("a", lambda: None)
    assert not again.is_done(step)
    again.carry_out(step, [step])
    assert again.is_done(step)
    assert again.steps["a"]["attempts"] == 2 and again.steps["a"]["seconds"] >= 0.2


def test_fresh_removes_what_the_quickstart_made_and_nothing_else(
    quickstart, tmp_path, steps, capsys
):
    record = record_of(quickstart, tmp_path)
    for step in steps:
        record.carry_out(step, steps)
    (tmp_path / "notes.txt").write_text("mine")
    outside = tmp_path.parent / "outside"
    outside.mkdir()
    (outside / "x").write_text("mine")
    (tmp_path / "d").unlink()
    (tmp_path / "d").symlink_to(outside)
    quickstart.prepare(tmp_path, quickstart.Record(tmp_path, {}), steps, fresh=True)
    assert "Starting afresh" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", quickstart.RECORD]
    assert (outside / "x").exists()


def test_a_folder_of_something_else_is_left_alone(quickstart, tmp_path, steps):
    (tmp_path / "a").write_text("mine")
    for fresh in (False, True):
        with pytest.raises(UserError, match=r"no quickstart\.json in it"):
            quickstart.prepare(tmp_path, quickstart.Record(tmp_path, {}), steps, fresh)
    assert (tmp_path / "a").read_text() == "mine"


def test_other_settings_and_a_damaged_record_are_told(quickstart, tmp_path, steps):
    record_of(quickstart, tmp_path, seed=0)
    with pytest.raises(UserError, match="was made with seed 0, found 1 now"):
        quickstart.prepare(tmp_path, quickstart.Record(tmp_path, {"seed": 1}), steps, False)
    (tmp_path / quickstart.RECORD).write_text("{")
    with pytest.raises(UserError, match=r"quickstart.json: damaged"):
        quickstart.prepare(tmp_path, quickstart.Record(tmp_path, {"seed": 0}), steps, False)


def test_a_script_that_fails_ends_the_step_with_its_code(quickstart, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    flags = quickstart.build_parser().parse_args(["--tiny"])
    runner = quickstart.Quickstart(tmp_path, flags, "cpu")
    with pytest.raises(quickstart.ScriptFailed, match="exit code 2") as caught:
        runner._script("eval_generator.py", "--token_num", "many")
    assert caught.value.code == 2
