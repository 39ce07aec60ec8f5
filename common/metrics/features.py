"""Feature extractors: Inception v3, as published or with random weights.

Shapes: B images, H W pixels, D features, K classes.
"""

import hashlib
import importlib.metadata
import io
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from common import checkpoint
from common.errors import UserError
from common.precision import full_float32
from common.pretrained.files import FILES, find
from common.seeding import normal

EXTRACTORS = "inception, random or random:SEED"


class Extractor(FeatureExtractorInceptionV3):
    """The Inception v3 of the first FID, as torch-fidelity has it, in full float32.

    `about` is what a record must say of it: `name` (`inception`, or `random:SEED`, whose figures
    are never called FID), `weights` (their hash) and `file`, among others.
    """

    width = 2048  # D, features for distances; K logits for the Inception Score follow them

    def __init__(self) -> None:
        # The parent would download weights, or read them in a way that can run code.
        nothing = io.BytesIO()
        torch.save({}, nothing)
        nothing.seek(0)
        with torch.device("meta"):
            super().__init__("inception-v3-compat", ["2048", "logits_unbiased"], nothing)
        self.to_empty(device="cpu")
        self.about: dict[str, Any] = {}

    def load_state_dict(self, state: Mapping[str, Any], *more: Any, **options: Any) -> Any:
        return super().load_state_dict(state or self.state_dict(), *more, **options)

    @property
    def is_random(self) -> bool:
        return self.about["name"] != "inception"

    @torch.inference_mode()
    def forward(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """uint8 images [B, 3, H, W], or several [3, H, W] of different sizes → [B, D + K]."""
        if not isinstance(images, Tensor):
            return torch.cat([self(image[None]) for image in images])
        images = images.to(self.fc.weight.device, non_blocking=True)
        with full_float32():
            return torch.cat(super().forward(images), dim=1)


def load_extractor(
    name: str, weights_dir: str | os.PathLike[str] | None = None, device: torch.device | str = "cpu"
) -> Extractor:
    """The extractor of this name (`EXTRACTORS`; `random` is `random:0`), from a folder of weights;
    a UserError where it is unknown, or its weights are missing, damaged or others."""
    source, random = None, re.fullmatch(r"random(?::(\d+))?", name)
    if name == "inception":
        source, published = find(name, weights_dir), FILES[name]
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        if source.name == published.name and not digest.startswith(published.sha256):
            raise UserError(f"{source}: found SHA-256 {digest}, expected {published.sha256}...")
        weights = checkpoint.load(source)
    elif random:
        seed = int(random[1] or 0)
        name, weights = f"random:{seed}", random_weights(seed)
    else:
        raise UserError(f"--extractor: found {name!r}, expected {EXTRACTORS}")
    network = Extractor()
    counters = (k for k in network.state_dict() if k.endswith("num_batches_tracked"))
    zeros = {k: torch.tensor(0) for k in counters}  # which only training reads, and files may lack
    checkpoint.load_weights(network, zeros | weights, source or name)
    network.about = {
        "name": name,
        "weights": checkpoint.weights_hash(network.state_dict()),
        "file": source and source.name,
        "library": f"torch-fidelity {importlib.metadata.version('torch-fidelity')}",
    }
    return network.to(device)


def random_weights(seed: int) -> dict[str, Tensor]:
    """Weights of `Extractor` that are the same everywhere: normal, so scaled that the size of the
    features is kept from layer to layer (He et al. 2015)."""
    weights = {}
    for name, tensor in Extractor().state_dict().items():
        weights[name] = torch.zeros_like(tensor)
        if name.endswith(("bn.weight", "running_var")):
            weights[name] += 1
        elif name.endswith(("conv.weight", "fc.weight")):
            noise = normal(seed, "extractor", name, shape=tuple(tensor.shape))
            # logits spread as widely as it takes for classes to differ
            weights[name] = noise * (1 if name == "fc.weight" else (2 / noise[0].numel()) ** 0.5)
    return weights
