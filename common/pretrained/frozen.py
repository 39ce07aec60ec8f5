"""Pretrained networks that are used and never trained, the vision transformers DINO and DINOv2
among them.

Shapes: B batch, H W pixels, N patches, D width.
"""

import functools
import os
from typing import Any

import torch
from torch import Tensor, nn

from common.checkpoint import load, load_weights
from common.pretrained.files import FILES, find

# Of ImageNet's red, green and blue in [-1, 1]: 2 · (0.485, 0.456, 0.406) − 1 and
# 2 · (0.229, 0.224, 0.225). LPIPS scales its input by the same figures.
IMAGENET_MEAN = (-0.030, -0.088, -0.188)
IMAGENET_STD = (0.458, 0.448, 0.450)


class Frozen:
    """A network that its owner uses but does not own.

    No `nn.Module`, so that the network is in no `state_dict()`, `parameters()`, EMA copy or
    optimizer, and no `train()` reaches it. It goes to the device of its first input by itself.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval().requires_grad_(False)

    def __call__(self, x: Tensor, *more: Any) -> Any:
        if next(self.network.parameters()).device != x.device:
            with torch.inference_mode(False):  # or no gradient could ever pass through it
                self.network.to(x.device)
        return self.network(x, *more)


def imagenet_scale(images: Tensor) -> Tensor:
    """Images [B, 3, H, W] in [-1, 1] → float32, as all these networks take them."""
    mean, std = _statistics(images.device)
    return (images.float() - mean) / std


@functools.cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation in the scale of images, [3, 1, 1], sent to a device once."""
    with torch.inference_mode(False):  # the first to ask may be a validation, the next a training
        mean, std = (torch.tensor(v, device=device) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return mean[:, None, None], std[:, None, None]


def vision_transformer(key: str, weights_dir: str | os.PathLike[str] | None = None) -> Any:
    """The pretrained transformer that `pretrained.FILES` lists as `key`, in a file of its name in
    timm; a UserError where that is missing, damaged or of another network."""
    import timm  # takes seconds, which a run without such a network need not spend

    path = find(key, weights_dir)
    name = FILES[key].name.removesuffix(".safetensors")
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
