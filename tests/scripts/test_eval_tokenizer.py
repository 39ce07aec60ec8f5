import json
import multiprocessing
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from common import images
from common.metrics.pixel import psnr, ssim
from common.panoramas.dataset import Panoramas
from common.pretrained.files import FILES
from tokenizer import load_tokenizer

from .conftest import load_script


@pytest.fixture(scope="module")
def evaluated(project, tmp_path_factory):
    """The folder of an evaluation of nine validation images."""
    folder = tmp_path_factory.mktemp("evaluated")
    weights = ("--weights_dir", folder, "--extractor", "random")  # none are there
    given = ("--output_dir", folder, *weights, "--device", "cpu", "--metric_bsz", 4)
    with pytest.MonkeyPatch.context() as patch:
        flags = (project.run / "checkpoints" / "last.ckpt", *given)
        patch.setattr(sys, "argv", ["eval_tokenizer.py", *map(str, flags)])
        load_script("eval_tokenizer").main()
    return folder


def record_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def pixels_of(folder):
    return np.asarray(Image.open(folder / "reconstructions.png")).astype(int)


def test_figures_and_grid_are_those_of_saved_reconstructions(project, evaluated, call, tmp_path):
    record = record_of(evaluated)
    tokenizer = load_tokenizer(project.run / "checkpoints" / "last.ckpt")
    dataset = Panoramas(length=9, size=64, seed=1)
    real = torch.stack([dataset[k][0] for k in range(9)])
    with torch.inference_mode():
        fake = images.to_uint8(tokenizer.decode(tokenizer.encode(images.to_float(real)).mean))
    ranks = psnr(images.to_float(fake), images.to_float(real))
    figures = record["figures"]
    assert figures["psnr"] == pytest.approx(ranks.mean().item(), rel=1e-5)
    expected = ssim(images.to_float(fake), images.to_float(real)).mean().item()
    assert figures["ssim"] == pytest.approx(expected, rel=1e-4)

    for name, kind in (("real", real), ("fake", fake)):
        for k, image in enumerate(kind):
            images.save_image(tmp_path / name / f"{k}.png", image)
    given = (tmp_path / "fake", tmp_path / "real", "--extractor", "random", "--device", "cpu")
    done = call("compute_metrics", *given, "--json", tmp_path / "m.json")
    assert done.code == 0, done.err
    expected = json.loads((tmp_path / "m.json").read_text())["figures"]["random_features_distance"]
    assert figures["random_features_distance"] == pytest.approx(expected, rel=1e-4)
    assert not any("fid" in name for name in figures)

    assert f"{FILES['vgg16'].name} is missing" in record["not_measured"]["lpips"]

    grid = pixels_of(evaluated)
    for k in range(8):  # of nine, evenly spread
        for row, expected in enumerate((real[k], fake[k])):
            found = grid[2 + 66 * row :, 2 + 66 * k :][:64, :64]
            assert abs(found - expected.permute(1, 2, 0).numpy()).max() <= 1


def one_of_two(script, rank, port, flags):
    torch.set_num_threads(1)
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    numbers |= {"MASTER_PORT": port, "MASTER_ADDR": "localhost"}
    os.environ.update({name: str(value) for name, value in numbers.items()})
    sys.argv = ["eval_tokenizer.py", *map(str, flags)]
    script.main()


def test_two_processes_find_the_same(project, evaluated, free_port, tmp_path):
    script, port = load_script("eval_tokenizer"), free_port()
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
    two, one = record_of(tmp_path), record_of(evaluated)
    assert two["processes"] == 2 and two["not_measured"].keys() == {"lpips", "rfid"}
    for name in ("psnr", "ssim"):
        assert two["figures"][name] == pytest.approx(one["figures"][name], rel=1e-5)
    assert abs(pixels_of(tmp_path) - pixels_of(evaluated)).max() <= 3


def test_mistakes_are_named(project, call, tmp_path):
    checkpoint = project.run / "checkpoints" / "last.ckpt"
    for given, name in (
        ((tmp_path / "none.ckpt",), "none.ckpt"),
        ((checkpoint, "--part", "test"), "data.params.test"),
        ((checkpoint, "--metrics", "--weights_dir", tmp_path), FILES["inception"].name),
        ((checkpoint, "data.params.validation.params.size=32"), "image height"),
    ):
        done = call("eval_tokenizer", *given, "--device", "cpu", "--output_dir", tmp_path / "out")
        assert done.code == 2 and name in done.err, done.err
    assert not (tmp_path / "out").exists()
