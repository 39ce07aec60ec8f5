"""Vision transformers pretrained as DINO and DINOv2, and the tokens that enter their blocks.

Shapes: B batch, H W pixels, N patches, D width.
"""

import os
from typing import Any

import torch
from torch import Tensor

from common.checkpoint import load, load_weights
from common.pretrained.files import FILES, find


def vision_transformer(key: str, weights_dir: str | os.PathLike[str] | None = None) -> Any:
    """The pretrained transformer of timm that `pretrained.FILES` lists as `key`; a UserError where
    its file is missing, damaged or of another network."""
    import timm  # takes seconds, which a run without such a network need not spend

    path = find(key, weights_dir)
    name = FILES[key].timm
    network = timm.create_model(name, pretrained=False, num_classes=0, weight_init="skip")
    weights = load(path)
    weights.pop("mask_token", None)  # in DINOv2's first files; for its own training only
    load_weights(network, weights, path)
    return network


def embed(network: Any, images: Tensor, positions: Tensor) -> Tensor:
    """Tokens before the first block: [B, 3, H, W] → [B, 1 + N, D], the class token first."""
    patches = network.patch_embed.proj(images).flatten(2).mT  # [B, N, D]
    first = network.cls_token.expand(len(images), -1, -1)  # [B, 1, D]
    return torch.cat([first, patches], 1) + positions
