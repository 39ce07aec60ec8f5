"""Attention with rotary positions: of tokens among themselves, and to the tokens of a condition.

Shapes: B batch, L tokens, M tokens attended to, D width, N heads, d = D/N.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

KeysValues = tuple[Tensor, Tensor]


def rotation(positions: Tensor, channels: int, base: float = 10000.0) -> Tensor:
    """Rotary position embedding (Su et al. 2021): cosines and sines of positions [L] →
    [2, L, d/2], float32 whatever the model's precision."""
    exponents = torch.arange(0, channels, 2, device=positions.device, dtype=torch.float32)
    angles = positions.float()[:, None] * base ** (-exponents / channels)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair of neighbouring channels of x [..., L, d] by its position's angle."""
    cos, sin = rotation.to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


class SelfAttention(nn.Module):
    """Heads over tokens, with rotary queries and keys."""

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
        """The last L of M tokens, [B, L, D], from q [B, N, L, d], k and v [B, N, M, d], mask [L, M]
        and the `rotation` of all M; a shift of their positions changes nothing."""
        q, k = rotate(q, rotation[:, -q.shape[2] :]), rotate(k, rotation)
        dropout = self.attn_dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.proj_dropout(self.proj(rearrange(x, "b n l d -> b l (n d)")))


class CrossAttention(nn.Module):
    """Heads of tokens over condition tokens; queries are rotary, keys have no position."""

    def __init__(self, width: int, heads: int, attn_dropout: float, proj_dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attn_dropout = attn_dropout
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        self.proj_dropout = nn.Dropout(proj_dropout)

    def keys_values(self, tokens: Tensor) -> KeysValues:
        """Condition tokens [B, M, D] → keys and values, each [B, N, M, d]."""
        return self._split(self.k(tokens)), self._split(self.v(tokens))

    def forward(self, x: Tensor, keys_values: KeysValues, rotation: Tensor) -> Tensor:
        q = rotate(self._split(self.q(x)), rotation)
        dropout = self.attn_dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, *keys_values, dropout_p=dropout)
        return self.proj_dropout(self.proj(rearrange(x, "b n l d -> b l (n d)")))

    def _split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b l (n d) -> b n l d", n=self.heads)
