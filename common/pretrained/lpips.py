"""LPIPS: how different two images look (Zhang et al. 2018, version 0.1 on VGG16).

The network is that of torchmetrics, which comes with its heads but would download its trunk.
"""

import os

from torch import Tensor
from torchmetrics.functional.image.lpips import _LPIPS

from common.checkpoint import load, load_weights
from common.pretrained.files import find
from common.pretrained.frozen import Frozen


class LPIPS:
    """The distance of images from their reference, which differentiates to the images; a UserError
    says which file is missing in `weights_dir`, damaged or of another network."""

    def __init__(self, weights_dir: str | os.PathLike[str] | None = None) -> None:
        path, network = find("vgg16", weights_dir), _LPIPS(net="vgg", pnet_rand=True)
        weights = load(path)  # of the classifier, too
        names = {k: f"features.{k.partition('.')[2]}" for k in network.net.state_dict()}
        found = {k: weights[name] for k, name in names.items() if name in weights}
        load_weights(network.net, found, path)
        self.network = Frozen(network)

    def __call__(self, images: Tensor, reference: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] twice, of 16 pixels or more → [B], from 0 (equal) up."""
        return self.network(images.float(), reference.float()).flatten()
