import pytest
from PIL import Image

from common.logger import MetricLogger
from common.plots import read_long, save_curves


def log(folder, steps, resumed=0):
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
    save_curves(tmp_path / "x.png", {"loss": read_long(tmp_path / "metrics.csv")})
    assert Image.open(tmp_path / "x.png").size[0] > 100
