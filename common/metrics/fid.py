"""How far one set of images is from another, from their features.

Shapes: N images, D features, K classes, R rows of a root.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from common.errors import UserError
from common.metrics.extraction import Features
from common.precision import full_float32

METRICS = ("fid", "is", "kid", "prc")
NEIGHBOURS = 3  # whose distance is the radius of precision and recall
KID_SUBSETS, KID_SUBSET = 100, 1000  # how many, of at most so many images
LEAST = {"fid": 2, "is": 1, "kid": 2, "prc": NEIGHBOURS + 1}  # images that a metric needs
SPLITS, SPLIT_IMAGES = 10, 100  # by default: so many splits, but none of fewer images
# What figures are called. Only features of Inception make an FID.
NAMES = {
    "inception": {
        "fid": "fid",
        "is": "inception_score",
        "kid": "kid",
        "precision": "precision",
        "recall": "recall",
    },
    "dinov2": {
        "fid": "fd_dinov2",
        "kid": "kd_dinov2",
        "precision": "precision_dinov2",
        "recall": "recall_dinov2",
    },
    "random": {
        "fid": "random_features_distance",
        "is": "random_features_score",
        "kid": "random_features_kernel_distance",
        "precision": "random_features_precision",
        "recall": "random_features_recall",
    },
}


@dataclass(frozen=True)
class Statistics:
    """A Gaussian: its mean [D] and any root [R, D] with rootᵀ·root the covariance, in float64."""

    mean: Tensor
    root: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Statistics:
        """Of features [N, D], N ≥ 2; the covariance is the unbiased one."""
        features = features.double()
        mean = features.mean(0)
        centred = (features - mean) / (len(features) - 1) ** 0.5
        if len(features) <= features.shape[1]:
            return cls(mean, centred)
        return cls.from_covariance(mean, centred.T @ centred)

    @classmethod
    def from_covariance(cls, mean: Tensor, covariance: Tensor) -> Statistics:
        """Of a mean [D] and a covariance [D, D].

        Raises:
            ValueError: the matrix is no covariance.
        """
        covariance = covariance.double()
        if not torch.allclose(covariance, covariance.T, rtol=1e-4, atol=1e-6):
            raise ValueError("not symmetric")
        values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
        if values[0] < -1e-4 * values[-1].abs():
            raise ValueError("with a negative variance")
        return cls(mean.double(), vectors.T * values.clamp_min(0).sqrt()[:, None])

    @cached_property
    def variance(self) -> Tensor:
        """The trace of the covariance, []."""
        return self.root.square().sum()


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|μ₁ − μ₂|² + Tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½) (Heusel et al. 2017, equation 6).

    The trace of (AᵀA BᵀB)^½ is the sum of the singular values of A·Bᵀ, which loses fewer digits
    than eigenvalues of a product do.
    """
    overlap = torch.linalg.svdvals(a.root @ b.root.T).sum()
    return ((a.mean - b.mean).square().sum() + a.variance + b.variance - 2 * overlap).item()


def count_splits(asked: int | None, images: int) -> int:
    """How many disjoint parts give means and deviations.

    Raises:
        UserError: a part would have fewer than two images.
    """
    if asked is None:
        return min(SPLITS, max(1, images // SPLIT_IMAGES))
    if not 1 <= asked <= max(1, images // 2):
        raise UserError(
            f"--splits: found {asked} for {images} images, expected from 1 up, and no part with "
            "fewer than two images"
        )
    return asked


def split(features: Tensor, count: int) -> list[Tensor]:
    """Disjoint parts of [N, ...], as even as may be; the order of `Features` is random already."""
    total = len(features)
    return [features[i * total // count : (i + 1) * total // count] for i in range(count)]


def score(logits: Tensor, splits: int) -> dict[str, float | None]:
    """Inception Score: mean and deviation over parts of logits [N, K] (Salimans et al. 2016)."""
    found = isc_features_to_metric(logits.cpu(), splits, shuffle=False)
    mean, deviation = found.values()
    return {"is": mean, "is_std": deviation if splits > 1 else None}


def distances(pooled: Tensor, reference: Statistics, splits: int) -> dict[str, float | None]:
    """The Fréchet distance of all features [N, D], and its mean and deviation over parts, which
    is larger the fewer images a part has."""
    found: dict[str, float | None] = {"fid": frechet_distance(Statistics.of(pooled), reference)}
    if splits > 1:
        parts = [frechet_distance(Statistics.of(p), reference) for p in split(pooled, splits)]
        found |= {"fid_parts_mean": float(np.mean(parts)), "fid_parts_std": float(np.std(parts))}
    return found


def kernel_distance(pooled: Tensor, reference: Tensor) -> dict[str, float | None]:
    """KID: mean and deviation over subsets, cubic kernel (Bińkowski et al. 2018)."""
    subsets, size = kid_subsets(len(pooled), len(reference))
    found = kid_features_to_metric(
        *(pooled, reference), kid_subsets=subsets, kid_subset_size=size, verbose=False
    )
    mean, deviation = found.values()
    return {"kid": mean, "kid_std": deviation if subsets > 1 else None}


def kid_subsets(*counts: int) -> tuple[int, int]:
    """How many subsets KID takes of sets of so many images, and of how many; one of all images
    where it would be the same one again and again."""
    size = min(KID_SUBSET, *counts)
    return (1 if size == max(counts) else KID_SUBSETS), size


def coverage(pooled: Tensor, reference: Tensor) -> dict[str, float]:
    """Precision and recall (Kynkäänniemi et al. 2019)."""
    with full_float32():
        found = prc_features_to_metric(
            *(pooled, reference), prc_neighborhood=NEIGHBOURS, save_cpu_ram=True, verbose=False
        )
    return {name: found[name] for name in ("precision", "recall")}


def figures(
    features: Features,
    statistics: Statistics | None,
    reference: Features | None,
    metrics: tuple[str, ...],
    splits: int,
    device: torch.device,
) -> dict[str, float | None]:
    """The figures of these metrics, by their plain names; see `named`.

    Args:
        features: of the images to judge.
        statistics: of the reference, for `fid`.
        reference: its features, for `kid` and `prc`.
        metrics: some of `METRICS`.
        splits: parts for means and deviations.
        device: where to compute.
    """
    pooled = features.pooled.to(device)
    found: dict[str, float | None] = {}
    if "fid" in metrics:
        there = Statistics(statistics.mean.to(device), statistics.root.to(device))
        found |= distances(pooled, there, splits)
    if "is" in metrics:
        found |= score(features.logits, splits)
    if "kid" in metrics:
        found |= kernel_distance(pooled, reference.pooled)
    if "prc" in metrics:
        found |= coverage(pooled, reference.pooled.to(device))
    return found


def named(found: Mapping[str, float | None], kind: str) -> dict[str, float | None]:
    """Figures under the names they have for a kind of extractor."""
    renamed = {}
    for key, value in found.items():
        plain, line, rest = key.partition("_")
        renamed[NAMES[kind][plain] + line + rest] = value
    return renamed
