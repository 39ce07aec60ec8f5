"""The plain sampler: nothing kept, nothing shared; the definition of what sampling gives.

For every column the whole transformer reads all columns so far, and the head computes everything
again at every step.

Shapes: B batch, L columns, C token channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from generator.model import Generator


@torch.no_grad()
def sample_plainly(
    model: Generator,
    labels: Tensor,
    noise: Tensor,
    scales: list[float],
    steps: int,
    prefix: Tensor | None = None,
) -> Tensor:
    """Tokens [B, L, C] from noise [B, L, C], with a guidance scale for every column."""
    tokens = noise[:, :0] if prefix is None else prefix
    nobody = torch.full_like(labels, model.no_class)
    for column in range(tokens.shape[1], noise.shape[1]):
        conditional = model.hidden(tokens, model.read_classes(labels))[:, -1]
        unconditional = model.hidden(tokens, model.read_classes(nobody))[:, -1]
        x = noise[:, column]
        for i in range(steps, 0, -1):
            t = torch.full((len(x),), i / steps)
            velocity = model.head(x, t, unconditional)
            velocity = velocity + scales[column] * (model.head(x, t, conditional) - velocity)
            x = x - velocity / steps
        tokens = torch.cat([tokens, x[:, None]], dim=1)
    return tokens
