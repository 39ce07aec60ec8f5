"""What a quickstart has measured, as metrics.json and as a page."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common import plots as curves
from common.panoramas.dataset import CLASS_NAMES
from common.records import write_json
from common.report import Headline, Picture, Table, write_report

AIMS = {"psnr": 24.0, "agreement": 0.85, "far_agreement": 0.80, "seconds": 900.0}


def summarise(
    steps: dict[str, dict[str, Any]],
    runs: list[dict[str, Any]],
    settings: dict[str, Any],
    configs: dict[str, Any],
) -> dict[str, Any]:
    """Everything that was measured, with its conditions: the content of metrics.json.

    Args:
        steps: `seconds`, `attempts` and `figures` of each.
        runs: the machine, versions and date of each start.
        settings, configs: what all of it was made with.
    """
    figures = {name: step["figures"] for name, step in steps.items()}
    fidelity, judge, drawn = (figures[k] for k in ("reconstructions", "classifier", "agreement"))
    seconds = {name: step["seconds"] for name, step in steps.items()}
    measured = {
        "psnr": {
            "value": round(fidelity["psnr"], 3),
            "unit": "dB, mean over images",
            "images": fidelity["images"],
            "data_seed": fidelity["data_seed"],
            "by_class": _by_class(round(v, 3) for v in fidelity["by_class"]),
        },
        "agreement": _agreement(**drawn["samples"]),
        "far_agreement": _agreement(**drawn["far_crops"]),
        "classifier_accuracy": {
            **_agreement(**judge),
            "data_seed": fidelity["data_seed"],
            "trained_on_data_seed": judge["data_seed"],
        },
        "seconds": {"value": round(sum(seconds.values()), 1), "unit": "s, all steps"},
    }
    for name, aim in AIMS.items():
        value = measured[name]["value"]
        met = value <= aim if name == "seconds" else value >= aim
        measured[name] |= {"aim": aim, "met": met}
    return {
        "figures": measured,
        "seconds": seconds,
        "attempts": {name: step["attempts"] for name, step in steps.items()},
        "resumed": len(runs) > 1,
        "runs": runs,
        "settings": settings,
        "configs": configs,
        "commands": [f["command"] for f in figures.values() if "command" in f],
    }


def headlines(metrics: dict[str, Any]) -> list[Headline]:
    """The four figures that have an aim."""
    figures, machine = metrics["figures"], metrics["runs"][-1]
    fidelity, near, far, judge, seconds = (
        figures[k] for k in ("psnr", "agreement", "far_agreement", "classifier_accuracy", "seconds")
    )
    device = machine["gpus"][0] if machine["gpus"] else machine["processor"]
    return [
        Headline(
            "Reconstruction",
            f"{fidelity['value']:.2f} dB",
            f"Mean PSNR of {fidelity['images']} images never seen in training.",
            f"at least {fidelity['aim']:g} dB",
            fidelity["met"],
        ),
        Headline(
            "Class agreement",
            f"{near['value']:.1%}",
            f"{near['right']} of {near['count']} generated images are taken for their class by a "
            f"classifier that names {judge['value']:.1%} of {judge['count']} unseen images of the "
            "data set.",
            f"at least {near['aim']:.0%}",
            near["met"],
        ),
        Headline(
            "Far end of the panoramas",
            f"{far['value']:.1%}",
            f"The same for {far['right']} of {far['count']} crops of {far['crop_size']} pixels, "
            f"cut from {far['strips']} strips at pixel {far['first_pixel']} and beyond.",
            f"at least {far['aim']:.0%}",
            far["met"],
        ),
        Headline(
            "Time",
            f"{seconds['value'] / 60:.1f} min",
            f"All steps together, on {machine['cores']} cores of {device}.",
            f"at most {seconds['aim'] / 60:.0f} min",
            seconds["met"],
        ),
    ]


def sections(folder: Path, metrics: dict[str, Any]) -> list[Picture | Table]:
    """Pictures, which are in `folder`, and tables of the page."""
    figures, machine = metrics["figures"], metrics["runs"][-1]
    measured = ("psnr", "agreement", "far_agreement", "classifier_accuracy")
    fidelity, *counts = (figures[k]["by_class"] for k in measured)
    return [
        Picture(
            folder / "samples.png",
            "Generated images",
            "Each row is one class, each image drawn column by column from left to right, with "
            f"classifier-free guidance up to {metrics['configs']['samples'].get('cfg', 1):g}.",
            CLASS_NAMES,
        ),
        Picture(
            folder / "panorama.png",
            "Generated panoramas",
            f"One strip a class, {figures['far_agreement']['strip_width']} pixels wide: the "
            "generator, which has only seen squares in training, goes on drawing columns.",
            CLASS_NAMES,
        ),
        Picture(
            folder / "token_meaning.gif",
            "What a token means",
            "Random tokens are replaced one by one, from left to right, by those of an image never "
            "seen in training: what changes between two frames is what one token stands for.",
        ),
        Picture(
            folder / "reconstructions.png",
            "Reconstructions",
            "Images never seen in training, each row of originals above what the tokenizer makes "
            "of their tokens.",
        ),
        Picture(
            folder / "curves.png",
            "Loss curves",
            "Training of both stages, thin lines single values, thick ones running means; in the "
            "last plot, the closer the lines, the more alike the tasks of predicting a column.",
            zoom=0,
            chart=True,
        ),
        Table(
            "By class",
            "Images that the classifier names as intended, of all images of the class.",
            ("Class", "PSNR of reconstructions", "Generated", "Far crops", "Data set, unseen"),
            [
                (
                    k,
                    f"{fidelity[k]:.2f} dB",
                    *(f"{c[k]['right']} / {c[k]['count']}" for c in counts),
                )
                for k in CLASS_NAMES
            ],
        ),
        Table(
            "Seconds",
            "Time of each step, its attempts added up."
            + (" This run was resumed." if metrics["resumed"] else ""),
            ("Step", "Seconds", "Attempts"),
            [(k, f"{v:.1f}", str(metrics["attempts"][k])) for k, v in metrics["seconds"].items()],
        ),
        Table(
            "Commands",
            "The steps that are scripts of their own, as they were called.",
            ("", "Command"),
            [(str(i), command) for i, command in enumerate(metrics["commands"], 1)],
            words=True,
        ),
        Table(
            "Conditions",
            "What the numbers of this page were measured with; metrics.json has the configs too.",
            ("", "Value"),
            [
                (k, ", ".join(v) if isinstance(v, list) else str(v))
                for k, v in (metrics["settings"] | machine).items()
            ],
            words=True,
        ),
    ]


def save_loss_curves(folder: Path) -> None:
    """Draw `curves.png` from the logs of both stages in the folder of a run."""
    files = sorted(
        folder.glob("logs/*_tokenizer/csv/version_*/metrics.csv"),
        key=lambda p: (p.parts[-4], int(p.parent.name.removeprefix("version_"))),
    )
    log = folder / "generator" / "metrics.csv"
    first, second = curves.read_wide(files), curves.read_long(log)
    loss = curves.pick(first, "train/rec", files[0])
    fidelity = curves.pick(first, "val/psnr", files[0])
    flow = curves.pick(second, "train/loss", log)
    column = "columns/loss_"
    by_column = {k.removeprefix(column): v for k, v in second.items() if k.startswith(column)}
    panels = [
        curves.Panel("Tokenizer: reconstruction loss", {"rec": loss}, log=True),
        curves.Panel("Tokenizer: PSNR in validation [dB]", {"psnr": fidelity}),
        curves.Panel("Generator: flow loss", {"loss": flow}),
        curves.Panel("Generator: flow loss of each column", by_column),
    ]
    curves.save_curves(folder / "curves.png", panels)


def publish(folder: Path, metrics: dict[str, Any]) -> None:
    """Write `metrics.json` and `report.html` beside their pictures, and print the headlines."""
    write_json(folder / "metrics.json", metrics)
    shown = headlines(metrics)
    lead = "Both stages trained on built-in panoramas, measured, and asked to draw."
    if metrics["settings"]["tiny"]:
        lead += " This was a run with --tiny: hardly trained, its figures say nothing."
    write_report(folder / "report.html", "Quickstart", lead, shown, sections(folder, metrics))
    print()
    for headline in shown:
        verdict = "met" if headline.met else "missed"
        print(f"{headline.name}: {headline.value} (aim: {headline.aim}, {verdict})")
        print(f"    {headline.note}")
    print(f"report: {folder / 'report.html'}")


def _agreement(right: list[int], count: list[int], **conditions: Any) -> dict[str, Any]:
    """Right answers of a classifier, by class and in all."""
    return {
        "value": round(sum(right) / sum(count), 4),
        "unit": "share of images",
        "right": sum(right),
        "count": sum(count),
        "by_class": _by_class({"right": r, "count": n} for r, n in zip(right, count, strict=True)),
        **conditions,
    }


def _by_class(values: Iterable[Any]) -> dict[str, Any]:
    return dict(zip(CLASS_NAMES, values, strict=True))
