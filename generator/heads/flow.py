"""The flow head: a small MLP trained by flow matching, which samples a token under a condition.

The path is straight, from data (t = 0) to noise (t = 1).

Shapes: N tokens, C token channels, D condition width, W head width, S solver times.
"""

import math
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.precision import full_float32
from generator.solvers import Solver, Velocity, guided

FREQUENCIES = 256
T_MIN = 1e-5
MODULATION_BYTES = 256 * 2**20


def sinusoids(t: Tensor) -> Tensor:
    """Cosines, then sines, of times t [N] in (0, 1] → [N, FREQUENCIES], in float32."""
    half = FREQUENCIES // 2
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


class ModulatedBlock(nn.Module):
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
    """Loss and samples of tokens [N, C], given the transformer's vectors [N, D].

    Each block is modulated by [..., 3W] of its own, and the output by [..., 2W].
    """

    def __init__(self, channels: int, condition: int, width: int, depth: int) -> None:
        super().__init__()
        self.token_in = nn.Linear(channels, width)
        self.time = TimeEmbedding(width)
        self.condition_in = nn.Linear(condition, width)
        self.blocks = nn.ModuleList(ModulatedBlock(width) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation_out = nn.Linear(width, 2 * width)
        self.token_out = nn.Linear(width, channels)

    def loss(self, x0: Tensor, condition: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Flow-matching loss [N] of tokens x0 [N, C] under conditions [N, D], with draws t [N] of
        [0, 1) and standard normal noise ε [N, C]: the squared error to the velocity ε − x_0 of the
        path x_t = t·ε + (1 − t)·x_0."""
        t = T_MIN + (1 - T_MIN) * t
        x = t[:, None] * noise + (1 - t[:, None]) * x0
        return (self(x, t, condition) - (noise - x0)).square().mean(dim=1)

    def sample(
        self,
        noise: Tensor,
        condition: Tensor,
        unconditional: Tensor | None,
        guidance: float,
        solver: Solver,
        times: Tensor,
    ) -> Tensor:
        """Tokens [N, C] from noise [N, C] under conditions [N, D], by following the flow.

        With `unconditional` vectors [N, D] the velocities of both branches are guided by the scale
        `guidance`. `times` are `embed_times(solver)`, the same for all samples.
        """
        if unconditional is None or guidance == 1.0:
            return solver.solve(self.velocity(condition, solver, times), noise)
        both = self.velocity(torch.cat([condition, unconditional]), solver, times)  # of 2N tokens
        return solver.solve(guided(both, guidance), noise)

    def embed_times(self, solver: Solver) -> Tensor:
        """The solver's times, embedded: [S, W]. They depend on neither token nor condition."""
        device = self.token_in.bias.device
        with full_float32():  # in ten bits, neighbouring times could hardly be told apart
            return self.time(torch.tensor(solver.asked, device=device))

    def velocity(self, condition: Tensor, solver: Solver, times: Tensor) -> Velocity:
        """v(x, t) under conditions [N, D], for the solver's times only, embedded in `times`; their
        modulations come from one product a layer, so that these weights, 3/5 of all, are read
        once instead of once a time (up to `MODULATION_BYTES`)."""
        condition = self.condition_in(condition)  # [N, W]
        width = sum(layer.out_features for layer in self.modulation_layers)
        many = max(1, MODULATION_BYTES // (4 * len(condition) * width))
        number = {t: i for i, t in enumerate(solver.asked)}
        held: dict[int, list[Tensor]] = {}

        def velocity(x: Tensor, t: float) -> Tensor:
            part, row = divmod(number[t], many)
            if part not in held:
                held.clear()
                some = times[part * many :][:many, None]  # [≤ many, 1, W]
                held[part] = self.modulate(some + condition)
            return self.modulated(x, [m[row] for m in held[part]])  # modulations [N, 3W]

        return velocity

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Velocity [N, C] of noisy tokens [N, C] at times [N] under conditions [N, D]."""
        return self.modulated(x, self.modulate(self.time(t) + self.condition_in(condition)))

    @property
    def modulation_layers(self) -> list[nn.Linear]:
        return [*(block.modulation for block in self.blocks), self.modulation_out]

    def modulate(self, y: Tensor) -> list[Tensor]:
        """Times and conditions, embedded [..., W] → all modulations."""
        y = F.silu(y)
        return [layer(y) for layer in self.modulation_layers]

    def modulated(self, x: Tensor, modulations: list[Tensor]) -> Tensor:
        """Velocity [N, C] of noisy tokens [N, C], modulated by what `modulate` gives."""
        x = self.token_in(x)  # [N, W]
        for block, modulation in zip(self.blocks, modulations[:-1], strict=True):
            x = block(x, modulation)  # [N, W]
        shift, scale = modulations[-1].chunk(2, dim=-1)
        return self.token_out(self.norm_out(x) * (1 + scale) + shift)  # [N, C]
