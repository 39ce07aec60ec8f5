"""LPIPS: how different two images look (Zhang et al. 2018, version 0.1 on VGG16).

Shapes: B batch, H W pixels, C channels, h w positions of a feature map.
"""

import os
from pathlib import Path

import torch
import torchmetrics
from torch import Tensor, nn
from torchvision.models import vgg16

from common.checkpoint import load, load_weights
from common.pretrained.files import find
from common.pretrained.frozen import Frozen, imagenet_scale

TAPS = (3, 8, 15, 22, 29)  # the rectifiers 1_2, 2_2, 3_3, 4_3 and 5_3 among the features
WIDTHS = (64, 128, 256, 512, 512)


class LPIPS:
    """The distance of images from their reference; its gradient reaches the images alone.

    A UserError says which file is missing in `weights_dir`, damaged or of another network.
    """

    def __init__(self, weights_dir: str | os.PathLike[str] | None = None) -> None:
        network = _Distance()
        path = find("vgg16", weights_dir)
        # the file holds the classifier too
        weights = {k[9:]: v for k, v in load(path).items() if k.startswith("features.")}
        load_weights(network.features, weights, path)
        path = Path(torchmetrics.__file__).parent / "functional/image/lpips_models/vgg.pth"
        weights = {k.split(".")[0].removeprefix("lin"): v for k, v in load(path).items()}
        load_weights(network.heads, weights, path)
        self.network = Frozen(network)

    def __call__(self, images: Tensor, reference: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] twice, of 16 pixels or more → [B], from 0 (equal) up."""
        return self.network(images, reference)


class _Distance(nn.Module):
    """Squared differences of the features' directions, weighted by channel, summed over taps."""

    def __init__(self) -> None:
        super().__init__()
        with torch.device("meta"):  # the classifier beside the features is large
            features = vgg16(weights=None, init_weights=False).features[: TAPS[-1] + 1]
        self.features = features.to_empty(device="cpu")
        self.heads = nn.ParameterList(torch.empty(1, width, 1, 1) for width in WIDTHS)

    def forward(self, images: Tensor, reference: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.directions(reference)
        distances = [
            ((found - goal).square() * head).sum(1).mean((1, 2))  # [B]
            for found, goal, head in zip(self.directions(images), wanted, self.heads, strict=True)
        ]
        return torch.stack(distances).sum(0)

    def directions(self, images: Tensor) -> list[Tensor]:
        """The features of each tap, [B, C, h, w] of length 1 over the channels, in float32."""
        x, found = imagenet_scale(images), []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in TAPS:
                wide = x.float()
                # the constant keeps the gradient finite where no channel answers
                found.append(wide * (wide.square().sum(1, keepdim=True) + 1e-8).rsqrt())
        return found
