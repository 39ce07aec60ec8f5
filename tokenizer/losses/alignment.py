"""Alignment of the semantic decoder with a frozen DINOv2 (paper, tokenizer section)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.pretrained.frozen import Frozen, embed, imagenet_scale, vision_transformer


class Alignment:
    """Distance of a semantic map from the patch tokens of DINOv2 ViT-B/14, in `weights_dir`."""

    def __init__(self, weights_dir: str | None = None) -> None:
        network = _PatchTokens(vision_transformer("dinov2", weights_dir))
        self.channels: int = network.transformer.embed_dim
        self.features = Frozen(network)

    def loss(self, semantic_map: Tensor, images: Tensor) -> Tensor:
        """The squared error of a map [B, D, rows, columns], summed, divided by B: a scalar, whose
        gradient reaches the map alone."""
        with torch.no_grad():
            wanted = self.features(images, *semantic_map.shape[2:])
        return (semantic_map.float() - wanted).square().sum() / len(images)


class _PatchTokens(nn.Module):
    """Normalised patch tokens of images [B, 3, H, W] in [-1, 1]: [B, D, rows, columns], the images
    resized so that each token is one patch of 14 × 14 pixels."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer
        self._positions: dict[tuple[int, int, torch.device], Tensor] = {}  # [1, 1 + N, D] of grids

    def forward(self, images: Tensor, rows: int, columns: int) -> Tensor:
        height, width = self.transformer.patch_embed.proj.stride
        table = self.transformer.pos_embed
        grid = (rows, columns, table.device)
        if grid not in self._positions:
            from timm.layers import resample_abs_pos_embed  # timm takes seconds

            self._positions[grid] = resample_abs_pos_embed(table, [rows, columns])
        size = (rows * height, columns * width)
        x = F.interpolate(imagenet_scale(images), size, mode="bicubic")
        x = embed(self.transformer, x, self._positions[grid])  # [B, 1 + N, D]
        x = self.transformer.norm(self.transformer.blocks(x))  # [B, 1 + N, D]
        return x[:, 1:].mT.unflatten(2, (rows, columns)).float()  # [B, D, rows, columns]
