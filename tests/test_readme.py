"""The README quotes what was measured, and points at files that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

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


def test_links_and_named_files_exist():
    linked = re.findall(r"\]\((?!http)([^)]+)\)", README)
    named = re.findall(r"(?:scripts|configs)/[\w/]+\.(?:py|yaml)", README)
    assert linked and named
    assert [path for path in (*linked, *named) if not (ROOT / path).exists()] == []
