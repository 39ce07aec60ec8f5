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

from torch.utils.data import Dataset

from common.config import setting
from common.distributed import Process
from common.errors import UserError, printable
from common.metrics import extraction, fid
from common.metrics.extraction import Features
from common.metrics.features import EXTRACTORS, Extractor, load_extractor

SPLITS, SPLIT_IMAGES = 10, 100  # of the Inception Score: so many, but none of fewer images
DEFAULT_REFERENCE = Path("fid_stats/adm_in256_stats.npz")  # where the release keeps ADM's

_metrics = partial(setting, group="metrics")  # where `--help` shows a field


@dataclass(frozen=True)
class MetricConfig:
    """What to measure, and against what."""

    metrics: str | None = _metrics(
        None, "fid, is or fid,is, or (without a value) what the reference allows", bare="all"
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
    statistics: fid.Statistics | None = None  # of the reference; on the first process
    warnings: Sequence[str] = ()  # of the reference

    def metrics(self) -> list[str]:
        """Those to measure; a UserError if they need a reference that is not there."""
        possible = ["fid", "is"] if self.reference else ["is"]
        asked = self.config.metrics
        metrics = possible if asked in (None, "all") else asked.split(",")
        if not set(metrics) <= set(possible):
            expected = "expected is, fid (with a reference), or fid,is"
            raise UserError(f"--metrics: found {asked!r}, {expected}")
        return metrics

    def evaluate(self, files: Sequence[Path]) -> dict[str, Any] | None:
        """The record of generated images, see `measure`."""
        about = {"source": str(files[0].parent), "images": len(files), "preparation": "as they are"}
        return self.measure(extraction.ImageFiles(files), about)

    def measure(self, dataset: Dataset, about: dict[str, Any]) -> dict[str, Any] | None:
        """The record of images of any origin, as `open_images` gives them; see `compare`."""
        start = time.perf_counter()
        features, warnings = self.extract(dataset, about)
        seconds = time.perf_counter() - start
        return self.compare(features, about, warnings, seconds) if features else None

    def extract(self, dataset: Dataset, about: dict[str, Any]) -> tuple[Features | None, list[str]]:
        """Features of all images, on the first process, and warnings of what is odd."""
        collector, config = extraction.Collector(self.extractor), self.config
        numbers, loading = range(len(dataset)), (config.metric_bsz, config.metric_workers)
        batches = extraction.image_batches(dataset, numbers, self.process, "features", *loading)
        for these, pixels in batches:
            collector.add(pixels, these)
        return collector.features(), extraction.warnings_of(dataset, about, self.process)

    def compare(
        self, features: Features, about: dict[str, Any], warnings: Sequence[str], seconds: float
    ) -> dict[str, Any]:
        """Figures of images whose features, description and warnings are known, on the first
        process, with what they rest on: plain values."""
        count, network = len(features.logits), self.extractor
        metrics = self.metrics()
        splits = min(self.config.splits or min(SPLITS, max(1, count // SPLIT_IMAGES)), count)
        told, figures = [*warnings, *self.warnings], {}
        distance, score = "fid", "inception_score"
        if network.is_random:  # only features of Inception make an FID
            distance, score = "random_features_distance", "random_features_score"
            told.append("features of a network of random weights: no figure here is an FID")
        if not network.about["verified"]:
            told.append(f"{network.about['file']}: no published SHA-256 to compare with")
        if "fid" in metrics:
            figures[distance] = fid.frechet_distance(features.statistics, self.statistics)
            if count <= network.width:
                larger = "the Fréchet distance is far larger than that of many images"
                told.append(f"{count} images for {network.width} features: {larger}")
        if "is" in metrics:
            mean, deviation = fid.inception_score(features.logits, splits)
            figures |= {score: mean, f"{score}_std": deviation}
        return {
            "figures": figures,
            "not_measured": {} if self.reference else {"fid": "there is no reference"},
            "warnings": told,
            "images": about,
            "reference": self.reference,
            "extractor": network.about,
            "settings": {"metrics": metrics, "splits": splits, "batch": self.config.metric_bsz},
            "processes": self.process.world,
            "seconds": seconds,
            "images_per_second": count / seconds,
        }


def open_evaluator(
    config: MetricConfig, process: Process, part: str = "validation", overrides: Sequence[str] = ()
) -> Evaluator:
    """Load the network, and the reference, if there is one; `part` and `overrides` are those of a
    YAML file, see `open_images`.

    Raises:
        UserError: one of them is missing or does not fit.
    """
    extractor, source = load_extractor(config.extractor, config.weights_dir, process.device), None
    if config.reference or (DEFAULT_REFERENCE.is_file() and not extractor.is_random):
        source = config.reference or str(DEFAULT_REFERENCE)
    evaluator = Evaluator(config, extractor, process, source and {"source": source})
    evaluator.metrics()  # before the images of a reference are read
    if source is None:
        return evaluator
    if not source.endswith(".npz"):
        images, about = extraction.open_images(source, part, overrides)
        features, warnings = evaluator.extract(images, about)
        statistics = features and features.statistics
        return replace(evaluator, reference=about, warnings=warnings, statistics=statistics)
    statistics, record = fid.read_statistics(source)
    by = {"name": "inception", "weights": extractor.about["weights"], **record.get("extractor", {})}
    found = (len(statistics.mean), by["name"], by["weights"])
    expected = (extractor.width, extractor.about["name"], extractor.about["weights"])
    if found != expected:
        raise UserError(f"{source}: found features, extractor, weights {found}, not {expected}")
    unknown = f"{source} does not say what made it: taken for statistics of Inception"
    warnings, about = record.get("warnings", [unknown]), {"source": source, **record}
    return replace(evaluator, reference=about, warnings=warnings, statistics=statistics)


def table(record: dict[str, Any]) -> str:
    """A record for people: the figures, what they were made of, and every warning."""
    lines = [f"{record['images']['images']} images of {record['images']['source']}"]
    if there := record.get("reference"):
        lines.append(f"against {there.get('images', 'an unknown number of')} of {there['source']}")
    if network := record.get("extractor"):
        lines.append(f"extractor {network['name']}")
    for name, value in record["figures"].items():
        lines.append(f"  {name:24}  {'-' if value is None else format(value, '.6g')}")
    lines += [f"not measured: {k}: {reason}" for k, reason in record["not_measured"].items()]
    lines += [f"warning: {text}" for text in record["warnings"]]
    return printable("\n".join(lines))
