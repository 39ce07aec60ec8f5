"""Evaluator: figures of generated or reconstructed images, with everything that they depend on.

All processes take these steps together; the first one gets the record, the others None:

    evaluator = open_evaluator(MetricConfig(reference="statistics.npz"), process)
    record = evaluator.evaluate(files)
"""

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
from common.metrics.features import EXTRACTORS, Extractor, load_extractor

SPLITS, SPLIT_IMAGES = 10, 100  # of the Inception Score: so many, but none of fewer images
DEFAULT_REFERENCE = Path("fid_stats/adm_in256_stats.npz")  # where the release keeps ADM's

_metrics = partial(setting, group="metrics")  # where `--help` shows a field


@dataclass(frozen=True)
class MetricConfig:
    """What to measure, and against what."""

    metrics: bool = _metrics(False, "measure Inception Score and, with a reference, FID; or rFID")
    reference: str | None = _metrics(
        None,
        f"folder of images, statistics (.npz) or YAML file with data (default {DEFAULT_REFERENCE})",
        alias="fid_stats",
    )
    extractor: str = _metrics("inception", f"network of the features: {EXTRACTORS}")
    weights_dir: str | None = _metrics(None, "folder of pretrained networks")
    metric_bsz: int = _metrics(64, "images in a batch of metrics", min=1)
    metric_workers: int = _metrics(0, "processes that read them", min=0)


@dataclass(frozen=True)
class Evaluator:
    """All that measures images, opened before they are made; see `open_evaluator`."""

    config: MetricConfig
    extractor: Extractor
    process: Process
    reference: dict[str, Any] | None = None  # plain values: source, images, warnings, ...
    statistics: fid.Statistics | None = None  # of the reference, at least on the first process

    def evaluate(self, files: Sequence[Path]) -> dict[str, Any] | None:
        """The record of generated images, see `measure`."""
        about = {"source": str(files[0].parent), "images": len(files), "preparation": "as they are"}
        return self.measure(extraction.ImageFiles(files), about)

    def measure(self, dataset: Dataset, about: dict[str, Any]) -> dict[str, Any] | None:
        """The record of images of any origin, as `open_images` gives them: figures, and what they
        rest on, plain values."""
        features, about = self.extract(dataset, about)
        if features is None:
            return None
        count, figures = len(dataset), {}
        splits = max(1, min(SPLITS, count // SPLIT_IMAGES))
        distance, score = "fid", "inception_score"
        if self.extractor.is_random:
            distance, score = "random_features_distance", "random_features_score"
        if self.statistics:
            figures[distance] = fid.frechet_distance(features.statistics, self.statistics)
        figures[score], figures[f"{score}_std"] = fid.inception_score(features.logits, splits)
        warnings = about.pop("warnings") + (self.reference["warnings"] if self.reference else [])
        return {
            "figures": figures,
            "not_measured": {} if self.reference else {"fid": "there is no reference"},
            "warnings": warnings + cautions(self.extractor, count),
            "images": about,
            "reference": self.reference,
            "extractor": self.extractor.about,
            "settings": {"splits": splits, "batch": self.config.metric_bsz},
            "processes": self.process.world,
        }

    def extract(self, dataset: Dataset, about: dict) -> tuple[extraction.Features | None, dict]:
        """Features of all images, on the first process, and what is known of the images, with
        `warnings` of what is odd."""
        collector, config = extraction.Collector(self.extractor), self.config
        how = (self.process, "features", config.metric_bsz, config.metric_workers)
        for numbers, pixels in extraction.image_batches(dataset, *how):
            collector.add(pixels, numbers)
        warnings = extraction.warnings_of(dataset, about, self.process)
        return collector.features(), {**about, "warnings": warnings}


def cautions(extractor: Extractor, count: int) -> list[str]:
    """Warnings of figures of so many images."""
    told = []
    if extractor.is_random:
        told.append("features of a network of random weights: no figure here is an FID")
    if count <= extractor.width:
        larger = "the Fréchet distance is far larger than that of many images"
        told.append(f"{count} images for {extractor.width} features: {larger}")
    return told


def open_evaluator(
    config: MetricConfig, process: Process, part: str = "validation", overrides: Sequence[str] = ()
) -> Evaluator:
    """Load the network, and the reference, if there is one; a UserError where one is missing or
    does not fit. `part` and `overrides` are those of a YAML file, see `open_images`."""
    extractor = load_extractor(config.extractor, config.weights_dir, process.device)
    evaluator, source = Evaluator(config, extractor, process), config.reference
    if source is None and DEFAULT_REFERENCE.is_file() and not extractor.is_random:
        source = str(DEFAULT_REFERENCE)
    if source is None:
        return evaluator
    if not source.endswith(".npz"):
        features, about = evaluator.extract(*extraction.open_images(source, part, overrides))
        return replace(evaluator, reference=about, statistics=features and features.statistics)
    statistics, about = fid.read_statistics(source)
    by = {"name": "inception", "weights": extractor.about["weights"], **about.get("extractor", {})}
    found = (len(statistics.mean), by["name"], by["weights"])
    expected = (extractor.width, extractor.about["name"], extractor.about["weights"])
    if found != expected:
        raise UserError(f"{source}: found features, extractor, weights {found}, not {expected}")
    return replace(evaluator, reference=about, statistics=statistics)


def table(record: dict[str, Any]) -> str:
    """A record for people: the figures, what they were made of, and every warning."""
    lines = [f"{record['images']['images']} images of {record['images']['source']}"]
    if there := record["reference"]:
        lines.append(f"against {there.get('images', 'an unknown number of')} of {there['source']}")
    if record["extractor"]:
        lines.append(f"extractor {record['extractor']['name']}")
    for name, value in record["figures"].items():
        lines.append(f"  {name:24}  {'-' if value is None else format(value, '.6g')}")
    lines += [f"not measured: {k}: {reason}" for k, reason in record["not_measured"].items()]
    lines += [f"warning: {text}" for text in record["warnings"]]
    return printable("\n".join(lines))
