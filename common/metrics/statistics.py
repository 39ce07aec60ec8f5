"""Files of statistics: `.npz` with `mu` [D] and `sigma` [D, D].

Those of `scripts/compute_fid_stats.py` say what made them; those of ADM
(`VIRTUAL_imagenet256_labeled.npz`) and others do not, and are taken for statistics of Inception.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.io import replacing
from common.metrics.features import Extractor
from common.metrics.fid import Statistics

SUFFIX = ".npz"


def write_statistics(path: Path, mean: Tensor, covariance: Tensor, record: dict[str, Any]) -> None:
    """Write `mu`, `sigma`, `num_images`, `record` (JSON) and `hash` of the others as .npz."""
    mu, sigma, text = mean.numpy(), covariance.numpy(), json.dumps(record)
    with replacing(path) as file:
        np.savez(
            file,
            mu=mu,
            sigma=sigma,
            num_images=record["images"],
            record=text,
            hash=_hash(mu, sigma, text),
        )


def read_statistics(
    path: str | Path, extractor: Extractor
) -> tuple[Statistics, dict[str, Any], list[str]]:
    """The statistics in an .npz file, a record of what made them, and what a reader must know.

    Raises:
        UserError: it is missing, damaged or of another kind, or another extractor made it.
    """
    arrays = _read_arrays(Path(path))
    mu, sigma, width = arrays["mu"], arrays["sigma"], extractor.width
    if mu.shape != (width,) or sigma.shape != (width, width):
        raise UserError(
            f"{path}: found mu {list(mu.shape)} and sigma {list(sigma.shape)}, expected [{width}] "
            f"and [{width}, {width}] for --extractor {extractor.name}"
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(f"{path}: found values that are not finite numbers, expected finite ones")
    record: dict[str, Any] = {"kind": "statistics", "file": str(path), "sha256": _sha256(path)}
    warnings = []
    if "record" in arrays:
        made = _own_record(path, arrays)
        by = made["extractor"]
        if (by["name"], by["weights"]) != (extractor.name, extractor.weights):
            raise UserError(
                f"{path}: found statistics of extractor {by['name']} (weights {by['weights']}), "
                f"expected those of {extractor.name} ({extractor.weights}), the one given"
            )
        record |= made
        warnings += made["warnings"]
    elif extractor.kind != "inception":
        raise UserError(
            f"{path}: does not say which extractor made it, which is Inception for all that is "
            f"known; expected --extractor inception, found {extractor.name}"
        )
    else:
        warnings.append(f"{path} does not say what made it: taken for statistics of Inception")
    try:
        mean, covariance = (torch.from_numpy(a.astype(np.float64)) for a in (mu, sigma))
        statistics = Statistics.from_covariance(mean, covariance)
    except ValueError as error:
        raise UserError(f"{path}: found sigma {error}, expected a covariance matrix") from None
    return statistics, record, warnings


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected statistics, .npz with mu and sigma")
    try:
        with np.load(path, allow_pickle=False) as file:
            # ADM's files hold pictures too, which are not read
            names = [k for k in ("mu", "sigma", "record", "hash") if k in file.files]
            arrays = {name: file[name] for name in names}
            found = file.files
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise UserError(f"{path}: not a readable .npz file ({error})") from None
    if not {"mu", "sigma"} <= arrays.keys():
        raise UserError(f"{path}: found {', '.join(found) or 'nothing'}, expected mu and sigma")
    for name in ("mu", "sigma"):
        if arrays[name].dtype.kind != "f":
            raise UserError(f"{path}: found {name} of {arrays[name].dtype}, expected floats")
    return arrays


def _own_record(path: str | Path, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    text = str(arrays["record"])
    if str(arrays.get("hash")) != _hash(arrays["mu"], arrays["sigma"], text):
        raise UserError(f"{path}: damaged or changed; expected the hash that it was written with")
    return json.loads(text)


def _hash(mu: np.ndarray, sigma: np.ndarray, text: str) -> str:
    return hashlib.sha256(mu.tobytes() + sigma.tobytes() + text.encode()).hexdigest()


def _sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
