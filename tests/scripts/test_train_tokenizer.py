from __future__ import annotations

import csv
import json
import re
import signal

import pytest
import torch
import yaml
from PIL import Image

from common import checkpoint
from common.distributed import Process
from common.panoramas.dataset import Panoramas
from tokenizer import load_tokenizer
from tokenizer.scale import measure_scale


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
        "checkpoints", "configs", "csv", "images", "logs", "results.json"
    }  # fmt: skip
    assert any(p.name.startswith("events") for p in (project.run / "logs").iterdir())
    pictures = sorted((project.run / "images").iterdir())
    assert [p.name for p in pictures] == ["step_00000004.png", "step_00000008.png"]
    with Image.open(pictures[0]) as grid:
        assert grid.size == (8 * 66 + 2, 3 * 66 + 2)  # real pictures, reconstructions, differences
    config = yaml.safe_load((project.run / "configs" / "config.yaml").read_text())
    assert config["model"]["params"]["embed_dim"] == 4 and config["seed"] == 0

    values = logged(project.run)
    assert values["train/lr"] == pytest.approx([0, 2.5e-4, 5e-4, 7.5e-4] + [1e-3] * 3 + [5e-4])
    assert len(values["train/rec"]) == 8 and len(values["train/disc"]) == 5  # from step 3 on
    for name in ("val/psnr", "val/ssim", "val/token_scale"):
        assert len(values[name]) == 2, name
    assert values["step"] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]  # of updates, then of a validation

    record = json.loads((project.run / "results.json").read_text())
    results = record["results"]
    assert results["updates"] == 8 and results["validation"]["images"] == 9
    assert results["validation"]["psnr"] == pytest.approx(max(values["val/psnr"]), abs=1e-3)
    assert record["settings"]["seed"] == 0 and record["environment"]["torch"] in torch.__version__


def test_its_checkpoint_is_all_that_a_tokenizer_needs(project):
    state = states(project.run)
    assert state["epoch"] == 1 and state["global_step"] == state["state_dict"]["ema.updates"] == 8
    tokenizer = load_tokenizer(project.run / "checkpoints" / "last.ckpt")
    raw = load_tokenizer(project.run / "checkpoints" / "last.ckpt", ema=False)
    name = "decoder.conv_out.weight"
    for model, prefix in ((tokenizer, "ema.model."), (raw, "tokenizer.")):
        assert torch.equal(model.state_dict()[name], state["state_dict"][prefix + name])
    assert tokenizer.fingerprint != raw.fingerprint
    dataset = Panoramas(length=18, size=64)
    scale = measure_scale(tokenizer, dataset, Process(0, 0, 1, torch.device("cpu")), batch_size=4)
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


def test_flags_that_shape_a_run(project, call, tmp_path):
    more = tmp_path / "more.yaml"
    more.write_text("data: {params: {validation: null}}\nlightning: {trainer: {max_epochs: 1}}")
    flags = ("--scale_lr", "-s", 7, "-n", "named", "-f", "_more", "--device", "cpu")
    speed = ("--precision", "bf16", "--accumulate", 2, "--grad_checkpointing", "--channels_last")
    where = ("-l", tmp_path / "logs", "-b", project.tokenizer_yaml, more)
    override = "model.params.embed_dim=6"  # an override may follow the configs
    done = call("train_tokenizer", *flags, *speed, *where, override)
    assert done.code == 0, done.err
    (run,) = (tmp_path / "logs").iterdir()
    assert run.name.endswith("_named_more")
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    config = yaml.safe_load((run / "configs" / "config.yaml").read_text())
    assert config["model"]["base_learning_rate"] == pytest.approx(8e-3)  # two batches of four
    assert config["seed"] == 7 and config["model"]["params"]["embed_dim"] == 6
    assert config["model"]["params"]["grad_checkpointing"] is True
    assert config["lightning"]["trainer"]["precision"] == "bf16-mixed"
    assert states(run)["state_dict"]["ema.updates"] == 2  # four batches
    tokenizer = load_tokenizer(run / "checkpoints" / "last.ckpt")
    assert float(tokenizer.token_scale) != 1  # measured on training images

    # the run's own config has the rate and the seed that it used
    again = ("-r", run, "--scale_lr", "--device", "cpu", "lightning.trainer.max_epochs=3")
    assert call("train_tokenizer", *again).code == 0
    assert yaml.safe_load((run / "configs" / "config.yaml").read_text())["seed"] == 7
    assert max(logged(run)["train/lr"]) == pytest.approx(8e-3)


def test_two_processes_train_as_one_with_the_whole_batch(together, project):
    """With the posterior's noise, adversary and adaptive weight."""
    (two,) = (together / "logs").iterdir()
    alone, both = logged(project.run), logged(two)
    assert alone.keys() == both.keys()
    assert both["train/d_weight"][-1] != pytest.approx(both["train/d_weight"][0], rel=1e-3)
    for name in alone:
        assert both[name] == pytest.approx(alone[name], rel=2e-3, abs=1e-5), name
    assert alone["train/rec"][-1] != pytest.approx(alone["train/rec"][0], rel=2e-2)
    scales = [states(run)["state_dict"]["tokenizer.token_scale"] for run in (project.run, two)]
    assert scales[1].item() == pytest.approx(scales[0].item(), rel=2e-3)


def test_a_signal_leaves_a_checkpoint_to_go_on_from(project, start_in_background, call, tmp_path):
    """SIGTERM ends a run with status 0, and -r goes on with it to the same weights.

    The signal goes to the loader's worker too, as that of a cluster's scheduler does.
    """
    given = ("-b", project.tokenizer_yaml, "-l", tmp_path, "--device", "cpu", "--no-test")
    epochs = "lightning.trainer.max_epochs=30"
    started = start_in_background("train_tokenizer", *given, epochs, "data.params.num_workers=1")
    started.wait_for(lambda: list(tmp_path.glob("*/images/*.png")))  # the first epoch is over
    started.signal(signal.SIGUSR1)
    started.wait_for(lambda: "checkpoint after" in started.output.read_text())
    started.signal(signal.SIGTERM)
    assert started.process.wait(120) == 0, started.output.read_text()
    (run,) = tmp_path.iterdir()
    assert f"left on SIGTERM; `-r {run}` goes on" in started.output.read_text()
    updates = int(states(run)["state_dict"]["ema.updates"])
    assert 4 <= updates < 120
    epochs = updates // 4 + 1
    done = call("train_tokenizer", "-r", run, "--device", "cpu",
                f"lightning.trainer.max_epochs={epochs}")  # fmt: skip
    assert done.code == 0, done.err
    assert call("train_tokenizer", *given, "-n", "whole",
                f"lightning.trainer.max_epochs={epochs}").code == 0  # fmt: skip
    (whole,) = tmp_path.glob("*_whole")
    expected = states(whole)["state_dict"]
    for name, value in states(run)["state_dict"].items():
        assert torch.equal(value, expected[name]), name


def test_the_decoder_is_trained_further_on_the_same_tokens(project, call, tmp_path):
    start = project.run / "checkpoints" / "last.ckpt"
    given = ("-b", project.tokenizer_yaml, "--device", "cpu", "-l", tmp_path)
    overrides = ("model.params.stage2=true", f"model.params.ckpt_path={start}")
    done = call("train_tokenizer", *given, *overrides)
    assert done.code == 0, done.err
    (run,) = tmp_path.iterdir()
    before, after = load_tokenizer(start), load_tokenizer(run / "checkpoints" / "last.ckpt")
    found = after.state_dict()
    for name, value in before.state_dict().items():
        frozen = name.startswith(("encoder.", "to_tokens.", "token_scale"))
        assert torch.equal(found[name], value) is frozen, name
    again = call("train_tokenizer", "-r", run, "--device", "cpu", "lightning.trainer.max_epochs=3")
    assert again.code == 0, again.err
    done = call("train_tokenizer", *given, overrides[0])
    assert done.code == 2 and "ckpt_path: missing; stage2 starts from" in done.err


@pytest.mark.parametrize("machine", [("--gpus", "0,"), ("-ngpu", "1")])
def test_the_published_command_line(project, start, free_port, tmp_path, machine):
    """Word for word, but for the numbers of machines and GPUs, the config and the address."""
    config = yaml.safe_load(project.tokenizer_yaml.read_text())
    config["model"]["target"] = "tokenizer.models.tokenizer.EquivariantTokenizer"
    loss = "tokenizer.modules.losses.contperceptual.LPIPSWithDiscriminator"
    config["model"]["params"]["lossconfig"]["target"] = loss
    config["data"]["target"] = "scripts.train_tokenizer.DataModuleFromConfig"
    config["lightning"]["trainer"]["max_epochs"] = 1
    path = tmp_path / "tokenizer_config.yaml"
    path.write_text(yaml.safe_dump(config))
    torchrun = ("-m", "torch.distributed.run", "--nproc_per_node=1", "--nnodes=1", "--node_rank=0",
                "--master_addr=127.0.0.1", f"--master_port={free_port()}")  # fmt: skip
    flags = ("-t", "True", "-nodes", "1", *machine, "-b", path, "-l", tmp_path / "logs")
    done = start("train_tokenizer", *flags, launcher=torchrun)
    assert done.code == 0, done.err
    (run,) = (tmp_path / "logs").iterdir()
    assert run.name.endswith("_tokenizer_config") and states(run)["epoch"] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("-nodes", 2), "-nodes: found 2, but torchrun started 1 machine(s)"),
        (("-ngpu", 8), "-ngpu: found 8, but torchrun started 1 process(es) a machine"),
        (("--gpus", "0,1"), "--gpus: names 2 GPU(s) for 1 process(es) a machine"),
        (("--gpus", "all"), "--gpus: found 'all', expected numbers such as 0,1"),
    ],
)
def test_flags_that_cannot_be_are_named(project, call, tmp_path, flags, message):
    done = call("train_tokenizer", "-b", project.tokenizer_yaml, "-l", tmp_path, *flags)
    assert done.code == 2 and message in done.err, done.err
    assert list(tmp_path.iterdir()) == []


def test_without_training_nothing_is_written(project, call, tmp_path):
    given = ("-b", project.tokenizer_yaml, "-l", tmp_path, "--device", "cpu")
    done = call("train_tokenizer", "-t", "false", *given)
    assert done.code == 0 and "nothing was trained" in done.out
    assert list(tmp_path.iterdir()) == []
    # pictures that do not fit are found without training too
    done = call("train_tokenizer", "-t", "false", *given, "data.params.validation.params.size=72")
    assert done.code == 2
    assert "data.params.validation: image height: found 72, expected 64 pixels" in done.err


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
        ("lightning.checkpoint_every=x", "checkpoint_every: found 'x', expected int"),
        ("model.params.accumulate=2", "model.params.accumulate: unknown key"),
        ("lightning.trainer.accumulate_grad_batches=-1", "batches: found -1, expected 1 or more"),
        ("lightning.trainer.accumulate_grad_batches=abc", "batches: found 'abc', expected 1"),
        ("lightning.trainer.accumulate_grad_batches=9", "limit_train_batches: found 0, expected"),
        ("lightning.trainer.max_epochs=0", "no update was made; expected lightning.trainer"),
        ("lightning.trainer.fast_dev_run=true", "fast_dev_run: has no effect here"),
        ("lightning.trainer.overfit_batches=2", "overfit_batches: has no effect here"),
        ("lightning.trainer.enable_checkpointing=false", "enable_checkpointing: found False"),
        ("lightning.trainer.precision=64-true", "precision: found '64-true', expected bf16-mixed"),
        ("lightning.trainer.max_epochs=-5", "lightning.trainer: "),
        ("model.params.lossconfig.params.disc_type=gan", "disc_type: found 'gan'"),
        ("model.params.lossconfig.params.disc_factor=2", "disc_factor: found 2"),
        ("model.params.lossconfig.params.perceptual_weight=1", "vgg16-397923af.pth: missing in"),
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
    overrides = (f"{node}.target=common.data.folders.ImageFolder", f"{node}.params=null")
    params = f"{node}.params={{root: {root}, size: 64, train: true}}"
    single = ("lightning.trainer.max_epochs=1", "data.params.validation=null", *more)
    return ("-b", project.tokenizer_yaml, "--device", "cpu", *overrides, params, *single)


def test_unreadable_pictures_are_counted_and_named(project, call, tmp_path):
    root = image_folder(tmp_path / "data", bad=1)
    done = call("train_tokenizer", *folder_flags(project, root), "-l", tmp_path / "logs")
    assert done.code == 0, done.err
    assert "data.params.train: 2 of 10 images could not be read" in done.out
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
