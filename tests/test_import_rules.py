"""common <- tokenizer, generator <- scripts: the only directions in which code is imported.

What is not ours is declared in pyproject.toml.
"""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"common", "tokenizer", "generator", "scripts", "tests"}
ALLOWED = {
    "common": {"common"},
    "tokenizer": {"common", "tokenizer"},
    "generator": {"common", "generator"},
    "scripts": {"common", "tokenizer", "generator"},
}

# Packages that are installed by another name, or along with another one.
INSTALLED_BY = {"PIL": "pillow", "yaml": "pyyaml", "lightning_fabric": "pytorch-lightning"}


def imported(source: str) -> set[str]:
    """The top-level packages that a source file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("relative" if node.level else node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_only_what_lies_below_them(package):
    broken = {
        str(path.relative_to(ROOT)): sorted(wrong)
        for path in (ROOT / package).rglob("*.py")
        if (wrong := imported(path.read_text()) & (OURS | {"relative"}) - ALLOWED[package])
    }
    assert broken == {}


def test_everything_that_is_imported_is_declared():
    found = re.findall(r'"([a-z_-]+)>=', (ROOT / "pyproject.toml").read_text())
    declared = {name.replace("_", "-") for name in found}
    undeclared = {
        f"{path.relative_to(ROOT)}: {name}"
        for package in ALLOWED
        for path in (ROOT / package).rglob("*.py")
        for name in imported(path.read_text()) - OURS - set(sys.stdlib_module_names)
        if INSTALLED_BY.get(name, name.replace("_", "-")) not in declared
    }
    assert undeclared == set()
