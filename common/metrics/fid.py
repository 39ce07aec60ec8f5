"""FID and Inception Score, from features.

Shapes: N images, D features, K classes, R rows of a root.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_isc import isc_features_to_metric

from common.errors import UserError
from common.io import replacing

CHUNK = 2**14  # images whose features are in float64 at once


@dataclass(frozen=True)
class Statistics:
    """A Gaussian: its mean [D] and any root [R, D] with rootᵀ·root the covariance, in float64."""

    mean: Tensor
    root: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Statistics":
        """Of features [N, D], N ≥ 2; the covariance is the unbiased one."""
        if len(features) < 2:
            raise UserError(f"found {len(features)} image, expected at least 2 for statistics")
        mean = features.mean(0, dtype=torch.float64)
        if len(features) <= features.shape[1]:
            return cls(mean, (features - mean) / (len(features) - 1) ** 0.5)
        parts = (part - mean for part in features.split(CHUNK))
        return cls.from_covariance(mean, sum(p.T @ p for p in parts) / (len(features) - 1))

    @classmethod
    def from_covariance(cls, mean: Tensor, covariance: Tensor) -> "Statistics":
        """Of a mean [D] and a covariance [D, D], both in float64; a ValueError if it is none."""
        if not torch.allclose(covariance, covariance.T, rtol=1e-4, atol=1e-6):
            raise ValueError("not symmetric")
        values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
        if values[0] < -1e-4 * values[-1].abs():
            raise ValueError("with a negative variance")
        return cls(mean, vectors.T * values.clamp_min(0).sqrt()[:, None])


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|μ₁ − μ₂|² + Tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½) (Heusel et al. 2017, equation 6).

    The trace of (AᵀA BᵀB)^½ is the sum of the singular values of A·Bᵀ, which loses fewer digits
    than eigenvalues of a product do.
    """
    overlap = torch.linalg.svdvals(a.root @ b.root.T).sum()
    variances = a.root.square().sum() + b.root.square().sum()
    return ((a.mean - b.mean).square().sum() + variances - 2 * overlap).item()


def inception_score(logits: Tensor, splits: int) -> tuple[float, float | None]:
    """Mean, and deviation if there are several, over parts of [N, K] (Salimans et al. 2016)."""
    mean, deviation = isc_features_to_metric(logits, splits, shuffle=False).values()
    return mean, deviation if splits > 1 else None


def write_statistics(path: Path, statistics: Statistics, record: dict[str, Any]) -> None:
    """Write `mu`, `sigma` and `record` (JSON) as .npz."""
    covariance = statistics.root.T @ statistics.root
    with replacing(path) as file:
        np.savez(file, mu=statistics.mean, sigma=covariance, record=json.dumps(record))


def read_statistics(path: str | Path) -> tuple[Statistics, dict[str, Any]]:
    """The statistics in an .npz file, `mu` and `sigma` as ADM's or `mean` and `cov`, and the record
    of what made them, as far as it is known; a UserError if it is missing, damaged or other."""
    unknown = f"{path} does not say what made it: taken for statistics of Inception"
    record = {"source": str(path), "warnings": [unknown]}
    try:
        with np.load(path, allow_pickle=False) as file:  # the zip's own checksums are compared
            names = ("mean", "cov") if "cov" in file.files else ("mu", "sigma")
            # ADM's files hold images too, which are not read
            mean, covariance = (torch.from_numpy(file[name]).double() for name in names)
            if "record" in file.files:
                record = json.loads(str(file["record"]))
                kinds = {"images": int, "source": str, "extractor": dict, "warnings": list}
                if not all(isinstance(record[key], kind) for key, kind in kinds.items()):
                    raise ValueError("a record that is none")
        if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
            raise ValueError(f"shapes {[*mean.shape]} and {[*covariance.shape]}")
        if not (mean.isfinite().all() and covariance.isfinite().all()):
            raise ValueError("values that are not finite")
        return Statistics.from_covariance(mean, covariance), record
    except Exception as error:  # damaged files fail in many ways
        expected = "expected statistics, .npz with mu [D] and sigma [D, D]"
        raise UserError(f"{path}: {error or type(error).__name__}; {expected}") from None
