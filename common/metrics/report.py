"""Evaluator: figures of generated or reconstructed images, with everything that they depend on.

All processes take these steps together; the first one gets the record, the others None:

    evaluator = open_evaluator(MetricConfig(reference="statistics.npz"), process)
    record = evaluator.evaluate(files)
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from common.config import setting
from common.distributed import Process
from common.errors import UserError
from common.metrics import fid
from common.metrics.extraction import Features, ImageSet, extract, open_images
from common.metrics.features import EXTRACTORS, Extractor, load_extractor

LEAST = {"fid": 2, "is": 1, "kid": 2, "prc": fid.NEIGHBOURS + 1}  # images that a metric needs
SPLITS, SPLIT_IMAGES = 10, 100  # by default: so many splits, but none of fewer images
DEFAULT_REFERENCE = Path("fid_stats/adm_in256_stats.npz")  # where the release keeps ADM's
RANDOM_NAMES = {  # only features of Inception make an FID
    "fid": "random_features_distance",
    "is": "random_features_score",
    "kid": "random_features_kernel_distance",
    "precision": "random_features_precision",
    "recall": "random_features_recall",
}

_metrics = partial(setting, group="metrics")  # where `--help` shows a field


@dataclass(frozen=True)
class MetricConfig:
    """What to measure, and against what."""

    metrics: str | None = _metrics(
        None,
        "some of fid,is,kid,prc, or (without a value) all that the reference allows",
        bare="all")
    reference: str | None = _metrics(
        None,
        "what to compare with: a folder of images, statistics (.npz), or a YAML file whose "
        f"data.params.validation it is; default {DEFAULT_REFERENCE} where it exists",
        alias="fid_stats")
    extractor: str = _metrics("inception", f"network of the features: {EXTRACTORS}")
    weights_dir: str | None = _metrics(
        None, "folder of pretrained networks (default $EQUIVARIANT_WEIGHTS or pretrained_models)"
    )
    splits: int | None = _metrics(
        None, "parts for means and deviations (default 10; fewer for few images)", min=1
    )
    metric_bsz: int = _metrics(64, "images in a batch of metrics", min=1)
    metric_workers: int = _metrics(0, "processes that read them", min=0)

    def __post_init__(self) -> None:
        for name in self.names or ():
            if name not in LEAST:
                raise UserError(f"--metrics: found {name!r}, expected some of {','.join(LEAST)}")

    @property
    def names(self) -> tuple[str, ...] | None:
        """The metrics asked for; None for all that there can be."""
        if self.metrics in (None, "all"):
            return None
        return tuple(dict.fromkeys(str(self.metrics).split(",")))


@dataclass(frozen=True)
class Reference:
    """What images are compared with; `statistics` and `features` are on the first process alone."""

    source: str
    images: int | None  # how many; None where there are statistics only
    record: dict[str, Any]  # plain values
    warnings: tuple[str, ...] = ()  # what a reader of figures must know
    statistics: fid.Statistics | None = None
    features: Features | None = None

    @classmethod
    def of(
        cls, features: Features | None, source: str, images: int, record: dict | None = None
    ) -> "Reference":
        """Of images whose features are known, on the first process."""
        record = record or {"source": source, "images": images}
        if features is None:
            return cls(source, images, record)
        odd = tuple(f"{source}: {text}" for text in features.oddities)
        return cls(source, images, record, odd, fid.Statistics.of(features.pooled), features)


def load_statistics(source: str, extractor: Extractor) -> Reference:
    """The reference of a file of statistics (.npz), which must be of the same extractor."""
    statistics, record = fid.read_statistics(Path(source))
    by = {"name": "inception", "weights": extractor.about["weights"], **record.get("extractor", {})}
    found = (len(statistics.mean), by["name"], by["weights"])
    expected = (extractor.width, extractor.name, extractor.about["weights"])
    if found != expected:
        raise UserError(f"{source}: found features, extractor, weights {found}, not {expected}")
    unknown = f"{source} does not say what made it: taken for statistics of Inception"
    warnings = tuple(record["warnings"]) if record else (unknown,)
    return Reference(source, None, {"source": source, **record}, warnings, statistics)


@dataclass(frozen=True)
class Evaluator:
    """All that measures images, opened before they are made; see `open_evaluator`."""

    config: MetricConfig
    extractor: Extractor
    reference: Reference | None
    process: Process

    def check(self, source: str, count: int) -> tuple[tuple[str, ...], dict[str, str], int]:
        """The metrics that so many images of a source allow, those left out with the reasons, and
        the number of splits.

        Raises:
            UserError: one that was asked for cannot be measured, or there are too few images.
        """
        left: dict[str, str] = {}
        there, asked = self.reference, self.config.names
        if there is None:
            nothing = f"there is no reference; expected --reference, or {DEFAULT_REFERENCE}"
            left = dict.fromkeys(("fid", "kid", "prc"), nothing)
        elif there.images is None:
            left = dict.fromkeys(("kid", "prc"), "the reference has statistics only, not images")
        metrics = asked or tuple(name for name in LEAST if name not in left)
        fewest = min(count, (there and there.images) or count)
        for name in metrics:
            if name in left:
                raise UserError(f"--metrics: found {name}, but {left[name]}")
            if fewest < LEAST[name]:
                raise UserError(
                    f"{source}: found {fewest} image(s) in it or in its reference, expected at "
                    f"least {LEAST[name]} for {name} (--metrics chooses others)"
                )
        splits = self.config.splits or min(SPLITS, max(1, count // SPLIT_IMAGES))
        if splits > max(1, count // 2):
            raise UserError(f"--splits: found {splits} for {count} images, expected 2 in each part")
        return metrics, {} if asked else left, splits

    def evaluate(self, files: Sequence[Path]) -> dict[str, Any] | None:
        """The record of generated images, see `measure`; a lossy file, or one of another size than
        the first, is an error."""
        return self.measure(ImageSet(files, str(files[0].parent), strict=True))

    def measure(self, images: ImageSet) -> dict[str, Any] | None:
        """The record of images of any origin, see `compare`, with the speed of the extraction."""
        self.check(images.source, len(images))
        start = time.perf_counter()
        features = self.extract(images)
        seconds = time.perf_counter() - start
        replaced = images.replaced(self.process)
        if features is None:
            return None
        record = self.compare(features, images.source)
        record["warnings"] += replaced
        speed = {"seconds": seconds, "images_per_second": len(features) / seconds}
        return record | {"images": images.describe(), "processes": self.process.world, **speed}

    def extract(self, images: ImageSet) -> Features | None:
        """Features of all images on the first process, None elsewhere."""
        loading = (self.config.metric_bsz, self.config.metric_workers)
        return extract(images, self.extractor, self.process, *loading)

    def compare(self, features: Features, source: str) -> dict[str, Any]:
        """Figures of images whose features are known, on the first process, and what they rest on.

        Returns:
            Plain values: `figures` by name, `not_measured`, `warnings`, `images`, `reference`,
            `extractor`, `settings`.
        """
        metrics, left, splits = self.check(source, len(features))
        there, about = self.reference, self.extractor.about
        pooled = features.pooled.to(self.extractor.device)
        found: fid.Figures = {}
        if "fid" in metrics and there and there.statistics:
            found |= fid.fid(pooled, there.statistics, splits)
        if "is" in metrics:
            found |= fid.inception_score(features.logits, splits)
        if "kid" in metrics and there and there.features:
            found |= fid.kid(pooled, there.features.pooled)
        if "prc" in metrics and there and there.features:
            found |= fid.precision_recall(pooled, there.features.pooled)
        names = RANDOM_NAMES if self.extractor.is_random else {"is": "inception_score"}
        figures = {}
        for key, value in found.items():
            plain, line, rest = key.partition("_")
            figures[names.get(plain, plain) + line + rest] = value
        warnings = [f"{source}: {text}" for text in features.oddities]
        warnings += there.warnings if there else ()
        if self.extractor.is_random:
            warnings.append("features of a network of random weights: no figure here is an FID")
        if not about["verified"]:
            warnings.append(f"{about['file']}: no published SHA-256 to compare with")
        if "fid" in metrics and len(features) <= self.extractor.width:
            warnings.append(
                f"{len(features)} images for {self.extractor.width} features: the Fréchet distance "
                "is far larger than that of many images"
            )
        return {
            "figures": figures,
            "not_measured": left,
            "warnings": warnings,
            "images": {"source": source, "images": len(features)},
            "reference": there.record if there else None,
            "extractor": about,
            "settings": {
                "metrics": list(metrics),
                "splits": splits,
                "batch_size": self.config.metric_bsz,
                "kid_subset": [fid.KID_SUBSETS, fid.KID_SUBSET],
                "neighbours": fid.NEIGHBOURS,
            },
        }


def open_evaluator(
    config: MetricConfig,
    process: Process,
    part: str = "validation",
    overrides: Sequence[str] = (),
) -> Evaluator:
    """Load the network, and the reference, if there is one.

    Args:
        part, overrides: of a reference that is a YAML file, see `open_images`.

    Raises:
        UserError: one of them is missing or does not fit.
    """
    extractor = load_extractor(config.extractor, config.weights_dir, process.device)
    evaluator = Evaluator(config, extractor, None, process)
    source = config.reference
    if source is None and not extractor.is_random and DEFAULT_REFERENCE.is_file():
        source = str(DEFAULT_REFERENCE)
    if source is None:
        return evaluator
    if source.endswith(".npz"):
        return replace(evaluator, reference=load_statistics(source, extractor))
    images = open_images(source, None, part, overrides)
    if len(images) < 2:
        raise UserError(f"{source}: found 1 image, expected at least 2")
    features = evaluator.extract(images)
    reference = Reference.of(features, source, len(images), images.describe())
    return replace(evaluator, reference=reference)


def table(record: dict[str, Any]) -> str:
    """A record for people: the figures, what they were made of, and every warning."""
    there = record["reference"]
    lines = [f"{record['images']['images']} images of {record['images']['source']}"]
    if there:
        lines.append(f"against {there.get('images', 'an unknown number of')} of {there['source']}")
    lines.append(f"extractor {record['extractor']['name']}")
    for name, value in record["figures"].items():
        lines.append(f"  {name:24}  {'-' if value is None else format(value, '.6g')}")
    lines += [f"not measured: {k}: {reason}" for k, reason in record["not_measured"].items()]
    lines += [f"warning: {text}" for text in record["warnings"]]
    return "\n".join(lines)
