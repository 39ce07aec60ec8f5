"""Token layout: where the tokens of an image stand, and which of them each one sees.

The transformer, its KV cache and sampling take positions and mask from here alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import UserError


@dataclass(frozen=True)
class ColumnLayout:
    """Columns from left to right: column i stands at position i and sees i − window … i. An image
    has any number of them."""

    window: int  # earlier columns that a layer sees; 0: all

    def positions(self, count: int, first: int = 0, device: torch.device | None = None) -> Tensor:
        """Positions [L] of the tokens from number `first` on, or [L, A] along A axes."""
        return torch.arange(first, first + count, device=device)

    def mask(
        self, count: int, earlier: int = 0, device: torch.device | None = None
    ) -> Tensor | None:
        """[L, M + L], true where one of L tokens (row) sees one of them or of M before them; None:
        each sees all."""
        if count == 1 and (not self.window or earlier <= self.window):
            return None
        i = torch.arange(earlier + count, device=device)
        distance = i[earlier:, None] - i[None, :]
        return (distance >= 0) & ((distance <= self.window) if self.window else True)

    @property
    def held(self) -> slice:
        """Of all tokens so far, those whose keys and values a layer still needs."""
        return slice(-self.window if self.window else None, None)

    def reach(self, depth: int) -> int | None:
        """Tokens on which the next one depends at all through `depth` layers; None: all."""
        return depth * self.window + 1 if self.window else None

    def check(self, found: int | str, where: str) -> None:
        """Refuse images of a number of tokens that there cannot be."""


@dataclass(frozen=True)
class GridLayout(ColumnLayout):
    """A square grid in raster order: token i stands at row i // side and column i % side. An image
    is the whole grid: none begins or ends within it."""

    side: int

    def positions(self, count: int, first: int = 0, device: torch.device | None = None) -> Tensor:
        number = super().positions(count, first, device)
        return torch.stack([number // self.side, number % self.side], dim=1)

    def check(self, found: int | str, where: str) -> None:
        if found != self.side**2:
            raise UserError(f"{where}: found {found}, expected the {self.side**2} tokens of a grid")
