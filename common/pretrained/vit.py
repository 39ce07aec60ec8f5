"""Vision transformers pretrained as DINO and DINOv2, and the tokens that enter their blocks.

Shapes: B batch, H W pixels, N patches, D width.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from common.checkpoint import load, load_weights
from common.pretrained.files import FILES, find

# Added to the new size before it is divided by the old one, as in DINOv2's own code.
POSITION_OFFSET = 0.1


def vision_transformer(key: str, weights_dir: str | os.PathLike[str] | None = None) -> Any:
    """The pretrained transformer of timm that `pretrained.FILES` lists as `key`.

    Raises:
        UserError: its file is missing, damaged or of another network.
    """
    import timm  # takes seconds, which a run without such a network need not spend

    path = find(key, weights_dir)
    name = str(FILES[key].timm)
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


def resize_positions(table: Tensor, rows: int, columns: int, smooth: bool = False) -> Tensor:
    """Position embeddings [1, 1 + n², D] of a class token and a square → of another grid.

    Bicubic: `smooth` with a filter where the grid shrinks, as in timm; else without one and a
    little off the centre, as in DINOv2's own code.
    """
    side = round((table.shape[1] - 1) ** 0.5)
    if rows == columns == side:
        return table
    grid = table[:, 1:].mT.unflatten(2, (side, side))  # [1, D, n, n]
    if smooth:
        grid = F.interpolate(grid, (rows, columns), mode="bicubic", antialias=True)
    else:
        scales = tuple((new + POSITION_OFFSET) / side for new in (rows, columns))
        grid = F.interpolate(grid, scale_factor=scales, mode="bicubic")  # [1, D, rows, columns]
    return torch.cat([table[:, :1], grid.flatten(2).mT], 1)
