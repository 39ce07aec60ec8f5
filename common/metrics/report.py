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

from torch import Tensor
from torch.utils.data import Dataset

from common.config import setting
from common.distributed import Process
from common.errors import UserError, printable
from common.metrics import fid
from common.metrics.extraction import (
    Collector,
    Features,
    ImageFiles,
    image_batches,
    open_images,
    warnings_of,
)
from common.metrics.features import EXTRACTORS, Extractor, load_extractor

LEAST = {"fid": 2, "is": 1, "kid": 2, "prc": fid.NEIGHBOURS + 1}  # images that a metric needs
SPLITS, SPLIT_IMAGES = 10, 100  # by default: so many splits, but none of fewer images
DEFAULT_REFERENCE = Path("fid_stats/adm_in256_stats.npz")  # where the release keeps ADM's
# Only features of Inception make an FID: those of random weights give random_features_distance.
RANDOM_NAMES = {"fid": "distance", "inception_score": "score", "kid": "kernel_distance"}

_metrics = partial(setting, group="metrics")  # where `--help` shows a field


@dataclass(frozen=True)
class MetricConfig:
    """What to measure, and against what."""

    metrics: str | None = _metrics(
        None,
        "some of fid,is,kid,prc, or (without a value) all that the reference allows",
        bare="all",
    )
    reference: str | None = _metrics(
        None,
        "what to compare with: a folder of images, statistics (.npz), or a YAML file whose "
        f"data.params.validation it is; default {DEFAULT_REFERENCE} where it exists",
        alias="fid_stats",
    )
    extractor: str = _metrics("inception", f"network of the features: {EXTRACTORS}")
    weights_dir: str | None = _metrics(
        None, "folder of pretrained networks (default $EQUIVARIANT_WEIGHTS or pretrained_models)"
    )
    splits: int | None = _metrics(
        None, "parts of the Inception Score (default 10; fewer for few images)", min=1
    )
    metric_bsz: int = _metrics(64, "images in a batch of metrics", min=1)
    metric_workers: int = _metrics(0, "processes that read them", min=0)


@dataclass(frozen=True)
class Evaluator:
    """All that measures images, opened before they are made; see `open_evaluator`."""

    config: MetricConfig
    extractor: Extractor
    process: Process
    reference: dict[str, Any] | None = None  # plain values: its source, how many images, ...
    warnings: Sequence[str] = ()  # of the reference
    statistics: fid.Statistics | None = None  # of the reference, if it is a file of them
    pooled: Tensor | None = None  # [N, D] of its images otherwise, on the first process

    def check(self, source: str, count: int) -> tuple[list[str], dict[str, str]]:
        """The metrics that so many images of a source allow, and those left out with the reasons; a
        UserError if one of these was asked for."""
        left = {}
        fewest = min(count, (self.reference or {}).get("images", count))
        for name, needed in LEAST.items():
            if self.reference is None and name != "is":
                left[name] = "there is no reference"
            elif self.statistics and name in ("kid", "prc"):
                left[name] = "the reference has statistics only, not images"
            elif fewest < needed:
                left[name] = f"found {fewest} image(s), expected at least {needed}"
        if self.config.metrics in (None, "all"):
            return [name for name in LEAST if name not in left], left
        metrics = self.config.metrics.split(",")
        for name in metrics:
            if name in left or name not in LEAST:
                reason = left.get(name, f"expected some of {','.join(LEAST)}")
                raise UserError(f"{source}: --metrics {name}: {reason}")
        return metrics, {}

    def evaluate(self, files: Sequence[Path]) -> dict[str, Any] | None:
        """The record of generated images, see `measure`."""
        about = {"source": str(files[0].parent), "images": len(files), "preparation": "as they are"}
        return self.measure(ImageFiles(files), about)

    def measure(self, dataset: Dataset, about: dict[str, Any]) -> dict[str, Any] | None:
        """The record of images of any origin, as `open_images` gives them; see `compare`."""
        self.check(about["source"], len(dataset))
        start = time.perf_counter()
        features, told = self.extract(dataset, about)
        seconds = time.perf_counter() - start
        speed = {"seconds": seconds, "images_per_second": len(dataset) / seconds}
        speed["processes"] = self.process.world
        return self.compare(features, about, told) | speed if features else None

    def extract(self, dataset: Dataset, about: dict[str, Any]) -> tuple[Features | None, list[str]]:
        """Features of all images, on the first process, and warnings of what is odd."""
        collector, config = Collector(self.extractor), self.config
        numbers, loading = range(len(dataset)), (config.metric_bsz, config.metric_workers)
        for these, pixels in image_batches(dataset, numbers, self.process, "features", *loading):
            collector.add(pixels, these)
        return collector.features(), warnings_of(dataset, about, self.process)

    def compare(
        self, features: Features, about: dict[str, Any], told: Sequence[str]
    ) -> dict[str, Any]:
        """Figures of images whose features, description and warnings are known, on the first
        process, with what they rest on: plain values."""
        count = len(features.pooled)
        metrics, left = self.check(about["source"], count)
        splits = min(self.config.splits or min(SPLITS, max(1, count // SPLIT_IMAGES)), count)
        pooled = features.pooled.to(self.extractor.device)
        figures: dict[str, float | None] = {}
        if "fid" in metrics:
            statistics = self.statistics or fid.Statistics.of(self.pooled)
            figures["fid"] = fid.frechet_distance(fid.Statistics.of(pooled), statistics)
        if "is" in metrics:
            figures |= fid.inception_score(features.logits, splits)
        if "kid" in metrics:
            figures |= fid.kid(pooled, self.pooled)
        if "prc" in metrics:
            figures |= fid.precision_recall(pooled, self.pooled)
        told = [*told, *self.warnings]
        if self.extractor.is_random:
            figures = {_random_name(name): value for name, value in figures.items()}
            told.append("features of a network of random weights: no figure here is an FID")
        if not self.extractor.about["verified"]:
            told.append(f"{self.extractor.about['file']}: no published SHA-256 to compare with")
        if "fid" in metrics and count <= self.extractor.width:
            larger = "the Fréchet distance is far larger than that of many images"
            told.append(f"{count} images for {self.extractor.width} features: {larger}")
        return {
            "figures": figures,
            "not_measured": left,
            "warnings": told,
            "images": about,
            "reference": self.reference,
            "extractor": self.extractor.about,
            "settings": {"metrics": metrics, "splits": splits, "batch": self.config.metric_bsz},
        }


def _random_name(name: str) -> str:
    plain, deviation, _ = name.partition("_std")
    return f"random_features_{RANDOM_NAMES.get(plain, plain)}{deviation}"


def open_evaluator(
    config: MetricConfig, process: Process, part: str = "validation", overrides: Sequence[str] = ()
) -> Evaluator:
    """Load the network, and the reference, if there is one; `part` and `overrides` are those of a
    YAML file, see `open_images`.

    Raises:
        UserError: one of them is missing or does not fit.
    """
    extractor = load_extractor(config.extractor, config.weights_dir, process.device)
    evaluator, source = Evaluator(config, extractor, process), config.reference
    if source is None and not extractor.is_random and DEFAULT_REFERENCE.is_file():
        source = str(DEFAULT_REFERENCE)
    if source is None:
        return evaluator
    if not source.endswith(".npz"):
        images, about = open_images(source, part, overrides)
        features, told = evaluator.extract(images, about)
        pooled = features and features.pooled
        return replace(evaluator, reference=about, warnings=told, pooled=pooled)
    statistics, record = fid.read_statistics(source)
    by = {"name": "inception", "weights": extractor.about["weights"], **record.get("extractor", {})}
    found = (len(statistics.mean), by["name"], by["weights"])
    expected = (extractor.width, extractor.about["name"], extractor.about["weights"])
    if found != expected:
        raise UserError(f"{source}: found features, extractor, weights {found}, not {expected}")
    unknown = f"{source} does not say what made it: taken for statistics of Inception"
    told, about = record.get("warnings", [unknown]), {"source": source, **record}
    return replace(evaluator, reference=about, warnings=told, statistics=statistics)


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
    return printable("\n".join(lines))
