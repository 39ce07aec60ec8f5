"""The flow head: a small MLP that draws the next column token, given the transformer's vector.

Shapes: N tokens, C token channels, D condition width, W head width, S solver steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generator import flow

FREQUENCIES = 256
MODULATION_BYTES = 256 * 2**20


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
        """Times [N] → [N, W]."""
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
    """Velocity of a noisy token at a time, under a condition; exposes `loss` and `sample`.

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
        return self._modulated(x, self._modulate(self.time(t) + self.condition_in(condition)))

    def loss(self, x0: Tensor, condition: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Flow-matching loss of tokens [N, C], one value a token, [N]; t in [0, 1) and noise
        [N, C] are the draws."""
        t = flow.training_times(t)
        return flow.velocity_loss(self(flow.path(x0, noise, t), t, condition), x0, noise)

    def velocity(self, condition: Tensor, times: Sequence[float]) -> flow.Velocity:
        """v(x, t) under conditions [N, D], for the given times only.

        The modulations of many times come from one product each, up to `MODULATION_BYTES` at
        once: the head's modulation weights, 3/5 of all, are read once instead of once a time.
        """
        bytes_a_time = 4 * len(condition) * self.modulated_width
        chunk = max(1, MODULATION_BYTES // bytes_a_time)
        position = {t: i for i, t in enumerate(times)}
        condition = self.condition_in(condition)  # [N, W]
        held: dict[int, list[Tensor]] = {}

        def modulations(i: int) -> list[Tensor]:
            if i // chunk not in held:
                held.clear()
                some = times[i // chunk * chunk :][:chunk]
                t = torch.tensor(some, device=condition.device)  # [S]
                held[i // chunk] = self._modulate(self.time(t)[:, None] + condition)
            return [m[i % chunk] for m in held[i // chunk]]  # [N, 3W]

        return lambda x, t: self._modulated(x, modulations(position[t]))

    def sample(
        self,
        noise: Tensor,
        condition: Tensor,
        unconditional: Tensor | None = None,
        guidance: float = 1.0,
        steps: int = 100,
    ) -> Tensor:
        """Tokens [N, C] drawn from noise [N, C] under conditions [N, D] by Euler's method.

        With `unconditional` [N, D] both branches are followed from the same noise, and the
        velocity is guided: 1 is the conditional branch alone.
        """
        times = flow.euler_times(steps)
        if unconditional is None or guidance == 1.0:
            return flow.euler(self.velocity(condition, times), noise, times)
        both = self.velocity(torch.cat([condition, unconditional]), times)

        def velocity(x: Tensor, t: float) -> Tensor:
            return flow.guided(*both(x.repeat(2, 1), t).chunk(2), guidance)

        return flow.euler(velocity, noise, times)

    @property
    def modulation_layers(self) -> list[nn.Linear]:
        """One a block, W → 3W, and that of the output, W → 2W."""
        return [*(block.modulation for block in self.blocks), self.modulation_out]

    @property
    def modulated_width(self) -> int:
        """Values that modulate one token at one time."""
        return sum(layer.out_features for layer in self.modulation_layers)

    def _modulate(self, y: Tensor) -> list[Tensor]:
        """[..., W] → what each block is modulated by, [..., 3W], and the output, [..., 2W]."""
        y = F.silu(y)
        return [layer(y) for layer in self.modulation_layers]

    def _modulated(self, x: Tensor, modulations: list[Tensor]) -> Tensor:
        x = self.token_in(x)  # [N, W]
        for block, modulation in zip(self.blocks, modulations[:-1], strict=True):
            x = block(x, modulation)  # [N, W]
        shift, scale = modulations[-1].chunk(2, dim=-1)
        return self.token_out(self.norm_out(x) * (1 + scale) + shift)  # [N, C]
