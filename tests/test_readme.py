"""The documents quote what was measured, and point at files that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_figures_are_those_of_the_record():
    figures = json.loads((ROOT / "docs/results/quickstart.json").read_text())["figures"]
    quoted = [
        f"| {figures['psnr']['value']:.1f} dB |",
        f"| {figures['seconds']['value'] / 60:.1f} min |",
        f"(it names {figures['classifier_accuracy']['value']:.1%} of",
        *(
            f"| {figures[name]['right']} of {figures[name]['count']} |"
            for name in ("agreement", "far_agreement")
        ),
    ]
    assert [text for text in quoted if text not in README] == []


def test_figures_of_stage_one_are_those_of_the_record():
    text = (ROOT / "docs/tokenizer.md").read_text()
    results = json.loads((ROOT / "docs/results/scenes96.json").read_text())["results"]
    found = results["validation"]
    quoted = [
        f"| {found['images']:,} photographs never seen",
        f"| {found['psnr']:.2f} dB |",
        f"| {found['ssim']:.3f} |",
        f"after {results['updates']:,} updates",
        f"in {results['seconds'] / 60:.0f} minutes",
    ]
    assert [part for part in quoted if part not in text] == []


@pytest.mark.parametrize("name", ["README.md", "docs/tokenizer.md"])
def test_links_and_named_files_exist(name):
    text, folder = (ROOT / name).read_text(), (ROOT / name).parent
    linked = re.findall(r"\]\((?!http)([^)]+)\)", text)
    named = re.findall(r"(?:scripts|configs)/[\w/]+\.(?:py|yaml)", text)
    assert linked and named
    assert [path for path in linked if not (folder / path).exists()] == []
    assert [path for path in named if not (ROOT / path).exists()] == []
