"""PatchGAN: a discriminator of overlapping patches."""

from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class BatchNorm(nn.BatchNorm2d):
    """Batch norm with the statistics of all processes, which hold equally many images each and,
    in training, call it together. `nn.SyncBatchNorm` does the same, but on GPUs only."""

    def forward(self, x: Tensor) -> Tensor:
        world = dist.get_world_size() if dist.is_initialized() else 1
        if world == 1 or not self.training:
            return super().forward(x)
        variance, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
        # in float64, because the subtraction below cancels digits
        variance, mean = variance.double(), mean.double()
        mean, square = all_reduce(torch.stack([mean, variance + mean.square()])) / world
        variance = square - mean.square()
        with torch.no_grad():
            count = world * (x.numel() // x.shape[1])
            unbiased = variance * (count / (count - 1))
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.float(), self.momentum)
            self.running_var.lerp_(unbiased.float(), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt().float()
        mean, scale, bias = (v[:, None, None] for v in (mean.float(), scale, self.bias))
        return ((x - mean) * scale + bias).to(x.dtype)


class PatchGAN(nn.Module):
    """Judges overlapping patches: images [B, 3, H, W] → logits [B, 1, h', w'] (Isola et al. 2017).

    `width` channels after the first layer, doubled by each further one up to eightfold; `layers`
    strided ones follow it: with three, a patch has 70 pixels.
    """

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        self.least = 3 * 2**layers  # pixels of a side, for a logit to be left
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        stack: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for i, (below, above) in enumerate(pairwise(widths), start=1):
            stride = 2 if i < layers else 1
            stack.append(nn.Conv2d(below, above, 4, stride, padding=1, bias=False))
            stack += [BatchNorm(above), nn.LeakyReLU(0.2)]
        self.stack = nn.Sequential(*stack, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        for module in self.stack:
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                nn.init.normal_(module.weight, float(isinstance(module, BatchNorm)), 0.02)

    def forward(self, images: Tensor) -> Tensor:
        return self.stack(images)
