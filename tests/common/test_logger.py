import pytest
import torch
from PIL import Image

from common.data.folders import ImageFolder
from common.logger import MetricLogger, UnreadableImages
from common.panoramas.dataset import Panoramas
from common.plots import Panel, read_long, save_curves

CPU = torch.device("cpu")


def log(folder, steps, resumed=None):
    logger = MetricLogger(folder, resumed)
    for step in steps:
        logger.scalars(step, {"train/loss": 0.5 * step, "train/lr": 1e-4})
    logger.close()


def test_rows_of_undone_updates_are_cut_at_a_resume(tmp_path):
    log(tmp_path, (1, 2, 3))
    log(tmp_path, (3, 4), resumed=2)
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1 + 2 * 4
    assert read_long(tmp_path / "metrics.csv") == {
        "train/loss": {1: 0.5, 2: 1.0, 3: 1.5, 4: 2.0},
        "train/lr": dict.fromkeys((1, 2, 3, 4), 1e-4),
    }


@pytest.mark.parametrize("damage", [b"\xff\xfe\x00\x01", b"3,train/loss", b"a,b,c\nx\n", b"\n\n"])
def test_a_damaged_log_stops_nothing(tmp_path, damage):
    log(tmp_path, (1, 2))
    with (tmp_path / "metrics.csv").open("ab") as file:
        file.write(damage)
    log(tmp_path, (3,), resumed=2)
    assert read_long(tmp_path / "metrics.csv")["train/loss"] == {1: 0.5, 2: 1.0, 3: 1.5}
    save_curves(tmp_path / "x.png", [Panel("loss", read_long(tmp_path / "metrics.csv"))])
    assert Image.open(tmp_path / "x.png").size[0] > 100


def test_unreadable_images_are_told_once(tmp_path):
    (tmp_path / "a").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(tmp_path / "a" / "z.png")
    for k in range(3):
        (tmp_path / "a" / f"{k}.png").write_text("no image")
    data = ImageFolder(str(tmp_path), 32)
    watched = UnreadableImages(data, "images", CPU)
    assert watched.news() is None
    data[0]
    first, *paths = watched.news().splitlines()
    assert first.startswith("images: 3 of 4 ") and len(paths) == 3 and "1.png" in paths[1]
    assert watched.news() is None
    assert UnreadableImages(Panoramas(length=2, size=32), "images", CPU).news() is None
