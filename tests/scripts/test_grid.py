"""The paper's 2-D baseline through the scripts: a grid of tokens in raster order."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from common import checkpoint
from common.data.latents import LatentDataset
from common.plots import read_long
from tokenizer import load_tokenizer

from .conftest import write_yaml


@pytest.fixture(scope="module")
def grid(project, call, tmp_path_factory):
    """Both stages with four by four tokens, otherwise as in `project`."""
    folder = tmp_path_factory.mktemp("grid")
    given = ("-b", project.tokenizer_yaml, "-l", folder / "logs", "--device", "cpu")
    size = ("model.params.ddconfig.token_grid=4", "lightning.trainer.max_epochs=1")
    done = call("train_tokenizer", *given, *size)
    assert done.code == 0, done.err
    (run,) = (folder / "logs").iterdir()
    two = {"model": {"params": {"ckpt_path": str(run / "checkpoints" / "last.ckpt")}}}
    tokenizer = ("--config_path", write_yaml(folder / "two.yaml", two), "--device", "cpu")
    data = folder / "latents.safetensors"
    kind, sizes = "common.panoramas.dataset.Panoramas", "{length: 18, size: 64}"
    images = (f"data.params.train.target={kind}", f"data.params.train.params={sizes}")
    done = call("cache_latents", *tokenizer, "--cached_path", data, *images)
    assert done.code == 0, done.err
    cached = ("--config", project.generator_yaml, *tokenizer, "--use_cached", "--cached_path", data)
    output = folder / "generator"
    measured = ("--eval_freq", 1, "--eval_images", 12, "--sample_freq", 2, "--num_iter", 16)
    flags = (*cached, *measured, "--num_sampling_steps", 2, "--train_columns", "0-7")
    done = call("train_generator", *flags, "--output_dir", output)
    assert done.code == 0, done.err
    found = {"tokenizer": tokenizer, "images": images, "data": data}
    return SimpleNamespace(**found, flags=flags, generator=output)


def test_layout_and_shift_follow_from_the_tokens(grid):
    latents, tokenizer = LatentDataset(grid.data), load_tokenizer(grid.tokenizer[1])
    assert latents.means.shape == (18, 1, 16, 4) and latents.header.rows == tokenizer.rows == 4
    state = checkpoint.load(grid.generator / "checkpoint-last.pth")
    assert (state["generator"]["grid"], state["generator"]["window"]) == (4, 0)
    assert state["training"]["shift_num"] == 1 and state["data"]["columns"] == 16
    curves = read_long(grid.generator / "metrics.csv")
    for name in ("columns", "eval_columns"):
        assert {f"{name}/loss_{i:02d}" for i in range(16)} < curves.keys()
    with Image.open(grid.generator / "samples" / "epoch_00002.png") as image:
        assert image.size == (4 * (64 + 2) + 2,) * 2


def test_a_run_goes_on_and_images_serve_as_well_as_their_tokens(grid, call, project, tmp_path):
    expected = checkpoint.load(grid.generator / "checkpoint-last.pth")
    for steps in (2, 0):
        run = ("--output_dir", tmp_path, "--resume", tmp_path, "--max_steps", steps)
        assert call("train_generator", *grid.flags, *run).code == 0
    found = checkpoint.load(tmp_path / "checkpoint-last.pth")
    assert all(torch.equal(v, expected["model"][k]) for k, v in found["model"].items())

    online = ("--config", project.generator_yaml, *grid.tokenizer, *grid.images)
    more = ("--train_columns", "0-7", "--output_dir", tmp_path / "online")
    done = call("train_generator", *online, *more)
    assert done.code == 0, done.err
    logs = [read_long(f / "metrics.csv")["train/loss"] for f in (tmp_path, tmp_path / "online")]
    assert list(logs[0].values()) == pytest.approx(list(logs[1].values()), rel=1e-3)


@pytest.mark.parametrize("flags", [(), ("--solver", "ab2", "--decode_columns", 8)], ids=str)
def test_samples_are_whole_images(grid, call, tmp_path, flags):
    given = (*grid.tokenizer, "--resume", grid.generator, "--output_dir", tmp_path, "--cfg", 2)
    more = ("--num_images", 2, "--num_sampling_steps", 2, "--decode_overlap", 4)
    done = call("eval_generator", *given, *more, *flags)
    assert done.code == 0, done.err
    for k in range(2):
        with Image.open(tmp_path / "images" / f"{k:06d}.png") as image:
            assert image.size == (64, 64)


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (("--grid", 8), "--grid: found 8, expected 4"),
        (("--cond_length", 3), "--cond_length: found 3, expected 0"),
        (("--shift_num", 2), "--shift_num"),
        (("--subsequence", 4, "--train_columns", "all"), "--subsequence"),
        (("--num_iter", 20), "--token_num: found 20, expected the 16 tokens"),
        (("--heads", 8), "width 16 over 8 heads"),
    ],
    ids=str,
)
def test_contradictions_are_named(grid, call, tmp_path, flags, name):
    done = call("train_generator", *grid.flags, "--output_dir", tmp_path / "run", *flags)
    assert done.code == 2 and name in done.err, done.err
    assert not (tmp_path / "run").exists()


def test_what_goes_beyond_the_grid_is_named(grid, project, call, tmp_path):
    given = (*grid.tokenizer, "--resume", grid.generator, "--output_dir", tmp_path / "out")
    for flag, value in (("--token_num", 32), ("--token_num", 8), ("--prefix_image", "x.png")):
        done = call("eval_generator", *given, flag, value)
        assert done.code == 2 and f"error: {flag}: found" in done.err, done.err
        assert not (tmp_path / "out").exists()
    wide = ("data.params.train.params={length: 18, size: 64, width: 128}",)
    given = ("--config", project.generator_yaml, *grid.tokenizer, *grid.images, *wide)
    done = call("train_generator", *given, "--output_dir", tmp_path / "run")
    assert done.code == 2 and "images: found 32, expected the 16 tokens" in done.err, done.err
    given = project.stage_two("--output_dir", tmp_path / "run", "--grid", 4)
    done = call("train_generator", *given)
    assert done.code == 2 and "--grid: found 4, expected 0" in done.err, done.err
