"""The flow head: a small MLP that draws the next column token, given the transformer's vector.

Shapes: N tokens, C token channels, D condition width, W head width.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generator import flow

FREQUENCIES = 256


def sinusoids(t: Tensor, channels: int = FREQUENCIES) -> Tensor:
    """Cosines, then sines, of times t [N] in (0, 1] → [N, channels], in float32."""
    half = channels // 2
    scale = -math.log(10000.0) / half
    frequencies = torch.exp(scale * torch.arange(half, device=t.device, dtype=torch.float32))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimeEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(FREQUENCIES, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        """Times [N] → [N, W], in float32 under autocast too: in bfloat16 neighbouring times of a
        solver could not be told apart."""
        kind = t.device.type
        autocast = torch.amp.is_autocast_available(kind)  # not on "meta"
        with torch.autocast(kind, enabled=False) if autocast else nullcontext():
            return self.fc2(F.silu(self.fc1(sinusoids(t))))


class ResidualBlock(nn.Module):
    """x + gate · MLP(LN(x) · (1 + scale) + shift)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        shift, scale, gate = modulation.chunk(3, dim=-1)
        y = self.norm(x) * (1 + scale) + shift
        return x + gate * self.fc2(F.silu(self.fc1(y)))


class FlowHead(nn.Module):
    """Velocity of a noisy token at a time, under a condition; `generator.drawing` follows it.

    Args:
        channels: C, of a token.
        condition: D, of the transformer's vector.
        width, depth: W and the number of residual blocks.
    """

    def __init__(self, channels: int, condition: int, width: int, depth: int) -> None:
        super().__init__()
        self.token_in = nn.Linear(channels, width)
        self.time = TimeEmbedding(width)
        self.condition_in = nn.Linear(condition, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation_out = nn.Linear(width, 2 * width)
        self.token_out = nn.Linear(width, channels)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Velocity [N, C] of noisy tokens [N, C] at times [N] under conditions [N, D]."""
        return self.modulated(x, self.modulate(self.time(t) + self.condition_in(condition)))

    def loss(self, x0: Tensor, condition: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Flow-matching loss of tokens [N, C], one value a token, [N]; t in [0, 1) and noise
        [N, C] are the draws."""
        t = flow.training_times(t)
        return flow.velocity_loss(self(flow.path(x0, noise, t), t, condition), x0, noise)

    @property
    def modulation_layers(self) -> list[nn.Linear]:
        """One a block, W → 3W, and that of the output, W → 2W."""
        return [*(block.modulation for block in self.blocks), self.modulation_out]

    @property
    def modulated_width(self) -> int:
        """Values that modulate one token at one time."""
        return sum(layer.out_features for layer in self.modulation_layers)

    def modulate(self, y: Tensor) -> list[Tensor]:
        """[..., W] → what each block is modulated by, [..., 3W], and the output, [..., 2W]."""
        y = F.silu(y)
        return [layer(y) for layer in self.modulation_layers]

    def modulated(self, x: Tensor, modulations: list[Tensor]) -> Tensor:
        """Velocity [N, C] of noisy tokens [N, C]; modulations as `modulate` gives them."""
        x = self.token_in(x)  # [N, W]
        for block, modulation in zip(self.blocks, modulations[:-1], strict=True):
            x = block(x, modulation)  # [N, W]
        shift, scale = modulations[-1].chunk(2, dim=-1)
        return self.token_out(self.norm_out(x) * (1 + scale) + shift)  # [N, C]
