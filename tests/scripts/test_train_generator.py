from __future__ import annotations

import math

import pytest
import torch
from PIL import Image

from common import checkpoint
from common.curves import read_long


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
    assert set(curves) == {"train/loss", "train/grad_norm", "train/lr", *columns}
    assert list(curves["train/loss"]) == [1, 2, 3, 4, 5, 6]
    for step, loss in curves["train/loss"].items():
        assert math.fsum(curves[name][step] for name in columns) / 8 == pytest.approx(loss)
    assert list(curves["train/lr"].values()) == pytest.approx([0, 1e-3 / 3, 2e-3 / 3] + [1e-3] * 3)
    assert any(p.name.startswith("events") for p in project.generator.iterdir())


def test_a_resumed_run_is_an_unbroken_one(project, call, tmp_path):
    output = ("--output_dir", tmp_path / "run")
    assert call("train_generator", *project.stage_two(*output, "--epochs", 1)).code == 0
    first = state(tmp_path / "run")
    assert first["epoch"] == 1
    done = call("train_generator", *project.stage_two("--resume", tmp_path / "run"))
    assert done.code == 0 and "resuming after epoch 1" in done.out
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
    assert "images: 1 of 6 pictures could not be read" in done.err + done.out
    assert str(root / "cats" / "1.png") in done.err + done.out
    assert state(tmp_path / "run")["class_names"] == ["cats", "dogs"]
    assert "columns/loss_15" in read_long(tmp_path / "run" / "metrics.csv")


def test_two_processes_take_the_steps_of_one(project, together):
    found, expected = state(together / "generator"), state(project.generator)
    assert (found["epoch"], found["step"]) == (2, 6)
    assert found["model"].keys() == expected["model"].keys()
    rates = [read_long(f / "metrics.csv")["train/lr"] for f in (together / "generator",
             project.generator)]  # fmt: skip
    assert rates[0] == rates[1]
    # neither stands still, nor leaves the other far behind: noise alone differs
    a, b = (read_long(f / "metrics.csv")["train/loss"] for f in (together / "generator",
            project.generator))  # fmt: skip
    assert list(a.values()) == pytest.approx(list(b.values()), rel=0.5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--batch_size", 19), "--batch_size: found 19 on 1 process(es), a batch of 19, but there"),
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
        (("--cond_length", 1), "was trained with generator window 3, found 1 now"),
        (("--vae_norm", 2), "was trained with token_scale"),
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
