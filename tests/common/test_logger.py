from __future__ import annotations

import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.data.folders import ImageFolder
from common.logger import SHOWN_PATHS, Logs, Unreadable, progress
from common.panoramas.dataset import Panoramas
from common.plots import read_long

CPU = torch.device("cpu")


def test_a_resumed_run_adds_to_its_logs(tmp_path):
    for steps in ((1, 2), (3,)):
        logs = Logs(tmp_path)
        for step in steps:
            logs.scalars(step, {"train/loss": 0.5 * step, "train/lr": 1e-4})
        logs.close()
    curves = read_long(tmp_path / "metrics.csv")
    assert curves == {
        "train/loss": {1: 0.5, 2: 1.0, 3: 1.5},
        "train/lr": {1: 1e-4, 2: 1e-4, 3: 1e-4},
    }
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [e.value for e in events.Scalars("train/loss")] == [0.5, 1.0, 1.5]


def test_values_are_on_the_disk_at_once(tmp_path):
    logs = Logs(tmp_path)
    logs.scalars(1, {"train/loss": 2.0})
    assert read_long(tmp_path / "metrics.csv") == {"train/loss": {1: 2.0}}
    logs.close()


def folder(root, bad):
    (root / "a").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(root / "a" / "z.png")
    for k in range(bad):
        (root / "a" / f"{k:02d}.png").write_text("no picture")
    return ImageFolder(str(root), 32)


def test_unreadable_pictures_are_told_once(tmp_path):
    data = folder(tmp_path / "data", bad=2)
    watched = Unreadable(data, "images", CPU)
    assert watched.news() is None
    data[0]
    message = watched.news()
    assert message.startswith("images: 2 of 3 images could not be read")
    assert [line.strip() for line in message.splitlines()[1:]] == data.paths[:2]
    assert watched.news() is None


def test_many_paths_are_cut_short(tmp_path):
    data = folder(tmp_path / "data", bad=SHOWN_PATHS + 5)
    watched = Unreadable(data, "images", CPU)
    data[0]
    message = watched.news()
    assert message.startswith(f"images: {SHOWN_PATHS + 5} of {SHOWN_PATHS + 6} pictures")
    assert len(message.splitlines()) == 1 + SHOWN_PATHS + 1


def test_pictures_that_are_no_files_are_never_unreadable():
    assert Unreadable(Panoramas(length=2, size=32), "images", CPU).news() is None


def test_a_bar_is_shown_by_one_process(capsys):
    for shown in (True, False):
        with progress(2, "images", "image", shown, initial=1) as bar:
            bar.update()
        error = capsys.readouterr().err
        assert ("images: 100%" in error and "2/2" in error) == shown
