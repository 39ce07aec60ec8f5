"""What images are compared with: other images, or statistics of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import distributed
from common.distributed import Process
from common.errors import UserError
from common.metrics import statistics
from common.metrics.extraction import (
    Features,
    Loading,
    Moments,
    batches,
    extract,
    identity,
    oddities,
)
from common.metrics.features import Extractor
from common.metrics.fid import Statistics
from common.metrics.sources import Images, open_images


@dataclass(frozen=True)
class Reference:
    """What images are compared with.

    Args:
        statistics: of the features.
        features: themselves, where there are images.
        record: plain values that say where it comes from.
        warnings: what a reader must know of it.
        name: for messages.
    """

    statistics: Statistics
    features: Features | None
    record: dict[str, Any]
    warnings: tuple[str, ...] = ()
    name: str = "the reference"


def of_features(features: Features, record: dict[str, Any], name: str) -> Reference:
    """A reference of two images or more whose features are known."""
    record = record | {"images": len(features), "digest": identity(features.facts)}
    gaussian = Statistics.of(features.pooled)
    return Reference(gaussian, features, record, tuple(oddities(features.facts)), name)


def check_number(pictures: Images) -> None:
    """Refuse a set that has no covariance."""
    if len(pictures.dataset) < 2:
        raise UserError(f"{pictures.source}: found 1 image, expected at least 2")


def load_reference(
    source: str | Path,
    extractor: Extractor,
    process: Process,
    loading: Loading,
    part: str = "validation",
    overrides: Sequence[str] = (),
) -> Reference | None:
    """The reference that a folder, a YAML file or a file of statistics gives.

    All processes call this together; the first one gets it, the others None.

    Raises:
        UserError: it is missing, damaged, or of another extractor.
    """
    if Path(source).suffix == statistics.SUFFIX:
        gaussian, record, warnings = statistics.read_statistics(source, extractor)
        reference = Reference(gaussian, None, record, tuple(warnings), str(source))
        return reference if process.is_main else None
    pictures = open_images(source, None, part, overrides)
    check_number(pictures)
    features, _ = extract(pictures.dataset, extractor, process, loading, "reference")
    warnings = pictures.oddities(process)
    if features is None:
        return None
    found = of_features(features, {"kind": "images", **pictures.describe()}, str(source))
    return replace(found, warnings=(*found.warnings, *warnings))


def compute_statistics(
    pictures: Images, extractor: Extractor, process: Process, loading: Loading
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Mean and covariance over all processes of images that may be too many to keep the features
    of, and on the first process a whole record of them; see `common.metrics.statistics`."""
    check_number(pictures)
    moments, facts = Moments.none(extractor), [torch.empty(0, 4, dtype=torch.int64)]
    for batch, about in batches(pictures.dataset, process, loading, "statistics"):
        moments.add(extractor(batch)[:, : extractor.width])
        facts.append(about)
    mean, covariance = moments.result()
    record = {**pictures.describe(), "extractor": extractor.describe()}
    record["warnings"] = pictures.oddities(process)
    everything = distributed.gathered(torch.cat(facts).to(process.device))
    if everything is not None:
        everything = everything.cpu()
        record["digest"] = identity(everything)
        record["warnings"] += oddities(everything)
    return mean, covariance, record
