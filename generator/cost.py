"""What drawing a column has to read and to compute, whatever computes it.

Norms, activations, attention's few products and the class tokens, read once a run, are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from generator.drawing import MODULATION_BYTES
from generator.model import Generator
from generator.solvers import Solver


@dataclass(frozen=True)
class Work:
    """Products with weights.

    Args:
        weights: values of the weights.
        rows: vectors that each product is taken of.
        times: how often all this is done for one column.
    """

    weights: int
    rows: int
    times: int

    def seconds(self, bytes_a_value: int, bandwidth: float, rate: float) -> float:
        """The least time: weights read once each time at `bandwidth` bytes a second, or the
        arithmetic at `rate` operations a second, two for a multiply-add; the larger one."""
        reading = self.weights * bytes_a_value / bandwidth
        computing = 2 * self.weights * self.rows / rate
        return self.times * max(reading, computing)


def column_work(model: Generator, solver: Solver, rows: int) -> dict[str, Work]:
    """The parts of one column's work.

    Args:
        model: not prepared for sampling yet.
        solver: how its flow is followed.
        rows: B, or 2B with guidance.

    Returns:
        `transformer` (the new column through all layers), `modulations` (of all times at once,
        or of as many as fit into memory) and `steps` (the rest of the head).
    """
    head = model.head
    layers = [part for layer in model.layers for part in _of_columns(layer)]
    blocks = [part for block in head.blocks for part in (block.fc1, block.fc2)]
    times = len(solver.asked)
    together = min(times, max(1, MODULATION_BYTES // (4 * rows * head.modulated_width)))
    return {
        "transformer": Work(_weights([model.token_in, *layers]), rows, 1),
        "modulations": Work(
            _weights(head.modulation_layers), rows * together, math.ceil(times / together)
        ),
        "steps": Work(_weights([head.token_in, *blocks, head.token_out]), rows, solver.evaluations),
    }


def _of_columns(layer: nn.Module) -> list[nn.Linear]:
    """The linear layers that columns pass; class tokens alone pass the others."""
    own, cross = layer.attention, layer.cross_attention
    return [own.qkv, own.proj, cross.q, cross.proj, layer.mlp.fc1, layer.mlp.fc2]


def _weights(layers: Iterable[nn.Linear]) -> int:
    return sum(layer.weight.numel() for layer in layers)
