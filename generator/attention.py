"""Attention of column tokens: to the last few columns, and to their class.

Shapes: B batch, L columns, M columns or class tokens attended to, D width, N heads, d = D/N.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from generator.rope import rotate

KeysValues = tuple[Tensor, Tensor]


def window_mask(length: int, window: int, device: torch.device | None = None) -> Tensor:
    """[L, L], true where column i (row) sees column j: i − window ≤ j ≤ i; window 0: j ≤ i."""
    i = torch.arange(length, device=device)
    distance = i[:, None] - i[None, :]
    return (distance >= 0) & ((distance <= window) if window else True)


class SelfAttention(nn.Module):
    """Heads over columns with rotary queries and keys."""

    def __init__(self, width: int, heads: int, attn_dropout: float, proj_dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attn_dropout = attn_dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.proj_dropout = nn.Dropout(proj_dropout)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, L, D] → queries, keys and values, each [B, N, L, d], not rotated."""
        q, k, v = rearrange(self.qkv(x), "b l (three n d) -> three b n l d", three=3, n=self.heads)
        return q, k, v

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, rotation: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Of the last L of M columns: q [B, N, L, d], k and v [B, N, M, d], mask [L, M].

        `rotation` is that of M following positions; where they begin does not matter.
        """
        q, k = rotate(q, rotation[:, -q.shape[2] :]), rotate(k, rotation)
        dropout = self.attn_dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.proj_dropout(self.proj(rearrange(x, "b n l d -> b l (n d)")))  # [B, L, D]

    def forward(self, x: Tensor, rotation: Tensor, mask: Tensor) -> Tensor:
        return self.attend(*self.project(x), rotation, mask)


class CrossAttention(nn.Module):
    """Heads of columns over class tokens; queries are rotary, keys have no position."""

    def __init__(self, width: int, heads: int, attn_dropout: float, proj_dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attn_dropout = attn_dropout
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        self.proj_dropout = nn.Dropout(proj_dropout)

    def keys_values(self, class_tokens: Tensor) -> KeysValues:
        """Class tokens [B, M, D] → keys and values, each [B, N, M, d]."""
        return self._split(self.k(class_tokens)), self._split(self.v(class_tokens))

    def forward(self, x: Tensor, keys_values: KeysValues, rotation: Tensor) -> Tensor:
        q = rotate(self._split(self.q(x)), rotation)
        dropout = self.attn_dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, *keys_values, dropout_p=dropout)
        return self.proj_dropout(self.proj(rearrange(x, "b n l d -> b l (n d)")))

    def _split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b l (n d) -> b n l d", n=self.heads)
