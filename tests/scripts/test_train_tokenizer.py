from __future__ import annotations

import csv
import re

import pytest
import torch
import yaml
from PIL import Image

from common import checkpoint
from tokenizer import load_tokenizer
from tokenizer.loading import identity


def logged(run):
    """All values of `metrics.csv` by name, a list in the order of steps."""
    found = {}
    for file in sorted(run.glob("csv/version_*/metrics.csv")):
        with file.open(newline="") as rows:
            for row in csv.DictReader(rows):
                for name, value in row.items():
                    if value:
                        found.setdefault(name, []).append(float(value))
    return found


def states(run, name="last"):
    return checkpoint.load(run / "checkpoints" / f"{name}.ckpt")


def test_a_run_leaves_its_folder(project):
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d_tiny", project.run.name)
    assert {p.name for p in project.run.iterdir()} == {
        "checkpoints", "configs", "csv", "images", "logs"
    }  # fmt: skip
    assert any(p.name.startswith("events") for p in (project.run / "logs").iterdir())
    pictures = sorted((project.run / "images").iterdir())
    assert [p.name for p in pictures] == ["step_00000004.png", "step_00000008.png"]
    with Image.open(pictures[0]) as grid:
        assert grid.size == (8 * 66 + 2, 2 * 66 + 2)  # real pictures above reconstructions
    config = yaml.safe_load((project.run / "configs" / "config.yaml").read_text())
    assert config["model"]["params"]["embed_dim"] == 4 and config["seed"] == 0

    values = logged(project.run)
    assert values["train/lr"] == pytest.approx([0, 2.5e-4, 5e-4, 7.5e-4] + [1e-3] * 3 + [5e-4])
    assert len(values["train/rec"]) == 8 and len(values["train/disc"]) == 5  # from step 3 on
    assert len(values["val/psnr"]) == len(values["val/token_scale"]) == 2


def test_its_checkpoint_is_all_that_a_tokenizer_needs(project):
    state = states(project.run)
    assert state["epoch"] == 1 and state["global_step"] == state["state_dict"]["ema.updates"] == 8
    tokenizer = load_tokenizer(project.run / "checkpoints" / "last.ckpt")
    raw = load_tokenizer(project.run / "checkpoints" / "last.ckpt", ema=False)
    name = "decoder.conv_out.weight"
    for model, prefix in ((tokenizer, "ema.model."), (raw, "tokenizer.")):
        assert torch.equal(model.state_dict()[name], state["state_dict"][prefix + name])
    assert identity(tokenizer) != identity(raw)
    scale = logged(project.run)["val/token_scale"][-1]
    assert scale != 1 and float(tokenizer.token_scale) == pytest.approx(scale)
    assert float(raw.token_scale) == pytest.approx(scale)


@pytest.mark.parametrize("target", ["folder", "file"])
def test_a_resumed_run_is_an_unbroken_one(project, call, tmp_path, target):
    given = ("-b", project.tokenizer_yaml, "-l", tmp_path, "--device", "cpu")
    done = call("train_tokenizer", *given, "lightning.trainer.max_epochs=1")
    assert done.code == 0, done.err
    (run,) = tmp_path.iterdir()
    first = states(run)
    assert first["epoch"] == 0 and first["state_dict"]["ema.updates"] == 4
    where = run if target == "folder" else run / "checkpoints" / "last.ckpt"
    done = call("train_tokenizer", "-r", where, "--device", "cpu", "lightning.trainer.max_epochs=2")
    assert done.code == 0 and f"resuming in {run}" in done.out

    found, expected = states(run), states(project.run)
    for name, value in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], value), name
    for a, b in zip(found["optimizer_states"], expected["optimizer_states"], strict=True):
        for index, moments in b["state"].items():
            for key, value in moments.items():
                assert torch.equal(torch.as_tensor(a["state"][index][key]), torch.as_tensor(value))
    for key, values in logged(project.run).items():
        assert logged(run)[key] == values, key
    assert found["epoch"] == 1


def test_a_checkpoint_of_another_model_is_refused(project, call, tmp_path):
    given = ("--device", "cpu", "lightning.trainer.max_epochs=3")
    done = call("train_tokenizer", "-r", project.run, *given, "model.params.embed_dim=6")
    assert done.code == 2
    assert "the checkpoint to go on from: the weights do not fit" in done.err
    assert "tokenizer.to_tokens.weight (found [4, 16, 3], expected [6, 16, 3])" in done.err

    config = yaml.safe_load((project.run / "configs" / "config.yaml").read_text())
    assert config["model"]["params"]["embed_dim"] == 4  # as before

    other = project.generator / "checkpoint-last.pth"
    copy = tmp_path / "run" / "checkpoints" / "other.ckpt"
    checkpoint.save(copy, checkpoint.load(other))
    (tmp_path / "run" / "configs").mkdir()
    (tmp_path / "run" / "configs" / "config.yaml").write_text(project.tokenizer_yaml.read_text())
    done = call("train_tokenizer", "-r", copy, "--device", "cpu")
    assert done.code == 2 and "other.ckpt: has no loops, optimizer_states, state_dict" in done.err


def test_without_validation_the_scale_is_measured_on_training_images(project, call, tmp_path):
    more = tmp_path / "more.yaml"
    more.write_text("data: {params: {validation: null}}\nlightning: {trainer: {max_epochs: 1}}")
    flags = ("--scale_lr", "-s", 7, "-n", "named", "--device", "cpu", "-l", tmp_path / "logs")
    # an override may follow the configs
    override = "lightning.trainer.precision=bf16-mixed"
    done = call("train_tokenizer", *flags, "-b", project.tokenizer_yaml, more, override)
    assert (done.code, done.err) == (0, "")
    (run,) = (tmp_path / "logs").iterdir()
    assert run.name.endswith("_named")
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    config = yaml.safe_load((run / "configs" / "config.yaml").read_text())
    assert config["model"]["base_learning_rate"] == pytest.approx(4e-3)  # batches of four
    assert config["seed"] == 7
    tokenizer = load_tokenizer(run / "checkpoints" / "last.ckpt")
    assert float(tokenizer.token_scale) == pytest.approx(logged(run)["val/token_scale"][0])
    assert float(tokenizer.token_scale) != 1

    # the run's own config has the rate and the seed that it used
    again = ("-r", run, "--scale_lr", "--device", "cpu", "lightning.trainer.max_epochs=2")
    assert call("train_tokenizer", *again).code == 0
    assert yaml.safe_load((run / "configs" / "config.yaml").read_text())["seed"] == 7
    assert max(logged(run)["train/lr"]) == pytest.approx(4e-3)


def test_two_processes_train_as_one_with_the_whole_batch(
    together, project, call, tmp_path, deterministic
):
    flags = ("-b", project.tokenizer_yaml, "-l", tmp_path, "--device", "cpu", *deterministic)
    assert call("train_tokenizer", *flags).code == 0
    (one,), (two,) = tmp_path.iterdir(), (together / "logs").iterdir()
    alone, both = logged(one), logged(two)
    assert alone.keys() == both.keys()
    for name in ("train/rec", "train/kl", "train/grad_norm", "val/psnr"):
        assert both[name] == pytest.approx(alone[name], rel=2e-3), name
    assert alone["train/rec"][-1] != pytest.approx(alone["train/rec"][0], rel=2e-2)


def test_without_training_nothing_is_written(project, call, tmp_path):
    given = ("-b", project.tokenizer_yaml, "-l", tmp_path, "--device", "cpu")
    done = call("train_tokenizer", "-t", "false", *given)
    assert done.code == 0 and "nothing was trained" in done.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modell.x=1", "modell: unknown key; did you mean 'model'?"),
        ("model=1", "model: found 1, expected target and params"),
        ("model.base_learning_rate=fast", "base_learning_rate: found 'fast', expected float"),
        ("model.params.embed_dimm=4", "model.params.embed_dimm: unknown key; did you mean"),
        ("model.params.ddconfig.chh=4", "ddconfig.chh: unknown key; did you mean 'ch'?"),
        ("model.params.ddconfig.ch=abc", "ddconfig.ch: found 'abc', expected int"),
        ("model.params.ddconfig.ch_mult=3", "ddconfig.ch_mult: found 3, expected tuple"),
        ("model.params.ddconfig.ch_mult=[]", "ddconfig.ch_mult: found (), expected positive"),
        ("model.params.ema_decay=2", "ema_decay: found 2.0, expected a number in [0, 1)"),
        ("model.params.scheduler_config.warmup=3", "scheduler_config.warmup: unknown key"),
        ("model.params.lossconfig.params.kl=1", "lossconfig.params.kl: unknown key"),
        ("data.params.batchsize=3", "data.params.batchsize: unknown key; did you mean"),
        ("data.params.train.params.lenght=3", "data.params.train.params.lenght: unknown key"),
        ("data.params.train.params.width=68", "image width: found 68, expected a multiple of"),
        ("data.params.batch_size=64", "data.params.batch_size: 64 on 1 process(es) makes a batch"),
        ("lightning.foo=1", "lightning.foo: unknown key"),
        ("lightning.trainer=3", "lightning.trainer: found 3, expected arguments"),
        ("lightning.trainer.max_epoch=3", "lightning.trainer.max_epoch: unknown key; did you"),
        ("lightning.trainer.max_epochs=x", "lightning.trainer.max_epochs: found 'x' (str)"),
        ("lightning.trainer.gradient_clip_val=1", "expected model.params.grad_clip"),
        ("lightning.trainer.precision=16-mixed", "found '16-mixed', expected bf16-mixed"),
        ("x", "override 'x': expected dotted.key=value"),
    ],
)
def test_mistakes_are_named(project, call, tmp_path, override, message):
    given = ("-b", project.tokenizer_yaml, "-l", tmp_path, "--device", "cpu")
    done = call("train_tokenizer", override, *given)
    assert done.code == 2
    assert done.err.startswith("error: ") and message in done.err, done.err


def test_files_that_are_not_there_are_named(call, tmp_path):
    for flags, message in [
        ((), "-b/--base: no config given"),
        (("-b", "no.yaml"), "no.yaml: cannot read this configuration"),
        (("-r", tmp_path), f"-r/--resume: found no checkpoint {tmp_path}/checkpoints/last.ckpt"),
        (("-t", "maybe"), "-t/--train: found 'maybe', expected True or False"),
    ]:
        done = call("train_tokenizer", *flags, "--device", "cpu")
        assert done.code == 2 and message in done.err


def image_folder(root, bad=0, good=4):
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for k in range(good):
            Image.new("RGB", (70, 80), (40 * k, 90, 9)).save(root / name / f"{k}.png")
        for k in range(bad):
            (root / name / f"bad{k}.png").write_text("no picture")
    return root


def folder_flags(project, root, *more):
    node = "data.params.train"
    overrides = (f"{node}.target=common.datasets.ImageFolder", f"{node}.params=null")
    params = f"{node}.params={{root: {root}, size: 64, train: true}}"
    single = ("lightning.trainer.max_epochs=1", "data.params.validation=null", *more)
    return ("-b", project.tokenizer_yaml, "--device", "cpu", *overrides, params, *single)


def test_unreadable_pictures_are_counted_and_named(project, call, tmp_path):
    root = image_folder(tmp_path / "data", bad=1)
    done = call("train_tokenizer", *folder_flags(project, root), "-l", tmp_path / "logs")
    assert done.code == 0, done.err
    assert "data.params.train: 2 of 10 pictures could not be read" in done.out
    assert f"{root / 'a' / 'bad0.png'}" in done.out.split("could not be read")[1]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "no such folder"),
        ((0, 0), "a class folder without pictures"),
        ((4, 0), "none of its"),
    ],
)
def test_pictures_that_cannot_be_used_are_named(project, call, tmp_path, files, message):
    root = tmp_path / "data"
    if files:
        image_folder(root, *files)
    done = call("train_tokenizer", *folder_flags(project, root), "-l", tmp_path / "logs")
    assert done.code == 2
    assert message in done.err and str(root) in done.err


@pytest.mark.parametrize("last", [0, -3])
def test_the_last_override_wins_wherever_it_stands(project, call, tmp_path, last):
    near, far = "model.params.embed_dim=8", f"model.params.embed_dim={last}"
    done = call("train_tokenizer", "-b", project.tokenizer_yaml, near, "-t", "False", far)
    assert done.code == 2 and f"embed_dim: found {last}, expected 1 or more" in done.err
