"""Pretrained weight files: which there are, where they come from and where they lie.

Nothing here downloads: `scripts/download_weights.py` does, when its user starts it.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError

FOLDER_VARIABLE = "EQUIVARIANT_WEIGHTS"
FORMATS = (".safetensors", ".pth")  # a file may lie there in either, under the same stem
LOSS_KEY = "model.params.lossconfig.params"
AUTHORS_HUB = "UmiSonoda16/EquivariantModeling"


@dataclass(frozen=True)
class WeightFile:
    """A file of weights, its name in the weights folder, and where it comes from."""

    name: str
    what: str  # the network and what it is for
    without: str = ""  # how to do without it
    hub: str = ""  # its Hugging Face repository, a slash and its name there
    url: str = ""  # of files that come from elsewhere
    sha256: str = ""  # the first digits

    @property
    def source(self) -> str:
        """Where it comes from, for a person to read and to follow."""
        repository, _, name = self.hub.rpartition("/")
        return self.url or f"https://huggingface.co/{repository}/resolve/main/{name}"


FILES: dict[str, WeightFile] = {
    "vgg16": WeightFile(
        "vgg16-397923af.pth",
        "VGG16 trained on ImageNet, the features of LPIPS, 553 MB",
        f"{LOSS_KEY}.perceptual_weight=0",
        url="https://download.pytorch.org/models/vgg16-397923af.pth",
        sha256="397923af",
    ),
    "dino": WeightFile(
        "vit_small_patch16_224.dino.safetensors",
        "DINO ViT-S/16, the features of the discriminator, 87 MB",
        f"{LOSS_KEY}.disc_type=patchgan",
        hub="timm/vit_small_patch16_224.dino/model.safetensors",
    ),
    "dinov2": WeightFile(
        "vit_base_patch14_dinov2.lvd142m.safetensors",
        "DINOv2 ViT-B/14, what the semantic decoder is aligned with, 346 MB",
        f"{LOSS_KEY}.semantic_loss_w=0",
        hub="timm/vit_base_patch14_dinov2.lvd142m/model.safetensors",
    ),
    "inception": WeightFile(
        "weights-inception-2015-12-05-6726825d.pth",
        "Inception v3, the features of FID and Inception Score, 96 MB",
        "--extractor random, whose figures are no FID",
        url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
        sha256="6726825d",
    ),
    "tokenizer": WeightFile(
        "tokenizer.ckpt",
        "the authors' 256-px tokenizer",
        "model.params.ckpt_path=logs/<run>/checkpoints/last.ckpt, a tokenizer of your own",
        hub=f"{AUTHORS_HUB}/tokenizer.ckpt",
    ),
    "places_large": WeightFile(
        "places_large.ckpt",
        "the authors' generator of Places, large_model",
        "--resume runs/<run>, a generator of your own",
        hub=f"{AUTHORS_HUB}/places_large.ckpt",
    ),
}


def folder(weights_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where weights lie."""
    return Path(weights_dir or os.environ.get(FOLDER_VARIABLE) or "pretrained_models")


def present(file: WeightFile, weights_dir: str | os.PathLike[str] | None = None) -> Path | None:
    """Where a file lies, or None; in the format of its name if in two."""
    listed = folder(weights_dir) / file.name
    return next((p for p in (listed, *map(listed.with_suffix, FORMATS)) if p.is_file()), None)


def find(key: str, weights_dir: str | os.PathLike[str] | None = None) -> Path:
    """The file of `key`, one of `FILES`; a UserError tells how to get or to do without it."""
    file = FILES[key]
    path = present(file, weights_dir)
    if path is None:
        there = folder(weights_dir).absolute()
        raise UserError(
            f"{file.name}: missing in {there} ({file.what}); fetch it with "
            f"`python scripts/download_weights.py {key} --weights_dir {there}` ({file.source}), "
            f"or do without: {file.without}"
        )
    return path
