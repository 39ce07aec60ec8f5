import argparse
import math
import shutil
import signal

import pytest
import torch
from PIL import Image

from common import checkpoint, images
from common.plots import read_long

from ..released import released_generator


def state(folder, name="checkpoint-last"):
    return checkpoint.load(folder / f"{name}.pth")


def equal(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(value, b[name]) for name, value in a.items())


def logs(folder):
    return read_long(folder / "metrics.csv")


def assert_close_logs(found, expected):
    for name, series in expected.items():
        assert list(found[name].values()) == pytest.approx(list(series.values()), rel=1e-3), name


@pytest.fixture
def folder(tmp_path):
    """Images of two classes, as square as the tokenizer's."""
    for name in ("cats", "dogs"):
        for k in range(4):
            pixels = torch.randint(256, (3, 64, 64), generator=torch.Generator().manual_seed(k))
            images.save_image(tmp_path / "images" / name / f"{k}.png", pixels.to(torch.uint8))
    return tmp_path / "images"


def test_a_run_leaves_checkpoints_and_logs(project):
    names = {p.name for p in project.generator.glob("*.pth")}
    assert names == {"checkpoint-last.pth", "checkpoint-ckpt-1.pth", "checkpoint-ckpt-2.pth"}
    last = state(project.generator)
    assert last["epoch"] == 2 and last["step"] == 6
    assert last["generator"]["classes"] == 9 and last["generator"]["channels"] == 4
    assert equal(last["model"], state(project.generator, "checkpoint-ckpt-2")["model"])
    assert not equal(last["model"], last["model_ema"])

    curves = logs(project.generator)
    columns = [f"columns/loss_{i:02d}" for i in range(8)]
    others = {"train/grad_norm", "train/lr", "train/skipped"}
    assert set(curves) == {"train/loss", *others, *columns}
    assert list(curves["train/loss"]) == [1, 2, 3, 4, 5, 6]
    for step, loss in curves["train/loss"].items():
        assert math.fsum(curves[name][step] for name in columns) / 8 == pytest.approx(loss)
    assert list(curves["train/lr"].values()) == pytest.approx([0, 1e-3 / 3, 2e-3 / 3] + [1e-3] * 3)
    assert any(p.name.startswith("events") for p in project.generator.iterdir())
    assert (project.generator / "columns.png").exists()


def test_images_give_the_losses_of_their_cached_tokens(project, call, folder, tmp_path):
    """Of the built-in data, and of a folder with flips: the same flips, draws and weights."""
    given = ("--config", project.generator_yaml, "--config_path", project.stage_two_yaml)
    done = call("train_generator", *given, "--output_dir", tmp_path)
    assert done.code == 0, done.err
    assert_close_logs(logs(tmp_path), logs(project.generator))

    tokenizer = ("--config_path", project.stage_two_yaml, "--device", "cpu")
    cached = tmp_path / "latents.safetensors"
    done = call("cache_latents", *tokenizer, "--data_path", folder, "--cached_path", cached)
    assert done.code == 0 and "8 images x 2 flips" in done.out
    data = {"online": ("--data_path", folder), "cached": ("--use_cached", "--cached_path", cached)}
    for name, flags in data.items():
        more = (*flags, "--output_dir", tmp_path / name, "--epochs", 3, "--batch_size", 4)
        assert call("train_generator", *given, *more).code == 0
    assert_close_logs(*(logs(tmp_path / name) for name in data))


def test_a_folder_with_an_image_that_cannot_be_read(project, call, folder, tmp_path, caplog):
    Image.new("RGB", (140, 70)).save(folder / "cats" / "0.png")
    (folder / "cats" / "1.png").write_text("no image")
    given = ("--config", project.generator_yaml, "--config_path", project.stage_two_yaml)
    flags = ("--data_path", folder, "--img_size", 128, "--output_dir", tmp_path / "run")
    done = call("train_generator", *given, *flags, "--epochs", 1, "--precision", "bf16")
    assert done.code == 0, done.err
    assert str(folder / "cats" / "1.png") in caplog.text
    assert state(tmp_path / "run")["class_names"] == ["cats", "dogs"]
    assert "columns/loss_15" in logs(tmp_path / "run")


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (("--batch_size", 19), "--batch_size"),
        (("--cached_path", "no.safetensors"), "no.safetensors"),
        (("--class_num", 10), "--class_num"),
        (("--heads", 3), "width 16 over 3 heads"),
        (("--resume", "nowhere"), "nowhere/checkpoint-last.pth"),
        (("--precision", "tf32"), "--precision"),
        (("--no-use_cached",), "--cached_path"),
    ],
)
def test_mistakes_are_named(project, call, tmp_path, flags, name):
    done = call("train_generator", *project.stage_two("--output_dir", tmp_path / "run", *flags))
    assert done.code == 2 and f"error: {name}" in done.err, done.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changed", "flags"),
    [
        ({}, ("--seed", 1)),
        ({}, ("--cond_length", 1)),
        ({"generator": "x"}, ()),
        ({"token_scale": "x"}, ()),
        ({"optimizer": "x"}, ()),
        ({"training": None}, ()),
    ],
    ids=str,
)
def test_a_run_does_not_go_on_as_another(project, call, tmp_path, changed, flags):
    """Nor from a file that is no whole checkpoint, nor over another run."""
    checkpoint.save(tmp_path / "changed.pth", {**state(project.generator), **changed})
    resume = ("--resume", tmp_path, "--ckpt", "changed.pth", "--output_dir", tmp_path / "run")
    done = call("train_generator", *project.stage_two(*resume, *flags))
    assert done.code == 2 and "error: " in done.err, done.err
    done = call("train_generator", *project.stage_two("--output_dir", project.generator))
    assert done.code == 2 and f"expected --resume {project.generator} to go on" in done.err


def test_one_command_begins_and_goes_on(project, call, tmp_path):
    """Its own folder as --resume, as schedulers that start a job anew need it."""
    run, expected = tmp_path / "run", state(project.generator)
    flags = project.stage_two("--output_dir", run, "--resume", run, "--max_steps")
    done = call("train_generator", *flags, 2)
    assert done.code == 0 and f"no checkpoint in {run} yet: training from the beginning" in done.out
    done = call("train_generator", *flags, 4)
    assert "--max_steps: 2 so far, 4 from here on\nresuming after update 2, in epoch 1" in done.out
    done = call("train_generator", *flags, 4)
    assert "nothing is left to do after" in done.out
    # all other settings, and the sizes, are those of the checkpoint; so is what config.yaml has
    data = ("--use_cached", "--cached_path", project.cached, "--device", "cpu")
    done = call("train_generator", *data, "--resume", run, "--max_steps", 0)
    assert done.code == 0, done.err
    assert equal(state(run)["model"], expected["model"])
    for index, moments in expected["optimizer"]["state"].items():
        assert equal(state(run)["optimizer"]["state"][index], moments)
    assert logs(run) == logs(project.generator)
    again = ("--config", run / "config.yaml", "--output_dir", tmp_path / "again")
    assert call("train_generator", *again).code == 0
    assert equal(state(tmp_path / "again")["model_ema"], expected["model_ema"])
    # the rate of the command line goes over the file's, whichever of the two it is
    given = ("--config", run / "config.yaml", "--max_steps", 1, "--output_dir")
    assert call("train_generator", *given, tmp_path / "blr", "--blr", 0.5).code == 0
    training = state(tmp_path / "blr")["training"]
    assert (training["lr"], training["blr"]) == (None, 0.5)


def test_a_named_checkpoint_that_is_missing_is_no_new_run(project, call, tmp_path):
    flags = ("--output_dir", tmp_path / "run", "--resume", tmp_path / "run", "--ckpt", "other.pth")
    done = call("train_generator", *project.stage_two(*flags))
    assert done.code == 2 and "other.pth" in done.err, done.err


def test_a_kept_checkpoint_stands_in_for_a_missing_last_one(project, call, tmp_path):
    run = shutil.copytree(project.generator, tmp_path / "kept")
    for name in ("checkpoint-last.pth", "checkpoint-ckpt-2.pth"):
        (run / name).unlink()
    done = call("train_generator", *project.stage_two("--resume", run))
    assert done.code == 0 and "resuming after update 3" in done.out, done.err
    assert equal(state(run)["model"], state(project.generator)["model"])


def test_a_job_that_is_ended_can_go_on(project, start_in_background, call, tmp_path):
    run, log = tmp_path / "-n run", tmp_path / "logs"
    started = start_in_background(
        "train_generator",
        *project.stage_two("--output_dir", run, "--log_dir", log, "--epochs", 5000),
        *("--save_last_freq", 5000, "--num_workers", 1),
    )
    metrics = log / "metrics.csv"
    started.wait_for(lambda: metrics.exists() and metrics.read_text().count("train/loss") > 2)
    started.signal(signal.SIGTERM)  # as a scheduler asks all processes of a job
    assert started.process.wait(120) == 128 + signal.SIGTERM, started.output.read_text()
    assert "Traceback" not in started.output.read_text()
    step = state(run)["step"]
    assert step > 2
    more = ("--log_dir", log, "--epochs", 5000, "--max_steps", step + 1)
    done = call("train_generator", *project.stage_two("--resume", run, *more))
    assert f"resuming after update {step}," in done.out and state(run)["step"] == step + 1


def test_a_released_generator_is_trained_further(project, call, tmp_path, size_flags):
    """From its weights and their average; the release's other flags are taken."""
    ours = state(project.generator)
    released = {k: released_generator(ours[k]) for k in ("model", "model_ema")}
    released |= {"optimizer": {"state": {}}, "epoch": 7, "args": argparse.Namespace(lr=1.0)}
    checkpoint.save(tmp_path / "released.pth", released)
    given = ("--resume", tmp_path, "--ckpt", "released.pth", "--output_dir", tmp_path / "run")
    ignored = ("--pin_mem", "--dist_url", "env://", "--world_size", 1, "--start_epoch", 0)
    more = ("--lr", 0, "--weight_decay", 0, "--max_steps", 1, *ignored)
    done = call("train_generator", *project.stage_two(*given, *size_flags, *more))
    assert done.code == 0 and "fresh optimizer" in done.out, done.err
    assert done.err.count("ignored, without effect") == 1
    found = state(tmp_path / "run")
    assert found["step"] == 1 and equal(found["model"], ours["model"])


def test_every_column_is_measured_and_samples_are_drawn(project, call, tmp_path):
    flags = ("--train_columns", "0-2", "--eval_freq", 1, "--eval_images", 12, "--sample_freq", 2)
    more = ("--num_iter", 12, "--num_sampling_steps", 2, "--temperature", 0.9, "--cfg", 2)
    given = ("--output_dir", tmp_path, "--eval_path", project.cached, *flags, *more)
    done = call("train_generator", *project.stage_two(*given))
    assert done.code == 0, done.err
    curves = logs(tmp_path)
    for name in ("columns", "eval_columns"):
        assert {f"{name}/loss_{i:02d}" for i in range(8)} < curves.keys()
    assert list(curves["eval/loss"]) == [3, 6]
    with Image.open(tmp_path / "samples" / "epoch_00002.png") as picture:
        assert picture.size == (4 * (96 + 2) + 2, 4 * (64 + 2) + 2)
