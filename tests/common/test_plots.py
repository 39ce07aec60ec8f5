from __future__ import annotations

import pytest
from PIL import Image

from common import plots as curves
from common.errors import UserError


def test_wide_files_are_one_curve_and_the_later_start_counts(tmp_path):
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_text("epoch,step,loss,psnr\n0,10,3.0,\n0,20,2.5,\n0,30,2.4,\n0,30,,21.5\n")
    second.write_text("epoch,loss,step\n0,2.0,20\n1,1.5,40\n")
    found = curves.read_wide([first, second])
    assert found["loss"] == {10: 3.0, 20: 2.0, 30: 2.4, 40: 1.5}
    assert list(found["loss"]) == [10, 20, 30, 40]
    assert found["psnr"] == {30: 21.5}


def test_long_files_hold_a_value_a_line(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text("step,name,value\n20,loss,2.0\n20,lr,0.1\n10,loss,3.0\n20,loss,1.0\n")
    assert curves.read_long(file) == {"loss": {10: 3.0, 20: 1.0}, "lr": {20: 0.1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "x.csv: cannot read this log"),
        ("step,value\n1,2\n", "x.csv: has no column name"),
        ("step,name,value\n1,loss,many\n", "x.csv: found step '1' with loss 'many'"),
        ("step,name,value\n", "found no values in .*x.csv"),
    ],
)
def test_a_file_that_is_no_log_is_named(tmp_path, text, message):
    file = tmp_path / "x.csv"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=message):
        curves.read_long(file)


def test_an_absent_curve_is_named(tmp_path):
    with pytest.raises(UserError, match=r"log\.csv: found no loss, expected some of lr"):
        curves.pick({"lr": {}}, "loss", tmp_path / "log.csv")


def test_smoothing_keeps_a_constant_and_forgets_the_past():
    assert curves.smooth({0: 2.0, 5: 2.0, 9: 2.0}) == pytest.approx({0: 2.0, 5: 2.0, 9: 2.0})
    step = {i: float(i >= 100) for i in range(200)}
    assert curves.smooth(step)[100] == pytest.approx(0.1, abs=1e-3)
    assert curves.smooth(step)[199] == pytest.approx(1, abs=1e-3)


def test_panels_become_one_picture(tmp_path):
    series = {i: 1 / (i + 1) for i in range(50)}
    panels = [
        curves.Panel("one", {"a": series}, log=True),
        curves.Panel("few", {"a": {3: 1.0}}),
        curves.Panel("many", {str(i): series for i in range(16)}),
    ]
    curves.save_curves(tmp_path / "new" / "curves.png", panels)
    with Image.open(tmp_path / "new" / "curves.png") as image:
        assert image.width > image.height > 500
        corner = image.convert("L").crop((image.width // 2 + 10, image.height // 2, *image.size))
        assert corner.getextrema() == (255, 255)  # no empty plot there
