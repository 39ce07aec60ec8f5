"""scripts/train_tokenizer.py: its flags, what a run leaves, signals, and many processes."""

import csv
import json
import re
import shutil
import signal

import pytest
import torch
import yaml
from PIL import Image

from common import checkpoint
from common.distributed import Process
from common.panoramas.dataset import Panoramas
from tokenizer import load_tokenizer
from tokenizer.evaluate import rescale

from ..released import raw_tokenizer


def logged(run):
    """All values of `metrics.csv` by name, a list in the order of steps."""
    found = {}
    with (run / "logs" / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["name"], []).append(float(row["value"]))
    return found


def states(run, name="last"):
    return checkpoint.load(run / "checkpoints" / f"{name}.ckpt")


def test_a_run_leaves_its_folder(project, tmp_path):
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d_tiny", project.run.name)
    names = {p.name for p in project.run.iterdir()}
    assert names == {"checkpoints", "configs", "images", "logs", "results.json"}
    assert any(p.name.startswith("events") for p in (project.run / "logs").iterdir())
    grids = sorted((project.run / "images").iterdir())
    assert [p.name for p in grids] == ["step_00000004.png", "step_00000008.png"]
    with Image.open(grids[0]) as grid:
        assert grid.size == (8 * 66 + 2, 3 * 66 + 2)  # images, reconstructions, differences
    config = yaml.safe_load((project.run / "configs" / "config.yaml").read_text())
    assert config["model"]["params"]["embed_dim"] == 4 and config["seed"] == 0

    values = logged(project.run)
    assert values["train/lr"] == pytest.approx([0, 2.5e-4, 5e-4, 7.5e-4] + [1e-3] * 3 + [5e-4])
    assert len(values["train/rec"]) == 8 and len(values["train/disc"]) == 5  # from step 3 on
    for name in ("val/psnr", "val/ssim", "val/token_scale"):
        assert len(values[name]) == 2, name

    record = json.loads((project.run / "results.json").read_text())
    results = record["results"]
    assert results["updates"] == 8 and results["validation"]["images"] == 9
    assert results["validation"]["psnr"] == pytest.approx(max(values["val/psnr"]), abs=1e-3)
    assert record["settings"]["seed"] == 0 and record["environment"]["torch"] in torch.__version__

    path = project.run / "checkpoints" / "last.ckpt"
    tokenizer, raw = load_tokenizer(path), raw_tokenizer(path)
    assert tokenizer.fingerprint != raw.fingerprint
    expected = float(tokenizer.token_scale)
    process, dataset = Process(0, 0, 1, torch.device("cpu")), Panoramas(length=18, size=64)
    shutil.copy(path, tmp_path)
    scale = float(rescale(tmp_path / path.name, dataset, process, batch_size=4).token_scale)
    assert scale != 1 and expected == float(raw.token_scale) == pytest.approx(scale)


def test_a_checkpoint_of_another_model_is_refused(project, call):
    given = ("--device", "cpu", "lightning.trainer.max_epochs=3")
    done = call("train_tokenizer", "-r", project.run, *given, "model.params.embed_dim=6")
    assert done.code == 2 and "bottleneck.to_tokens.weight" in done.err
    config = yaml.safe_load((project.run / "configs" / "config.yaml").read_text())
    assert config["model"]["params"]["embed_dim"] == 4  # as before


def test_a_checkpoint_of_no_training_is_refused(project, call, tmp_path):
    run = shutil.copytree(project.run, tmp_path / "run")
    content = states(run)
    for name in ("optimizer_states", "updates"):  # as in a file of weights alone
        del content[name]
    checkpoint.save(run / "checkpoints" / "last.ckpt", content)
    done = call("train_tokenizer", "-r", run, "--device", "cpu", "lightning.trainer.max_epochs=3")
    assert done.code == 2 and "has no optimizer_states, updates" in done.err, done.err


def test_flags_that_shape_a_run(project, call, tmp_path):
    more = tmp_path / "more.yaml"
    more.write_text("data: {params: {validation: null}}\nlightning: {trainer: {max_epochs: 1}}")
    flags = ("--scale_lr", "True", "-s", 7, "-n", "named", "-f", "_more", "--device", "cpu")
    where = ("-t", "-l", tmp_path / "logs", "--no-test", "-b", project.tokenizer_yaml, more)
    override = "model.params.embed_dim=6"  # an override may follow the configs
    trainer = "lightning.trainer"
    speed = (f"{trainer}.precision=bf16-mixed", f"{trainer}.accumulate_grad_batches=2")
    done = call("train_tokenizer", *flags, *where, override, *speed)
    assert done.code == 0, done.err
    (run,) = (tmp_path / "logs").iterdir()
    assert run.name.endswith("_named_more")
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    config = yaml.safe_load((run / "configs" / "config.yaml").read_text())
    assert config["seed"] == 7 and config["model"]["params"]["embed_dim"] == 6
    assert config["lightning"]["trainer"]["precision"] == "bf16-mixed"
    assert states(run)["updates"] == 2  # four batches

    # the run's own config has the seed that it used
    again = ("-r", run, "--device", "cpu", "lightning.trainer.max_epochs=3")
    assert call("train_tokenizer", *again).code == 0
    assert yaml.safe_load((run / "configs" / "config.yaml").read_text())["seed"] == 7

    # the last of two overrides wins, wherever it stands; without training nothing is written
    done = call("train_tokenizer", *where, "-t", "False", override, "model.params.embed_dim=8")
    assert done.code == 0 and len(list((tmp_path / "logs").iterdir())) == 1
    done = call("train_tokenizer", override, *where, "-t", "False", "model.params.embed_dim=0")
    assert done.code == 2 and "embed_dim: found 0" in done.err


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


def test_a_signal_leaves_a_checkpoint_to_go_on_from(project, start_in_background, tmp_path):
    """The signal goes to the loader's worker too, as that of a cluster's scheduler does."""
    given = ("-b", project.tokenizer_yaml, "-l", tmp_path, "--device", "cpu")
    epochs = "lightning.trainer.max_epochs=300"
    started = start_in_background("train_tokenizer", *given, epochs, "data.params.num_workers=1")
    started.wait_for(lambda: list(tmp_path.glob("*/images/*.png")))  # the first epoch is over
    started.signal(signal.SIGUSR1)
    started.wait_for(lambda: "checkpoint after" in started.output.read_text())
    started.signal(signal.SIGTERM)
    assert started.process.wait(120) == 128 + signal.SIGTERM, started.output.read_text()
    (run,) = (path.parent for path in tmp_path.glob("*/checkpoints"))
    output = started.output.read_text()
    assert "stopped by SIGTERM" in output and f"-r {run}" in output
    assert "Traceback" not in output and 4 <= states(run)["updates"] < 1200


def test_the_published_command_line(project, call, free_port, monkeypatch, tmp_path):
    """Word for word, but for the numbers of machines and GPUs, and the config."""
    of_torchrun = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
    of_torchrun |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in of_torchrun.items():
        monkeypatch.setenv(name, str(value))
    line = f"-t True -nodes 1 --gpus 0, -b {project.tokenizer_yaml} -l {tmp_path}".split()
    done = call("train_tokenizer", *line, "lightning.trainer.max_epochs=1")
    assert done.code == 0, done.err
    (run,) = tmp_path.iterdir()
    assert states(run)["updates"] == 4


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("-nodes", 2), "-nodes"),
        (("--gpus", "0,1"), "--gpus"),
        (("-n", "../x"), "../x"),
        (("-r", "no_such_run"), "no_such_run"),
        (("model.params.embed_dimm=4",), "embed_dim"),
        (("model.params.lossconfig.params.kl=1",), "lossconfig.params.kl"),
        (("model.params.lossconfig.params.perceptual_weight=1",), "vgg16-397923af.pth"),
        (("data.params.train.params.width=68",), "image width"),
        (("data.params.validation.params.size=72",), "data.params.validation"),
        (("lightning.trainer.accumulate_grad_batches=9",), "accumulate_grad_batches"),
        (("lightning.trainer.max_epochs=0",), "max_epochs"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(project, call, tmp_path, flags, named):
    base = () if flags[0] == "-r" else ("-b", project.tokenizer_yaml)
    done = call("train_tokenizer", *flags, *base, "-l", tmp_path, "--device", "cpu")
    assert done.code == 2 and done.err.startswith("error: ") and named in done.err, done.err
    assert not any(path.suffix == ".ckpt" for path in tmp_path.rglob("*"))
