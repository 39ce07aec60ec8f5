"""Figures of generated or reconstructed images, with everything that they depend on.

All processes take these steps together; the first one gets the record:

    judge = open_judge("statistics.npz", weights_dir, measures, process)
    record = judge.measure(files)
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import distributed
from common.distributed import Process
from common.errors import UserError
from common.metrics.extraction import Features, Loading, extract, identity, oddities
from common.metrics.features import EXTRACTORS, Extractor, load_extractor
from common.metrics.fid import (
    LEAST,
    METRICS,
    NEIGHBOURS,
    count_splits,
    figures,
    kid_subsets,
    named,
)
from common.metrics.references import Reference, load_reference
from common.metrics.sources import Images, of_files

ALL = "all"  # of --metrics


@dataclass(frozen=True)
class Measures:
    """What to measure.

    Args:
        metrics: some of `METRICS`; None for all that extractor and reference allow.
        extractor: name of the network whose features are compared.
        splits: parts for means and deviations; None for 10, but fewer for few images.
        loading: how images are read.
    """

    metrics: tuple[str, ...] | None = None
    extractor: str = "inception"
    splits: int | None = None
    loading: Loading = field(default_factory=Loading)


def add_metric_flags(parser: argparse.ArgumentParser, reference: bool = True) -> None:
    """Flags of `Measures`.

    With `reference`, for programs that may measure or not, also the one that names what to compare
    with; `--metrics` alone then asks for all.
    """
    add = parser.add_argument_group("metrics").add_argument
    if reference:
        add(
            "--reference",
            "--fid_stats",
            metavar="SOURCE",
            help="what to compare with: a folder of images, statistics (.npz), or a YAML file "
            "whose data.params.validation it is",
        )
    listed = ",".join(METRICS)
    asked = {"nargs": "?", "const": ALL} if reference else {}
    add(
        "--metrics", metavar=listed, help="some of these, or all that the reference allows", **asked
    )
    add("--extractor", default="inception", help=f"{EXTRACTORS} (default inception)")
    add("--weights_dir", help="folder of pretrained networks (default $EQUIVARIANT_WEIGHTS)")
    add("--splits", type=int, help="parts for means and deviations (default 10; fewer for few)")
    add("--metric_bsz", type=int, default=64, help="images in a batch of metrics (default 64)")
    add("--metric_workers", type=int, default=0, help="processes that read them (default 0)")


def measures_of(flags: argparse.Namespace) -> Measures:
    """What the flags of `add_metric_flags` ask for.

    Raises:
        UserError: a metric that there is not, or a number that is too small.
    """
    for name, least in {"metric_bsz": 1, "metric_workers": 0}.items():
        if getattr(flags, name) < least:
            raise UserError(f"--{name}: found {getattr(flags, name)}, expected at least {least}")
    listed = None if flags.metrics in (None, ALL) else flags.metrics
    metrics = None if listed is None else tuple(dict.fromkeys(listed.split(",")))
    for metric in metrics or ():
        if metric not in METRICS:
            raise UserError(f"--metrics: found {metric!r}, expected some of {','.join(METRICS)}")
    loading = Loading(flags.metric_bsz, flags.metric_workers)
    return Measures(metrics, flags.extractor or "inception", flags.splits, loading)


def choose(
    measures: Measures, extractor: Extractor, statistics: bool, features: bool
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The metrics to take, and those left out by default, each with the reason.

    Args:
        statistics, features: whether the reference has them.

    Raises:
        UserError: one that was asked for cannot be measured.
    """
    left: dict[str, str] = {}
    if not statistics:
        left["fid"] = "there is no reference"
    if not features:
        reason = "the reference has statistics only, not images" if statistics else left["fid"]
        left |= {"kid": reason, "prc": reason}
    if not extractor.classes:
        left["is"] = f"{extractor.name} names no classes"
    for metric in measures.metrics or ():
        if metric in left:
            raise UserError(f"--metrics: found {metric}, but {left[metric]}")
    if measures.metrics is not None:
        return measures.metrics, {}
    return tuple(m for m in METRICS if m not in left), left


def check_counts(
    metrics: Sequence[str], measures: Measures, name: str, images: int, reference: Reference | None
) -> None:
    """Refuse sets with fewer images than a metric needs.

    Raises:
        UserError: naming the set.
    """
    sets = {name: images}
    if reference is not None and reference.features is not None:
        sets[reference.name] = len(reference.features)
    for metric in metrics:
        for where, count in sets.items():
            if count < LEAST[metric]:
                raise UserError(
                    f"{where}: found {count} image(s), expected at least {LEAST[metric]} for "
                    f"{metric} (--metrics chooses others)"
                )
    count_splits(measures.splits, images)


def check_together(
    measures: Measures,
    extractor: Extractor,
    reference: Reference | None,
    source: str,
    images: int,
    process: Process,
) -> None:
    """Refuse what cannot be measured, before the work; all processes call this together."""
    mistake = None
    if process.is_main:  # which alone has the reference
        there = reference.features if reference else None
        try:
            metrics, _ = choose(measures, extractor, reference is not None, there is not None)
            check_counts(metrics, measures, source, images, reference)
        except UserError as error:
            mistake = error
    mistake = distributed.agreed(mistake)
    if mistake is not None:
        raise mistake


def measure(
    features: Features,
    reference: Reference | None,
    extractor: Extractor,
    measures: Measures,
    source: str = "images",
) -> dict[str, Any]:
    """Figures of images whose features are known, and what they depend on.

    Args:
        features: of the images, on the first process.
        reference: what to compare with; without it there is the Inception Score only.
        extractor: whose features these are.
        measures: what to measure.
        source: what the images are, for messages.

    Returns:
        Plain values: `figures` by name, `not_measured`, `warnings`, `images`, `reference`,
        `extractor`, `settings`.

    Raises:
        UserError: something asked for cannot be measured.
    """
    there = reference.features if reference else None
    metrics, left = choose(measures, extractor, reference is not None, there is not None)
    check_counts(metrics, measures, source, len(features), reference)
    splits = count_splits(measures.splits, len(features))
    found = figures(
        features,
        reference.statistics if reference else None,
        there,
        metrics,
        splits,
        extractor.device,
    )
    settings: dict[str, Any] = {"metrics": list(metrics), "splits": splits}
    if "kid" in metrics:
        subsets, size = kid_subsets(len(features), len(there))
        settings |= {"kid_subsets": subsets, "kid_subset": size}
    if "prc" in metrics:
        settings["neighbours"] = NEIGHBOURS
    return {
        "figures": named(found, extractor.kind),
        "not_measured": left,
        "warnings": _warnings(features, reference, extractor, metrics, source),
        "images": {"source": source, "images": len(features), "digest": identity(features.facts)},
        "reference": reference.record if reference else None,
        "extractor": extractor.describe(),
        "settings": settings,
    }


def measure_images(
    pictures: Images,
    reference: Reference | None,
    extractor: Extractor,
    measures: Measures,
    process: Process,
) -> dict[str, Any] | None:
    """Measure images of any origin; what is odd about them is in the `warnings`.

    All processes call this together; the first one gets the record of `measure` with `seconds`
    and `images_per_second` of the extraction, the others None.
    """
    check_together(measures, extractor, reference, pictures.source, len(pictures.dataset), process)
    features, seconds = extract(pictures.dataset, extractor, process, measures.loading, "images")
    odd = pictures.oddities(process)
    if features is None:
        return None
    record = measure(features, reference, extractor, measures, pictures.source)
    record["images"] |= pictures.describe()
    record["settings"]["batch_size"] = measures.loading.batch_size
    record["warnings"] += odd
    speed = {"seconds": seconds, "images_per_second": len(features) / seconds}
    return record | {"processes": process.world, **speed}


@dataclass(frozen=True)
class Judge:
    """All that measures generated images, opened before they are drawn; see `open_judge`."""

    measures: Measures
    extractor: Extractor
    reference: Reference | None
    process: Process

    def check(self, source: str, images: int) -> None:
        """Refuse so many images of a source, if they are too few for what is asked."""
        check_together(self.measures, self.extractor, self.reference, source, images, self.process)

    def measure(self, files: Sequence[Path]) -> dict[str, Any] | None:
        """The record of images, see `measure_images`; a lossy file, or one of another size than
        the first, is an error."""
        pictures = of_files(files, str(files[0].parent), strict=True)
        given = (self.reference, self.extractor, self.measures, self.process)
        return measure_images(pictures, *given)


def open_judge(
    reference: str | None, weights_dir: str | None, measures: Measures, process: Process
) -> Judge:
    """Load the network, and the reference (see `load_reference`), if there is one.

    Raises:
        UserError: one of them is missing or does not fit.
    """
    extractor = load_extractor(measures.extractor, weights_dir, process.device)
    loaded = reference and load_reference(reference, extractor, process, measures.loading)
    return Judge(measures, extractor, loaded or None, process)


def table(record: dict[str, Any]) -> str:
    """A record for people: the figures, what they were made of, and every warning."""
    there = record["reference"]
    lines = [f"{record['images']['images']} images of {record['images']['source']}"]
    if there:
        count = there.get("images", "an unknown number of")
        lines.append(f"against {count} images of {there.get('file') or there['source']}")
    lines.append(f"extractor {record['extractor']['name']}")
    width = max((len(name) for name in record["figures"]), default=0)
    for name, value in record["figures"].items():
        lines.append(f"  {name:{width}}  {'-' if value is None else format(value, '.6g')}")
    lines += [f"not measured: {k}: {reason}" for k, reason in record["not_measured"].items()]
    lines += [f"warning: {text}" for text in record["warnings"]]
    return "\n".join(lines)


def _warnings(
    features: Features,
    reference: Reference | None,
    extractor: Extractor,
    metrics: Sequence[str],
    source: str,
) -> list[str]:
    found = [f"{source}: {text}" for text in oddities(features.facts)]
    if extractor.kind == "random":
        found.append("features of a network of random weights: no figure here is an FID")
    elif not extractor.verified:
        found.append(f"{extractor.file}: no published SHA-256 to compare these weights with")
    if reference is None:
        return found
    found += [f"{reference.name}: {text}" for text in reference.warnings]
    if reference.features is not None and (shared := features.shared_with(reference.features)):
        found.append(f"{shared} images of {source} are in {reference.name} too, pixel by pixel")
    if "fid" in metrics and len(features) <= extractor.width:
        found.append(
            f"{len(features)} images for {extractor.width} features: the Fréchet distance is far "
            "larger than that of many images"
        )
    return found
