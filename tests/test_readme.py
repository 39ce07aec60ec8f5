"""The documents quote what was measured, and point at files that exist."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUOTED_SOLVERS = [
    *(("euler", steps, 1.0) for steps in (25, 100)),
    ("heun", 12, 1.5),
    *(("ab2", steps, 1.5) for steps in (16, 20, 25)),
]


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


def test_figures_of_sampling_are_those_of_the_records():
    text = (ROOT / "docs/sampling.md").read_text(encoding="utf-8")

    def record(name):
        return json.loads((ROOT / f"docs/results/{name}.json").read_text(encoding="utf-8"))

    half = {row["batch"]: row for row in record("sampling_cpu_bf16")["rows"]}
    quoted = []
    for row in record("sampling_cpu")["rows"]:
        engine, plain = row["engine"]["mean"], row["plain"]["mean"]
        quoted.append(
            f"| batch {row['batch']} | {engine:.2f} | {plain:.2f} | {plain / engine:.1f} × "
            f"| {row['of_bound']['mean']:.0%} | {half[row['batch']]['engine']['mean']:.2f} |"
        )
    for row in record("solvers")["solvers"]:
        if (row["method"], row["steps"], row["power"]) in QUOTED_SOLVERS:
            name = f"| `{row['method']}` | {row['steps']} | {row['evaluations']} |"
            quoted.append(f"{name} {row['difference']:.4f} |")
    assert len(quoted) == 2 + len(QUOTED_SOLVERS)
    short, long = (row["engine"] for row in record("sampling_long_cpu")["rows"])
    ratios = {kind: long[kind] / short[kind] for kind in ("median", "mean")}
    quoted.append(f"{ratios['median']:.2f} times as long as one of 32 (median; mean")
    assert [part for part in quoted if part not in text.replace(" %", "%")] == []


def test_figures_of_training_are_those_of_the_records():
    text = (ROOT / "docs/generator_training.md").read_text(encoding="utf-8").replace(" %", "%")
    for size in ("tiny_model", "small_model"):
        cells = [f"`{size}`"]
        for name in ("training_cpu", "training_cpu_bf16"):
            found = json.loads((ROOT / f"docs/results/{name}.json").read_text(encoding="utf-8"))[
                size
            ]["cached"]
            cells += [f"{found['images_per_s']:.1f}", f"{found['share_of_peak']:.0%}"]
        assert f"| {' | '.join(cells)} |" in text


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
