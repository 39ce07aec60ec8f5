"""The two lists of dependencies are one."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {"pytorch": "torch"}


def split(requirement: str) -> tuple[str, str]:
    name, bound = re.fullmatch(r"([A-Za-z0-9-]+)\s*(\S*)", requirement).groups()
    return CONDA_NAMES.get(name, name), bound


@pytest.fixture
def project():
    tomllib = pytest.importorskip("tomllib", reason="part of Python from 3.11 on")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def declared(project) -> dict[str, str]:
    return dict(map(split, project["dependencies"] + project["optional-dependencies"]["dev"]))


def test_conda_and_pip_agree_on_names_and_bounds(project):
    environment = yaml.safe_load((ROOT / "environment.yaml").read_text(encoding="utf-8"))
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    nested = next(e["pip"] for e in environment["dependencies"] if isinstance(e, dict))
    assert "--editable ." in nested
    conda = dict(split(entry) for entry in plain + [e for e in nested if not e.startswith("-")])
    assert conda.pop("pip") == ""
    assert conda.pop("python") == project["requires-python"]
    assert conda == declared(project)
    assert environment["name"] == project["name"]
