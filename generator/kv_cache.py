"""The transformer, fed columns as they come.

Shapes: B batch, L columns, C token channels, D width, M earlier columns that are held.
"""

from __future__ import annotations

import torch
from torch import Tensor

from generator.attention import KeysValues, window_mask
from generator.model import Generator
from generator.transformer import ClassMemory


class ColumnReader:
    """Holds the last `window` columns of each layer (window 0: all), so that a column costs the
    same however many came before it."""

    def __init__(
        self, model: Generator, memory: ClassMemory, last_position: int | None = None
    ) -> None:
        self.model = model
        self.memory = memory
        self.last_position = last_position
        self.forget(0)

    @property
    def reach(self) -> int | None:
        """Columns on which the next one depends at all; None: all of them."""
        window = self.model.config.window
        return len(self.model.layers) * window + 1 if window else None

    def forget(self, position: int) -> None:
        """Go on at a later position as if nothing stood before it."""
        self.position = position
        self.past: list[KeysValues | None] = [None] * len(self.model.layers)

    def first(self) -> Tensor:
        """The vector that predicts column 0, [B, D]."""
        return self.model.norm_out(self.memory.last)

    def read(self, tokens: Tensor) -> Tensor:
        """The next columns [B, L, C] → the vector that predicts the one after them, [B, D]."""
        model, window, length = self.model, self.model.config.window, tokens.shape[1]
        held = 0 if self.past[0] is None else self.past[0][0].shape[2]  # M
        mask = None  # one column sees all that is held
        if length > 1:
            mask = window_mask(held + length, window, tokens.device)[held:]  # [L, M+L]
        # Attention among columns sees only differences of positions: they count from the first
        # column that is held, and stay small in a run without end.
        among_columns = torch.arange(held + length, device=tokens.device)
        to_class = torch.arange(self.position, self.position + length, device=tokens.device)
        turns = model.turns(among_columns, to_class, self.last_position)
        x = model.norm_in(model.token_in(tokens))  # [B, L, D]
        for i, layer in enumerate(model.layers):
            class_kv = self.memory.keys_values[i]
            x, (k, v) = layer.step(x, class_kv, turns, mask, self.past[i])  # [B, L, D]
            keep = slice(-window if window else None, None)
            self.past[i] = (k[:, :, keep], v[:, :, keep])
        self.position += length
        return model.norm_out(x[:, -1])
