from __future__ import annotations

import pytest
from PIL import Image

from common.errors import UserError
from common.plots import Panel, read_long, save_curves


def test_logs_hold_a_value_a_line_and_the_later_one_counts(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text("step,name,value\n20,loss,2.0\n20,lr,0.1\n10,loss,3.0\n20,loss,1.0\n")
    assert read_long(file) == {"loss": {10: 3.0, 20: 1.0}, "lr": {20: 0.1}}


@pytest.mark.parametrize(
    "content", [None, b"step,value\n1,2\n", b"step,name,value\n1,a,x\n", b"\xff"]
)
def test_a_file_that_is_no_log_is_named(tmp_path, content):
    file = tmp_path / "x.csv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.csv"):
        read_long(file)


def test_panels_become_one_image(tmp_path):
    series = {i: 1 / (i + 1) for i in range(50)}
    panels = [
        Panel("one", {"a": series}),
        Panel("few", {"a": {3: 1.0}}),
        Panel("many", {str(i): series for i in range(16)}),
    ]
    save_curves(tmp_path / "new" / "curves.png", panels)
    with Image.open(tmp_path / "new" / "curves.png") as image:
        assert image.width > image.height > 500
        corner = image.convert("L").crop((image.width // 2 + 10, image.height // 2, *image.size))
        assert corner.getextrema() == (255, 255)  # no empty plot there
