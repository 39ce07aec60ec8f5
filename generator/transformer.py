"""The causal transformer: the tokens of the condition are read first, then those of the image.

Condition tokens never attend to anything, so a layer's keys and values of them depend on the
condition alone; they are computed once and handed to the image's tokens.

Shapes: B batch, L columns, M columns attended to, K condition tokens, D width, N heads, d = D/N.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

KeysValues = tuple[Tensor, Tensor]


class Rotations(NamedTuple):
    """Rotations of positions, [2, L, d/2] each: for attention among columns, which sees only
    their differences, and for the queries to the context, which see the positions."""

    columns: Tensor
    context: Tensor


def rotation(positions: Tensor, channels: int) -> Tensor:
    """Rotary position embedding (Su et al. 2021): cosines and sines of positions [L], or [L, A]
    along axes that share the channels → [2, L, d/2], float32 whatever the model's precision."""
    step = 2 * positions.shape[1:].numel()
    exponents = torch.arange(0, channels, step, device=positions.device, dtype=torch.float32)
    angles = (positions.float()[..., None] * 10000.0 ** (-exponents / channels)).flatten(1)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair of neighbouring channels of x [..., L, d] by its position's angle."""
    cos, sin = rotation.to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


class SelfAttention(nn.Module):
    """Attention among columns, with rotary queries and keys."""

    def __init__(self, width: int, heads: int, attn_dropout: float, proj_dropout: float) -> None:
        super().__init__()
        self.heads, self.attn_dropout = heads, attn_dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.proj_dropout = nn.Dropout(proj_dropout)

    def forward(
        self, x: Tensor, rotation: Tensor, mask: Tensor | None, past: KeysValues | None = None
    ) -> tuple[Tensor, KeysValues]:
        """x [B, L, D], the last L of M columns → [B, L, D], and the keys and values of all M,
        [B, N, M, d], not rotated. `past` are those of the columns before, mask is [L, M], and a
        shift of all M positions, whose `rotation` is given, changes nothing."""
        q, k, v = rearrange(self.qkv(x), "b l (three n d) -> three b n l d", three=3, n=self.heads)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        q, turned = rotate(q, rotation[:, -q.shape[2] :]), rotate(k, rotation)
        dropout = self.attn_dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, turned, v, attn_mask=mask, dropout_p=dropout)
        return self.proj_dropout(self.proj(rearrange(x, "b n l d -> b l (n d)"))), (k, v)


class CrossAttention(nn.Module):
    """Attention to the condition; queries are rotary, keys have no position."""

    def __init__(self, width: int, heads: int, attn_dropout: float, proj_dropout: float) -> None:
        super().__init__()
        self.heads, self.attn_dropout = heads, attn_dropout
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)
        self.proj_dropout = nn.Dropout(proj_dropout)

    def keys_values(self, tokens: Tensor) -> KeysValues:
        """Condition tokens [B, K, D] → keys and values, each [B, N, K, d]."""
        return self._split(self.k(tokens)), self._split(self.v(tokens))

    def forward(self, x: Tensor, keys_values: KeysValues, rotation: Tensor) -> Tensor:
        q = rotate(self._split(self.q(x)), rotation)
        dropout = self.attn_dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, *keys_values, dropout_p=dropout)
        return self.proj_dropout(self.proj(rearrange(x, "b n l d -> b l (n d)")))

    def _split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b l (n d) -> b n l d", n=self.heads)


class MLP(nn.Module):
    def __init__(self, width: int, ratio: float, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, int(width * ratio))
        self.fc2 = nn.Linear(int(width * ratio), width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))


class Layer(nn.Module):
    """Columns attend to columns, then to their condition; all tokens pass one MLP."""

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, attn_dropout: float, proj_dropout: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = SelfAttention(width, heads, attn_dropout, proj_dropout)
        self.cross_norm = nn.LayerNorm(width, eps=1e-5)
        self.context_norm = nn.LayerNorm(width, eps=1e-5)
        self.cross_attention = CrossAttention(width, heads, attn_dropout, proj_dropout)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width, mlp_ratio, proj_dropout)

    def read_context(self, tokens: Tensor) -> tuple[KeysValues, Tensor]:
        """Condition tokens [B, K, D] → their keys and values, and the next layer's tokens."""
        keys_values = self.cross_attention.keys_values(self.context_norm(tokens))
        return keys_values, tokens + self.mlp(self.norm2(tokens))

    def forward(
        self,
        x: Tensor,
        context: KeysValues,
        rotations: Rotations,
        mask: Tensor | None,
        past: KeysValues | None = None,
    ) -> tuple[Tensor, KeysValues]:
        """The next L columns [B, L, D], and the keys and values of all M so far; `past`, those of
        earlier ones, are not rotated: a long run needs no large positions. `rotations` are of M
        columns and of L queries to the context, mask is [L, M]."""
        y, keys_values = self.attention(self.norm1(x), rotations.columns, mask, past)
        x = x + y  # [B, L, D]
        x = x + self.cross_attention(self.cross_norm(x), context, rotations.context)
        return x + self.mlp(self.norm2(x)), keys_values


@dataclass(frozen=True)
class Context:
    """What the columns see of their condition."""

    keys_values: list[KeysValues]  # of every layer, each [B, N, K, d]
    last: Tensor  # the last condition token after all layers, [B, D]; it predicts column 0

    def select(self, index: Tensor) -> "Context":
        """The context of rows `index` [B'], for a batch in which conditions repeat."""
        return Context([(k[index], v[index]) for k, v in self.keys_values], self.last[index])
