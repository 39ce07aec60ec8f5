import errno
import multiprocessing
import os
import signal

import pytest

from common import io
from common.errors import UserError
from common.io import claim_folder, read_json, replacing, write_json


def test_an_exception_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write(b"half of the n")
        file.flush()
        assert path.read_bytes() == b"old"
        raise RuntimeError("the power went")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def killed(path):
    with replacing(path) as file:
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_writer_left_is_no_strangers_file_and_is_removed(tmp_path):
    folder = tmp_path / "results"
    writer = multiprocessing.get_context("fork").Process(
        target=killed, args=(folder / "settings.json",)
    )
    writer.start()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    assert len(list(folder.iterdir())) == 1
    with replacing(tmp_path / "other") as file:  # a living writer's file stays
        io._swept.clear()
        write_json(tmp_path / "third", {})
        file.write(b"x")
    assert {p.name for p in tmp_path.iterdir()} == {"results", "other", "third"}
    claim_folder(folder, {"seed": 1})
    assert [p.name for p in folder.iterdir()] == ["settings.json"]


def test_a_refusal_of_the_system_names_the_file(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder"), replacing(tmp_path / "folder") as file:
        file.write(b"x")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"w\.pth: cannot be written"):
        write_json(tmp_path / "w.pth", {})
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_folder_is_claimed_for_one_set_of_settings(tmp_path):
    folder = tmp_path / "new"
    claim_folder(folder, {"seed": 1, "cfg": 2.0})
    claim_folder(folder, {"seed": 1})
    with pytest.raises(UserError, match="made with seed 1, not 2"):
        claim_folder(folder, {"seed": 2})
    (folder / "settings.json").write_text("{")
    with pytest.raises(UserError, match=r"settings\.json: damaged"):
        read_json(folder / "settings.json")
    (tmp_path / "photo.png").touch()
    with pytest.raises(UserError, match="not empty"):
        claim_folder(tmp_path, {})
