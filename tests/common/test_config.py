from __future__ import annotations

import importlib
import sys
import types

import pytest
from omegaconf import OmegaConf

from common import config
from common.errors import UserError


class Model:
    """A target with all the kinds of parameters."""

    def __init__(
        self,
        width: int,
        rate: float = 0.1,
        multipliers: tuple[int, ...] = (1, 2),
        name: str | None = None,
        frozen: bool = False,
        inner: dict | None = None,
    ) -> None:
        self.width, self.rate, self.multipliers = width, rate, multipliers
        self.name, self.frozen, self.inner = name, frozen, inner


class OpenEnded:
    def __init__(self, width: int, **others):
        self.width, self.others = width, others


def make(height: int = 3) -> int:
    return height


@pytest.fixture(autouse=True)
def targets(monkeypatch):
    """The targets of these tests, importable under a fixed name."""
    module = types.ModuleType("config_targets")
    module.Model, module.OpenEnded, module.make, module.number = Model, OpenEnded, make, 4
    monkeypatch.setitem(sys.modules, "config_targets", module)


def node(target="config_targets.Model", **params):
    return {"target": target, "params": params}


def message(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    return str(error.value)


# --- load and save


def write(path, text):
    path.write_text(text)
    return path


def test_later_files_and_overrides_win(tmp_path):
    one = write(tmp_path / "1.yaml", "a: {x: 1, y: 2}\nlist: [1, 2, 3]\n")
    two = write(tmp_path / "2.yaml", "a: {y: 3}\nb: ${a.x}\n")
    loaded = config.load([one, two], ["a.x=1e-4", "list.1=9", "new.key=[1, 2]", "a.z=null"])
    assert OmegaConf.to_container(loaded, resolve=True) == {
        "a": {"x": 1e-4, "y": 3, "z": None},
        "b": 1e-4,
        "list": [1, 9, 3],
        "new": {"key": [1, 2]},
    }


def test_one_path_is_enough_and_an_equals_sign_may_follow(tmp_path):
    path = write(tmp_path / "1.yaml", "a: 1\n")
    assert config.load(str(path), ["a=x=y"]).a == "x=y"
    assert config.load(path).a == 1


def test_a_missing_file_is_named(tmp_path):
    path = tmp_path / "absent.yaml"
    assert message(config.load, path).startswith(f"{path}: cannot read")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [1, 2", "not a YAML file"),
        ("a: 1\na: 2", "not a YAML file"),
        ("- 1\n- 2", "expected a mapping"),
        ("a: ${", "not a YAML file"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, reason):
    path = write(tmp_path / "bad.yaml", text)
    found = message(config.load, path)
    assert found.startswith(f"{path}: ") and reason in found


@pytest.mark.parametrize("override", ["a", "=3", "a=[1", "list.7=1", "list.x=1"])
def test_a_bad_override_is_named(tmp_path, override):
    path = write(tmp_path / "1.yaml", "a: 1\nlist: [1]\n")
    found = message(config.load, path, [override])
    assert found.startswith(f"override {override!r}: ") and "expected dotted.key=value" in found


def test_save_resolves_and_loads_again(tmp_path):
    path = tmp_path / "run" / "config.yaml"
    config.save(OmegaConf.create({"a": 1, "b": {"c": "${a}"}}), path)
    assert "${" not in path.read_text()
    assert config.load(path) == {"a": 1, "b": {"c": 1}}


def test_save_names_a_reference_to_nothing(tmp_path):
    found = message(config.save, OmegaConf.create({"a": "${nowhere}"}), tmp_path / "x.yaml")
    assert "nowhere" in found


# --- check_keys


def test_known_keys_pass():
    config.check_keys({"lr": 1}, ["lr", "epochs"], "training")


def test_an_unknown_key_is_named_with_its_neighbour():
    assert message(config.check_keys, {"epoch": 1}, ["lr", "epochs"], "training") == (
        "training.epoch: unknown key; did you mean 'epochs'?"
    )
    assert message(config.check_keys, {"q": 1}, ["lr", "epochs"], "") == (
        "q: unknown key; expected some of lr, epochs"
    )
    assert message(config.check_keys, {"q": 1}, [], "x") == "x.q: unknown key; expected no keys"


def test_check_keys_wants_a_mapping():
    assert message(config.check_keys, [1], ["lr"], "training") == (
        "training: found [1], expected a mapping with some of lr"
    )


# --- instantiate


def test_an_object_is_built_from_its_node():
    whole = OmegaConf.create(
        {"w": 8, "model": node(width="${w}", rate="1e-4", multipliers=[1, 2, 4], inner=node(x=1))}
    )
    model = config.instantiate(whole.model, "model")
    assert (model.width, model.rate, model.multipliers) == (8, 1e-4, (1, 2, 4))
    assert type(model.inner) is dict and type(model.inner["params"]) is dict
    assert model.name is None


def test_functions_empty_params_and_open_ended_constructors():
    assert config.instantiate({"target": "config_targets.make"}, "x") == 3
    assert config.instantiate({"target": "config_targets.make", "params": None}, "x") == 3
    built = config.instantiate(node("config_targets.OpenEnded", width=1, anything=2), "x")
    assert (built.width, built.others) == (1, {"anything": 2})


def test_injected_arguments_reach_the_constructor():
    built = config.instantiate(node(), "model", width=5, inner=object)
    assert built.width == 5 and built.inner is object


def test_released_names_are_ours(monkeypatch):
    monkeypatch.setitem(config.ALIASES, "released.package.Name", "config_targets.Model")
    assert isinstance(config.instantiate(node("released.package.Name", width=1), "m"), Model)


@pytest.mark.parametrize("target", config.ALIASES.values())
def test_released_names_lead_to_classes_that_exist(target):
    module, _, name = target.rpartition(".")
    assert isinstance(getattr(importlib.import_module(module), name), type)


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (node(widht=1), "model.params.widht: unknown key; did you mean 'width'?"),
        (node(), "model.params.width: missing; expected int"),
        (node(width="wide"), "model.params.width: found 'wide' (str), expected int"),
        (node(width=True), "model.params.width: found True (bool), expected int"),
        (node(width=1, rate=[1]), "model.params.rate: found [1] (list), expected float"),
        (node(width=1, name=2), "model.params.name: found 2 (int), expected str | None"),
        (
            node(width=1, multipliers=[1, "x"]),
            "model.params.multipliers: found [1, 'x'] (list), expected tuple[int, ...]",
        ),
        (node("config_targets.OpenEnded"), "model.params.width: missing; expected int"),
        (
            {"target": "config_targets.OpenEnded", "params": [1]},
            "model.params: found [1], expected a mapping with some of width",
        ),
        (
            {"target": "config_targets.Model", "parms": {}},
            "model.parms: unknown key; did you mean 'params'?",
        ),
        ({"params": {}}, "model.target: found None, expected the dotted name of a class"),
        (3, "model: found 3, expected a mapping with some of target, params"),
        *(
            (
                node(name),
                f"model.target: found {name!r}, expected the dotted name of a class that exists",
            )
            for name in (
                "config_targets.Absent",
                "config_targets.number",
                "no_such_package.models.Name",
                "common.no_such_module.Name",
                "Model",
            )
        ),
    ],
)
def test_messages_name_the_key_what_was_found_and_what_is_expected(broken, expected):
    assert message(config.instantiate, broken, "model") == expected


def test_injected_keys_are_not_for_the_file():
    found = message(config.instantiate, node(width=1), "model", width=2)
    assert found.startswith("model.params.width: ")
    found = message(config.instantiate, node(width=1), "model", process=2)
    assert found == "model.params: Model takes no 'process', which it is given"


def test_an_unset_value_is_named():
    found = message(config.instantiate, OmegaConf.create(node(width="???")), "model")
    assert "width" in found and found.startswith("model")


def test_a_missing_dependency_of_a_target_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import surely_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="surely_not_installed"):
        config.instantiate(node("needs_more.Name"), "model")


def test_annotations_for_type_checkers_only_are_skipped():
    def build(thing: Unknown, width: int = 1):  # noqa: F821
        return thing, width

    sys.modules["config_targets"].build = build
    assert config.instantiate(node("config_targets.build", thing=1), "m") == (1, 1)
