"""The documents quote what was measured, and point at files that exist."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_figures_are_those_of_the_record():
    figures = json.loads((ROOT / "docs/results/quickstart.json").read_text(encoding="utf-8"))[
        "figures"
    ]
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


@pytest.mark.parametrize(
    "name", ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))]
)
def test_links_and_named_files_exist(name):
    text, folder = (ROOT / name).read_text(encoding="utf-8"), (ROOT / name).parent
    linked = re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", text)
    named = re.findall(r"(?:scripts|configs)/[\w/]+\.(?:py|yaml)", text)
    assert linked or named
    assert [path for path in linked if not (folder / path).exists()] == []
    assert [path for path in named if not (ROOT / path).exists()] == []
