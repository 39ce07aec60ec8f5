"""Drawing tokens: the head's velocity, prepared for a solver's times, guided and followed.

Shapes: N tokens, C token channels, D condition width, W head width, S solver times.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.precision import full_float32
from generator.guidance import guided
from generator.heads.flow_head import FlowHead
from generator.solvers import Solver, Velocity

MODULATION_BYTES = 256 * 2**20


class Drawer:
    """Draws tokens from noise by following the head's flow.

    What depends on the solver's times alone is computed once. What depends on times and condition
    is computed once a token, ahead of the first step.

    Args:
        head: in evaluation mode, not changed while it is drawn from.
        solver: see `generator.solvers`.
    """

    def __init__(self, head: FlowHead, solver: Solver) -> None:
        self.head, self.solver = head, solver
        self.position = {t: i for i, t in enumerate(solver.asked)}
        device = head.token_in.bias.device
        with full_float32():  # in ten bits, neighbouring times could hardly be told apart
            self.times = head.time(torch.tensor(solver.asked, device=device))  # [S, W]

    def draw(
        self,
        noise: Tensor,
        condition: Tensor,
        unconditional: Tensor | None = None,
        guidance: float = 1.0,
    ) -> Tensor:
        """Tokens [N, C] from noise [N, C] under conditions [N, D].

        With `unconditional` [N, D] both branches are followed from the same noise, and the
        velocity is guided: 1 is the conditional branch alone.
        """
        if unconditional is None or guidance == 1.0:
            return self.solver.solve(self.velocity(condition), noise)
        both = self.velocity(torch.cat([condition, unconditional]))  # of 2N tokens
        return self.solver.solve(guided(both, guidance), noise)

    def velocity(self, condition: Tensor) -> Velocity:
        """v(x, t) under conditions [N, D], for the solver's times only.

        The modulations of many times come from one product each, up to `MODULATION_BYTES` at
        once: the head's modulation weights, 3/5 of all, are read once instead of once a time.
        """
        head = self.head
        condition = head.condition_in(condition)  # [N, W]
        many = max(1, MODULATION_BYTES // (4 * len(condition) * head.modulated_width))
        held: dict[int, list[Tensor]] = {}

        def modulations(i: int) -> list[Tensor]:
            part, row = divmod(i, many)
            if part not in held:
                held.clear()
                times = self.times[part * many :][:many, None]  # [≤ many, 1, W]
                held[part] = head.modulate(times + condition)
            return [m[row] for m in held[part]]  # [N, 3W]

        return lambda x, t: head.modulated(x, modulations(self.position[t]))
