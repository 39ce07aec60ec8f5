from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image

WAYS = {"pillow", "pillow, draft", "pillow, torch resize (in use)", "torchvision"}
RATE = {"images_per_s", "slowest", "fastest"}
SHORT = ("--seconds", 0.05, "--batch_size", 2)


@pytest.fixture
def root(tmp_path):
    """Six JPEGs, four times as large as what is cut from them."""
    pixels = np.random.default_rng(0).integers(0, 256, (140, 128, 3), dtype=np.uint8)
    for k in range(6):
        path = tmp_path / "pictures" / f"class {k % 2}" / f"{k}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path / "pictures"


def test_the_report_is_complete_and_its_arithmetic_right(call, tmp_path):
    path = tmp_path / "report.json"
    flags = ("--size", 64, "--workers", "1,0", "--gpus", 3, "--consume", 1000, "--output", path)
    done = call("benchmark_loading", *SHORT, *flags)
    assert (done.code, done.err) == (0, "")
    report = json.loads(path.read_text())
    assert report["conditions"]["cores"] >= 1 and report["size"] == 64
    pictures = report["pictures"]
    assert (pictures["made"], pictures["mean_width"], pictures["mean_height"]) == (True, 500, 375)
    assert 100_000 < pictures["mean_bytes"] < 120_000
    assert report["one_core"].keys() == WAYS and list(report["loader"]) == ["0", "1"]
    optional = report["one_core"].pop("torchvision")  # a decoder that it is going to lose
    assert optional.keys() in ({"error"}, RATE | {"difference"})
    for entry in [*report["one_core"].values(), *report["loader"].values()]:
        assert entry.keys() >= RATE
        assert 0 < entry["slowest"] <= entry["images_per_s"] <= entry["fastest"]
    need = report["need"]
    assert need["images_per_s_of_a_core"] == report["loader"]["1"]["images_per_s"]
    assert need["cores"] == math.ceil(3000 / need["images_per_s_of_a_core"])
    assert need["num_workers_of_a_gpu"] == math.ceil(need["cores"] / 3)
    for shown in (*WAYS, f"3 GPUs x 1000 images/s / {need['images_per_s_of_a_core']:.0f}"):
        assert shown in done.out


def test_pixels_agree_but_for_drafts(call, root, tmp_path):
    path = tmp_path / "report.json"
    flags = ("--root", root, "--size", 32, "--workers", "0", "--output", path)
    done = call("benchmark_loading", *SHORT, *flags)
    assert (done.code, done.err) == (0, "")
    report = json.loads(path.read_text())
    assert report["pictures"]["count"] == 6 and not report["pictures"]["made"]
    difference = {name: entry.get("difference") for name, entry in report["one_core"].items()}
    assert difference["pillow"] == 0
    assert difference["pillow, torch resize (in use)"] < 0.05
    assert difference["torchvision"] is None or difference["torchvision"] < 0.05
    assert difference["pillow, draft"] > 1
    assert report["need"]["images_per_s_of_a_core"] == report["loader"]["0"]["images_per_s"]


def test_pictures_that_one_way_does_not_take_leave_the_others(call, root, tmp_path):
    Image.new("RGB", (70, 70)).save(root / "class 0" / "x.tif")
    path = tmp_path / "report.json"
    flags = ("--root", root, "--size", 32, "--workers", "0", "--output", path)
    done = call("benchmark_loading", *SHORT, *flags)
    assert (done.code, done.err) == (0, "")
    ways = json.loads(path.read_text())["one_core"]
    assert ways["torchvision"].keys() == {"error"}
    assert all(entry.keys() >= RATE for name, entry in ways.items() if name != "torchvision")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--workers", "1,-2"), "--workers: found '1,-2', expected numbers such as 0,1,2,4"),
        (("--gpus", 0), "--gpus: found 0, expected more than 0"),
        (("--root", "nowhere"), "nowhere: no such folder; expected one with a folder for each"),
    ],
)
def test_mistakes_are_named(call, flags, message):
    done = call("benchmark_loading", *flags)
    assert done.code == 2 and done.err.startswith(f"error: {message}")
