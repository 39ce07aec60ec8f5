"""Feature extractors: Inception v3, as published or with random weights.

Shapes: B images, H W pixels, D features, K classes.
"""

import hashlib
import importlib.metadata
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from common import checkpoint
from common.errors import UserError
from common.precision import full_float32
from common.pretrained.files import FILES, find
from common.seeding import normal

EXTRACTORS = "inception, random or random:SEED"


@dataclass(frozen=True)
class Extractor:
    """A network in full float32, and what a record must say of it: `name` (`inception`, or
    `random:SEED`, whose figures are never called FID), `weights` (their hash), `file`, and whether
    that is `verified` to be the published one."""

    network: nn.Module  # uint8 [B, 3, H, W] → float32 [B, D + K]
    width: int  # D, features for distances
    classes: int  # K, logits for the Inception Score
    device: torch.device
    about: dict[str, Any]

    @property
    def name(self) -> str:
        return self.about["name"]

    @property
    def is_random(self) -> bool:
        return self.name.startswith("random")

    @torch.inference_mode()
    def __call__(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """Features and logits [B, D + K] on its device of uint8 images [B, 3, H, W], or of
        several [3, H, W] whose sizes differ."""
        if not isinstance(images, Tensor):
            return torch.cat([self(image[None]) for image in images])
        with full_float32():
            return self.network(images.to(self.device, non_blocking=True))


def load_extractor(
    name: str,
    weights_dir: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
) -> Extractor:
    """The extractor of this name (`EXTRACTORS`; `random` is `random:0`), from a folder of weights.

    Raises:
        UserError: an unknown name, or weights that are missing, damaged or others.
    """
    kind, colon, seed = name.partition(":")
    network, about = Inception(), {"name": name, "file": None, "verified": True}
    if name == "inception":
        path, published = find("inception", weights_dir), FILES["inception"]
        about |= {"file": path.name, "verified": path.name == published.name}
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if about["verified"] and not digest.startswith(published.sha256):
            raise UserError(f"{path}: found SHA-256 {digest}, expected {published.sha256}...")
        network.fill(checkpoint.load(path), path)
    elif kind == "random" and (seed.isdigit() or not colon):
        about["name"] = f"random:{int(seed or 0)}"
        network.fill(random_weights(int(seed or 0)), name)
    else:
        raise UserError(f"--extractor: found {name!r}, expected {EXTRACTORS}")
    about["resize"] = "299 x 299, bilinear as in TensorFlow 1"
    about["library"] = f"torch-fidelity {importlib.metadata.version('torch-fidelity')}"
    about["weights"] = checkpoint.weights_hash(network.state_dict())
    network.eval().requires_grad_(False).to(device)
    return Extractor(network, 2048, 1008, torch.device(device), about)


class Inception(FeatureExtractorInceptionV3):
    """The Inception v3 of the first FID, as torch-fidelity has it; weights are not set yet.

    Its own constructor would download weights, or read them from a file in a way that can run
    code; `fill` does it instead.
    """

    def __init__(self) -> None:
        nothing = io.BytesIO()
        torch.save({}, nothing)
        nothing.seek(0)
        with torch.device("meta"):
            super().__init__("inception-v3-compat", ["2048", "logits_unbiased"], nothing)
        self.to_empty(device="cpu")

    def load_state_dict(self, state: Mapping[str, Any], *more: Any, **options: Any) -> Any:
        return super().load_state_dict(state or self.state_dict(), *more, **options)

    def fill(self, weights: Mapping[str, Tensor], source: object) -> None:
        """Load weights, with or without the counters that only training reads."""
        counters = (k for k in self.state_dict() if k.endswith("num_batches_tracked"))
        state = {k: torch.tensor(0) for k in counters} | dict(weights)
        checkpoint.load_weights(self, state, source)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] → [B, 2048 + 1008]."""
        return torch.cat(super().forward(images), dim=1)


def random_weights(seed: int) -> dict[str, Tensor]:
    """Weights of `Inception` that are the same everywhere: normal, so scaled that the size of the
    features is kept from layer to layer (He et al. 2015)."""
    weights = {}
    for name, tensor in Inception().state_dict().items():
        if name.endswith(("conv.weight", "fc.weight")):
            noise = normal(seed, "extractor", name, shape=tuple(tensor.shape))
            # logits spread as widely as it takes for classes to differ
            weights[name] = noise * (1 if name == "fc.weight" else (2 / noise[0].numel()) ** 0.5)
        else:
            keep = name.endswith(("bn.weight", "running_var"))
            weights[name] = torch.ones_like(tensor) if keep else torch.zeros_like(tensor)
    return weights
