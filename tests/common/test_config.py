from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
import yaml
from omegaconf import OmegaConf
from torch import nn

from common import cli, config
from common.config import instantiate, limits, load, setting, structured
from common.errors import UserError
from common.schedule import WarmupDecay


@dataclass(frozen=True)
class Inner:
    sizes: tuple[int, ...]
    mode: Literal["res", "mid"] = "res"


@dataclass(frozen=True)
class Training:
    epochs: int = setting(help="passes over the data", min=1)
    lr: float = setting(1e-4, "learning rate", above=0, group="updates")
    decay: float | None = setting(None, "of the weights", min=0, below=1)
    kind: str = setting("constant", "of schedule", choices=("constant", "cosine"))
    compile: bool = setting(False, "compile the layers", flag="fast")
    gpus: list[int] | None = setting(None, "numbers", min=0)
    inner: Inner | None = None


def test_files_and_overrides_are_merged(tmp_path):
    (tmp_path / "a.yaml").write_text("model: {width: 8, lr: 1e-4, more: '${model.width}'}")
    (tmp_path / "b.yaml").write_text("model: {width: 16}")
    found = load([tmp_path / "a.yaml", tmp_path / "b.yaml"], ["model.lr=3", "new.key=[1, 2]"])
    assert found == {"model": {"width": 16, "lr": 3, "more": 16}, "new": {"key": [1, 2]}}
    config.save(found, tmp_path / "c.yaml")
    assert yaml.safe_load((tmp_path / "c.yaml").read_text())["model"]["more"] == 16


@pytest.mark.parametrize(
    "text", ["", "a: [1, 2", "a: ${nowhere}", "a: ???", "- 1", "a: ${a}", "\0"]
)
def test_a_file_that_is_not_whole_is_named(tmp_path, text):
    (tmp_path / "half.yaml").write_text(text)
    for path in (tmp_path / "half.yaml", tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(UserError, match=str(path)):
            load(path)


def test_values_take_the_types_of_their_fields():
    values = OmegaConf.create({"epochs": "3", "lr": 1, "inner": {"sizes": [1, 2]}, "decay": "1e-2"})
    found = structured(Training, values, "training")
    assert found == Training(3, 1.0, 0.01, inner=Inner((1, 2)))
    assert type(found.lr) is float and structured(Training, found) is found


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({}, "epochs"),
        ({"epoch": 3}, "epoch: unknown key; did you mean 'epochs'"),
        ({"epochs": True}, "epochs"),
        ({"epochs": 0}, "epochs"),
        ({"epochs": 1, "lr": "nan"}, "lr"),
        ({"epochs": 1, "lr": None}, "lr"),
        ({"epochs": 1, "decay": 1.0}, "decay"),
        ({"epochs": 1, "kind": "linear"}, "kind"),
        ({"epochs": 1, "gpus": [0, -1]}, "gpus"),
        ({"epochs": 1, "inner": {"sizes": ["x"]}}, "inner.sizes"),
        ({"epochs": 1, "inner": {"sizes": [1], "mode": "base"}}, "inner.mode"),
        ([1], "training"),
    ],
)
def test_a_wrong_value_is_named_by_its_key(values, key):
    with pytest.raises(UserError) as error:
        structured(Training, values, "training")
    assert key in str(error.value) and str(error.value).startswith("training")


class Network(nn.Module):
    def __init__(self, width: Annotated[int, limits(min=1)], seed: int = 0, **more: object) -> None:
        super().__init__()
        self.width, self.seed, self.more = width, seed, more


@pytest.fixture
def ours_only(monkeypatch):
    monkeypatch.setattr(config, "_foreign_allowed", False)


def test_a_class_is_built_from_checked_parameters():
    target = f"{__name__}.Network"
    node = {"target": target, "params": {"width": "4", "other": 1}}
    found = instantiate(node, "model", seed=3)
    assert (found.width, found.seed, found.more) == (4, 3, {"other": 1})
    for params in ({}, {"width": 0}, {"width": 1, "seed": 2}):
        with pytest.raises(UserError, match=r"model\.params\."):
            instantiate({"target": target, "params": params}, "model", seed=3)


def test_released_names_are_ours(ours_only):
    node = {"target": "tokenizer.lr_scheduler.LambdaWarmUpDecayScheduler"}
    node["params"] = {"warm_up_steps": 10, "interval": 5, "decay": 0.5}
    schedule = instantiate(node, "scheduler_config")
    assert schedule == WarmupDecay(10, interval=5, decay=0.5)
    rates = [schedule.multiplier(n) for n in (0, 5, 10, 14, 15, 20)]
    assert rates == [0, 0.5, 1, 1, 0.5, 0.25]
    assert all(config.find(name, "target") for name in config.RELEASED)


@pytest.mark.parametrize(
    "target",
    ["os.system", "common.io.os.system", "common.signals.PreemptionHandler", "common.no.Name", ""],
)
def test_targets_are_parts_of_ours(ours_only, target):
    with pytest.raises(UserError, match=r"model\.target"):
        instantiate({"target": target}, "model")


def parse(*words):
    parser = cli.new_parser("A program.")
    parser.add_argument("--config")
    cli.add_flags(parser, Training, without=["inner"])
    cli.accept_ignored(parser, ["pin_mem", "dist_url="])
    return cli.parse(parser, words)


def test_flags_go_over_the_file_and_key_value_is_a_flag(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("{epochs: 3, lr: 1e-3, fast: true, gpus: [0, 1]}")
    file = f"--config={path}"
    assert cli.read(Training, parse(file)) == Training(3, 1e-3, compile=True, gpus=[0, 1])
    found = cli.read(Training, parse(file, "--epochs", "4", "--no-fast", "kind=cosine"))
    assert found == Training(4, 1e-3, kind="cosine", gpus=[0, 1])
    assert cli.given(Training, parse("--lr", "2")) == {"lr": 2.0}


def test_a_wrong_flag_is_named(tmp_path):
    with pytest.raises(UserError, match="--epochs"):
        cli.read(Training, parse("--epochs", "0x"))
    for key in ("epoch", "allow_foreign_targets"):  # which a file may not allow itself
        (tmp_path / "a.yaml").write_text(f"{key}: true")
        with pytest.raises(UserError, match=f"{key}: unknown key"):
            parse("--config", str(tmp_path / "a.yaml"))


def test_released_flags_without_effect_are_told(capsys):
    parse("--pin_mem", "--dist_url", "env://", "--epochs", "3")
    assert capsys.readouterr().err == "ignored, without effect here: --pin_mem --dist_url\n"
