from __future__ import annotations

import math
import signal
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from common import checkpoint, images
from common.plots import read_long
from generator.config import TrainConfig

ROOT = Path(__file__).parents[2]


def state(folder, name="checkpoint-last"):
    return checkpoint.load(folder / f"{name}.pth")


def equal(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(value, b[name]) for name, value in a.items())


def test_a_run_leaves_checkpoints_and_logs(project):
    names = {p.name for p in project.generator.glob("*.pth")}
    assert names == {"checkpoint-last.pth", "checkpoint-ckpt-1.pth", "checkpoint-ckpt-2.pth"}
    last = state(project.generator)
    assert last["epoch"] == 2 and last["step"] == 6
    assert last["generator"]["classes"] == 9 and last["generator"]["channels"] == 4
    assert equal(last["model"], state(project.generator, "checkpoint-ckpt-2")["model"])
    assert not equal(last["model"], last["model_ema"])

    curves = read_long(project.generator / "metrics.csv")
    columns = [f"columns/loss_{i:02d}" for i in range(8)]
    others = {"train/grad_norm", "train/lr", "train/skipped"}
    assert set(curves) == {"train/loss", *others, *columns}
    assert list(curves["train/loss"]) == [1, 2, 3, 4, 5, 6]
    for step, loss in curves["train/loss"].items():
        assert math.fsum(curves[name][step] for name in columns) / 8 == pytest.approx(loss)
    assert list(curves["train/lr"].values()) == pytest.approx([0, 1e-3 / 3, 2e-3 / 3] + [1e-3] * 3)
    assert any(p.name.startswith("events") for p in project.generator.iterdir())
    assert (project.generator / "columns.png").exists()


def test_a_resumed_run_is_an_unbroken_one(project, call, tmp_path):
    output = ("--output_dir", tmp_path / "run")
    assert call("train_generator", *project.stage_two(*output, "--epochs", 1)).code == 0
    first = state(tmp_path / "run")
    assert first["epoch"] == 1
    done = call("train_generator", *project.stage_two("--resume", tmp_path / "run"))
    assert done.code == 0 and "resuming after update 3, in epoch 2" in done.out
    found, expected = state(tmp_path / "run"), state(project.generator)
    assert not equal(first["model"], expected["model"])
    for key in ("model", "model_ema"):
        assert equal(found[key], expected[key])
    for index, moments in expected["optimizer"]["state"].items():
        assert equal(found["optimizer"]["state"][index], moments)
    curves = [read_long(f / "metrics.csv") for f in (tmp_path / "run", project.generator)]
    assert curves[0] == curves[1]


def test_another_checkpoint_to_go_on_from(project, call, tmp_path):
    more = ("--ckpt", "checkpoint-ckpt-1.pth", "--output_dir", tmp_path / "on")
    done = call("train_generator", *project.stage_two("--resume", project.generator, *more))
    assert done.code == 0, done.err
    assert equal(state(tmp_path / "on")["model"], state(project.generator)["model"])


def test_images_give_the_losses_of_their_cached_tokens(project, call, tmp_path):
    given = ("--config", project.generator_yaml, "--config_path", project.stage_two_yaml)
    done = call("train_generator", *given, "--output_dir", tmp_path, "--token_num", 8)
    assert done.code == 0, done.err
    online, cached = (read_long(p / "metrics.csv") for p in (tmp_path, project.generator))
    for name, series in cached.items():
        assert list(online[name].values()) == pytest.approx(list(series.values()), rel=1e-3), name


def test_a_folder_of_images(project, call, tmp_path):
    root = tmp_path / "images"
    for name in ("cats", "dogs"):
        (root / name).mkdir(parents=True)
        for k in range(3):
            Image.new("RGB", (140, 70), (90 * k, 40, 9)).save(root / name / f"{k}.png")
    (root / "cats" / "1.png").write_text("no picture")
    given = ("--config", project.generator_yaml, "--config_path", project.stage_two_yaml)
    flags = ("--data_path", root, "--img_size", 128, "--output_dir", tmp_path / "run")
    done = call("train_generator", *given, *flags, "--epochs", 1, "--precision", "bf16")
    assert done.code == 0, done.err
    assert "images: 1 of 6 images could not be read" in done.err + done.out
    assert str(root / "cats" / "1.png") in done.err + done.out
    assert state(tmp_path / "run")["class_names"] == ["cats", "dogs"]
    assert "columns/loss_15" in read_long(tmp_path / "run" / "metrics.csv")


def test_two_processes_train_as_one(project, together):
    """Dropout alone differs, which every process draws for itself."""
    found, expected = state(together / "generator"), state(project.generator)
    assert (found["epoch"], found["step"]) == (2, 6)
    assert found["model"].keys() == expected["model"].keys()
    curves = [read_long(f / "metrics.csv") for f in (together / "generator", project.generator)]
    assert curves[0]["train/lr"] == curves[1]["train/lr"]
    # an untrained velocity is zero, so that the first loss is that of the draws
    assert curves[0]["train/loss"][1] == pytest.approx(curves[1]["train/loss"][1], rel=1e-5)
    values = [list(c["train/loss"].values()) for c in curves]
    assert values[0] == pytest.approx(values[1], rel=0.05)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--batch_size", 19), "--batch_size: found 19 x 1 pass(es) on 1 process(es), an update"),
        (("--batch_size", 0), "--batch_size: found 0"),
        (("--cached_path", "no.safetensors"), "no.safetensors: no such checkpoint file"),
        (("--cached_path", ""), "--cached_path: not given, but --use_cached is"),
        (("--token_num", 16), "--token_num: found 16, but the images have 8"),
        (("--class_num", 10), "--class_num: found 10, expected 9"),
        (("--vae_embed_dim", 5), "--vae_embed_dim: found 5, expected 4"),
        (("--heads", 3), "width 16 over 3 heads"),
        (("--epochs", 0), "--epochs: found 0, expected at least 1"),
        (("--ema_rate", 1), "--ema_rate: found 1.0, expected a number in [0, 1)"),
        (("--vae_norm", 0), "--vae_norm: found 0.0, expected a number above 0"),
        (("--resume", "nowhere"), "nowhere/checkpoint-last.pth: no such checkpoint file"),
        (("--img_size", 128), "--img_size: found 128, but"),
        (("--precision", "tf32"), "--precision: found tf32 on a CPU, expected fp32"),
        (("--blr", 1e-4, "--lr", 1e-3), "--blr: found 0.0001 together with --lr 0.001, expected"),
        (("--std", -1), "--std: found -1.0, expected at least 0"),
        (("--temperature", -1), "--temperature: found -1.0, expected 0 or more"),
        (("--num_iter", 1), "--num_iter: found 1, expected at least 2"),
        (("--train_columns", "3-8"), "--train_columns: found '3-8' in '3-8', expected columns"),
        (("--subsequence", 9), "--subsequence: found 9, but images have 8 columns"),
        (("--eval_freq", 1, "--eval_images", 5), "--eval_images: found 5 images to measure"),
        (("--model", "giant_model"), "--model: invalid choice: 'giant_model'"),
        (("--config", "no.yaml"), "no.yaml: cannot read this configuration"),
    ],
)
def test_mistakes_are_named(project, call, tmp_path, flags, message):
    done = call("train_generator", *project.stage_two("--output_dir", tmp_path / "run", *flags))
    assert done.code == 2 and message in done.err, done.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--seed", 1), "--seed: found 1, expected 0, with which"),
        (("--cond_length", 1), "--cond_length: found 1, but the checkpoint has 3"),
        (("--attn_dropout", 0), "--attn_dropout: found 0.0, but the checkpoint has 0.1"),
        (("--vae_norm", 2), "was trained with token_scale"),
        (("--std", 0.5), "was trained with std 0.3"),
    ],
)
def test_a_run_does_not_go_on_as_another(project, call, tmp_path, flags, message):
    resume = ("--resume", project.generator, "--output_dir", tmp_path / "run")
    done = call("train_generator", *project.stage_two(*resume, *flags))
    assert done.code == 2 and message in done.err, done.err


def test_a_run_is_not_overwritten(project, call):
    done = call("train_generator", *project.stage_two("--output_dir", project.generator))
    assert done.code == 2
    assert f"expected --resume {project.generator} to go on" in done.err


def test_another_run_is_not_overwritten_by_a_resumed_one(project, call, tmp_path):
    last = tmp_path / "checkpoint-last.pth"
    last.write_text("of a run")
    flags = ("--resume", project.generator, "--output_dir", tmp_path)
    done = call("train_generator", *project.stage_two(*flags))
    assert done.code == 2 and f"{last} is there already; expected --resume" in done.err
    assert last.read_text() == "of a run"


def test_one_command_begins_and_goes_on(project, call, tmp_path):
    """Its own folder as --resume, as schedulers that start a job anew need it."""
    run = tmp_path / "run"
    flags = project.stage_two("--output_dir", run, "--resume", run, "--max_steps")
    done = call("train_generator", *flags, 2)
    assert done.code == 0 and f"no checkpoint in {run} yet: training from the beginning" in done.out
    done = call("train_generator", *flags, 4)
    assert "--max_steps: 2 so far, 4 from here on\nresuming after update 2, in epoch 1" in done.out
    done = call("train_generator", *flags, 4)
    assert "nothing is left to do after" in done.out
    # all other settings, and the sizes, are those of the checkpoint; so is what config.yaml has
    data = (
        "--config_path",
        project.stage_two_yaml,
        "--use_cached",
        "--cached_path",
        project.cached,
    )
    done = call("train_generator", *data, "--resume", run, "--max_steps", 0, "--device", "cpu")
    assert done.code == 0, done.err
    assert equal(state(run)["model"], state(project.generator)["model"])
    again = ("--config", run / "config.yaml", "--output_dir", tmp_path / "again")
    assert call("train_generator", *again).code == 0
    assert equal(state(tmp_path / "again")["model"], state(project.generator)["model"])
    assert read_long(tmp_path / "again" / "metrics.csv") == read_long(run / "metrics.csv")


def test_a_job_that_is_ended_can_go_on(project, start_in_background, call, tmp_path):
    run, log = tmp_path / "run", tmp_path / "logs"
    started = start_in_background(
        "train_generator",
        *project.stage_two("--output_dir", run, "--log_dir", log, "--epochs", 5000),
        *("--save_last_freq", 5000, "--num_workers", 1),
    )
    metrics = log / "metrics.csv"
    started.wait_for(lambda: metrics.exists() and metrics.read_text().count("train/loss") > 2)
    started.signal(signal.SIGTERM)  # as a scheduler asks all processes of a job
    assert started.process.wait(120) == 0, started.output.read_text()
    assert f"left on SIGTERM; --resume {run} goes on from there" in started.output.read_text()
    step = state(run)["step"]
    assert step > 2
    more = ("--log_dir", log, "--epochs", 5000, "--max_steps", step + 1)
    done = call("train_generator", *project.stage_two("--resume", run, *more))
    assert f"resuming after update {step}," in done.out and state(run)["step"] == step + 1


def test_cached_flips_give_the_losses_of_the_pictures(project, call, tmp_path):
    """Of square pictures, which have no other crop: the same flips, draws and weights."""
    root, cached = tmp_path / "images", tmp_path / "latents.safetensors"
    for name in ("cats", "dogs"):
        (root / name).mkdir(parents=True)
        for k in range(4):
            pixels = torch.randint(256, (3, 64, 64), generator=torch.Generator().manual_seed(k))
            images.save_image(root / name / f"{k}.png", pixels.to(torch.uint8))
    tokenizer = ("--config_path", project.stage_two_yaml, "--device", "cpu")
    done = call("cache_latents", *tokenizer, "--data_path", root, "--cached_path", cached)
    assert done.code == 0 and "8 images x 2 flips" in done.out
    given = ("--config", project.generator_yaml, *tokenizer, "--epochs", 4, "--batch_size", 4)
    data = {"online": ("--data_path", root), "cached": ("--use_cached", "--cached_path", cached)}
    for name, flags in data.items():
        done = call("train_generator", *given, *flags, "--output_dir", tmp_path / name)
        assert done.code == 0, done.err
    online, cached = (read_long(tmp_path / name / "metrics.csv") for name in data)
    for name, series in online.items():
        assert list(cached[name].values()) == pytest.approx(list(series.values()), rel=1e-3), name


def test_every_column_is_measured_and_samples_are_drawn(project, call, tmp_path):
    flags = ("--train_columns", "0-2", "--eval_freq", 1, "--eval_images", 12, "--sample_freq", 2)
    more = ("--num_iter", 12, "--num_sampling_steps", 2, "--temperature", 0.9, "--cfg", 2)
    given = ("--output_dir", tmp_path, "--eval_path", project.cached, *flags, *more)
    done = call("train_generator", *project.stage_two(*given))
    assert done.code == 0, done.err
    curves = read_long(tmp_path / "metrics.csv")
    for name in ("columns", "eval_columns"):
        assert {f"{name}/loss_{i:02d}" for i in range(8)} < curves.keys()
    assert list(curves["eval/loss"]) == [3, 6]
    with Image.open(tmp_path / "samples" / "epoch_00002.png") as picture:
        assert picture.size == (4 * (96 + 2) + 2, 4 * (64 + 2) + 2)


def test_the_papers_settings_are_flags(project, call, tmp_path):
    """The file is taken as far as its tokenizer, which nobody has here."""
    paper = ROOT / "configs" / "second_stage" / "paper.yaml"
    flags = ("--config", paper, "--output_dir", tmp_path / "run", "--data_path", tmp_path)
    done = call("train_generator", *flags, "model.params.ckpt_path=no.ckpt")
    assert done.code == 2 and "error: no.ckpt: no such checkpoint file" in done.err
    values = yaml.safe_load(paper.read_text())
    defaults = asdict(TrainConfig())
    assert {k: v for k, v in values.items() if k in defaults and defaults[k] != v} == {}


def test_images_of_other_classes_measure_nothing(project, call, tmp_path):
    (tmp_path / "images" / "cats").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "images" / "cats" / "1.png")
    flags = ("--output_dir", tmp_path / "run", "--eval_path", tmp_path / "images", "--eval_freq", 1)
    done = call("train_generator", *project.stage_two(*flags))
    assert done.code == 2 and "images has other classes than the training data" in done.err


def test_tokens_of_another_tokenizer_are_refused(project, call, tmp_path):
    best = project.run / "checkpoints" / "last.ckpt"
    payload = checkpoint.load(best)
    payload["state_dict"]["ema.model.encoder.conv_in.bias"] += 1
    checkpoint.save(tmp_path / "other.ckpt", payload)
    override = f"model.params.ckpt_path={tmp_path / 'other.ckpt'}"
    flags = project.stage_two("--output_dir", tmp_path / "run", override)
    done = call("train_generator", *flags)
    assert done.code == 2
    assert f"{project.cached}: found tokens of tokenizer" in done.err


def test_cached_tokens_that_would_not_be_used_are_no_accident(project, call, tmp_path):
    flags = [flag for flag in project.stage_two("--output_dir", tmp_path) if flag != "--use_cached"]
    done = call("train_generator", *flags)
    assert done.code == 2 and "but --use_cached is not given" in done.err
