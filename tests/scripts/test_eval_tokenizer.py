from __future__ import annotations

import json
import multiprocessing
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common import images
from common.metrics.pixel import psnr, ssim
from common.panoramas.dataset import Panoramas
from common.pretrained.files import FILES
from tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def evaluated(project, start, tmp_path_factory) -> tuple[dict, Path, str]:
    """The record, the folder, and what was printed, for the nine validation images."""
    folder = tmp_path_factory.mktemp("evaluated")
    checkpoint = project.run / "checkpoints" / "last.ckpt"
    weights = ("--weights_dir", folder, "--extractor", "random")  # none are there
    done = start(
        *("eval_tokenizer", checkpoint, "--output_dir", folder, *weights),
        *("--device", "cpu", "--metric_bsz", 4),
    )
    assert done.code == 0, done.err
    return json.loads((folder / "metrics.json").read_text()), folder, done.out


@pytest.fixture(scope="module")
def pairs(project):
    """The images and their reconstructions as they would be saved."""
    tokenizer = load_tokenizer(project.run / "checkpoints" / "last.ckpt")
    dataset = Panoramas(length=9, size=64, seed=1)
    real = torch.stack([dataset[k][0] for k in range(9)])
    with torch.inference_mode():
        fake = tokenizer.decode(tokenizer.encode(images.to_float(real)).mode())
    return real, images.to_uint8(fake)


def test_figures_are_those_of_saved_reconstructions(evaluated, pairs, call, tmp_path):
    record, folder, out = evaluated
    real, fake = map(images.to_float, pairs)
    assert record["figures"]["psnr"] == pytest.approx(psnr(fake, real).mean().item(), rel=1e-5)
    assert record["figures"]["ssim"] == pytest.approx(ssim(fake, real).mean().item(), rel=1e-4)
    for name, pictures in zip(("real", "fake"), pairs, strict=True):
        for k, picture in enumerate(pictures):
            images.save_image(tmp_path / name / f"{k}.png", picture)
    given = (tmp_path / "fake", tmp_path / "real", "--extractor", "random", "--device", "cpu")
    done = call("compute_metrics", *given, "--metrics", "fid", "--json", tmp_path / "m.json")
    assert done.code == 0, done.err
    expected = json.loads((tmp_path / "m.json").read_text())["figures"]
    assert expected["random_features_distance"] > 0.01
    found = record["figures"]["random_features_distance"]
    assert found == pytest.approx(expected["random_features_distance"], rel=1e-4)
    assert f"written to {folder}" in out


def test_what_is_left_out_is_said(evaluated):
    record, folder, out = evaluated
    reason = f"{FILES['vgg16'].name} is missing in {folder}"
    assert reason in record["not_measured"]["lpips"]
    assert f"not measured: lpips: {reason}" in out
    assert not any("fid" in name for name in record["figures"])
    assert record["images"]["images"] == 9 and record["extractor"]["name"] == "random:0"


def test_the_grid_shows_the_best_the_median_and_the_worst(evaluated, pairs):
    real, fake = pairs
    order = psnr(*map(images.to_float, (fake, real))).argsort(descending=True).tolist()
    picture = np.asarray(Image.open(evaluated[1] / "reconstructions.png"))
    height, width = real.shape[2:]
    shape = (3 * (height + 2) + 2, 9 * (width + 2) + 2, 3)  # all nine fit
    assert picture.shape == shape
    for column, k in enumerate(order):
        left = 2 + column * (width + 2)
        for row, expected in enumerate((real[k], fake[k])):
            top = 2 + row * (height + 2)
            found = picture[top : top + height, left : left + width].astype(int)
            assert abs(found - expected.permute(1, 2, 0).numpy()).max() <= 1


def one_of_two(script, rank, port, flags):
    torch.set_num_threads(1)
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    numbers |= {"MASTER_PORT": port, "MASTER_ADDR": "localhost"}
    os.environ.update({name: str(value) for name, value in numbers.items()})
    sys.argv = ["eval_tokenizer.py", *map(str, flags)]
    script.main()


def test_two_processes_find_the_same(project, evaluated, load, free_port, tmp_path):
    script, port = load("eval_tokenizer"), free_port()
    checkpoint = project.run / "checkpoints" / "last.ckpt"
    flags = (checkpoint, "--output_dir", tmp_path, "--weights_dir", tmp_path, "--device", "cpu")
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=one_of_two, args=(script, rank, port, (*flags, "--metric_bsz", 2)))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["processes"] == 2 and record["not_measured"].keys() == {"lpips", "rfid"}
    for name in ("psnr", "ssim"):
        assert record["figures"][name] == pytest.approx(evaluated[0]["figures"][name], rel=1e-5)
    one, two = (
        np.asarray(Image.open(folder / "reconstructions.png")).astype(int)
        for folder in (evaluated[1], tmp_path)
    )
    assert abs(one - two).max() <= 3


def test_mistakes_are_named(project, call, tmp_path):
    checkpoint = project.run / "checkpoints" / "last.ckpt"
    weights = ("--weights_dir", tmp_path)
    for given, name in (
        ((tmp_path / "none.ckpt",), "none.ckpt"),
        ((checkpoint, "--part", "test"), "data.params.test"),
        ((checkpoint, "--lpips", *weights), FILES["vgg16"].name),
        ((checkpoint, "data.params.validation.params.size=32"), "image height"),
    ):
        done = call("eval_tokenizer", *given, "--device", "cpu", "--output_dir", tmp_path / "out")
        assert done.code == 2 and name in done.err, done.err
    assert not (tmp_path / "out").exists()
