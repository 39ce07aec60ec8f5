"""The causal transformer: the tokens of the condition are read first, then those of the image.

Condition tokens never attend to anything, so a layer's keys and values of them depend on the
condition alone; they are computed once and handed to the image's tokens.

Shapes: B batch, L columns, K condition tokens, D width, N heads, d = D/N.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from generator.attention import CrossAttention, KeysValues, SelfAttention


@dataclass(frozen=True)
class Context:
    """What the columns see of their condition."""

    keys_values: list[KeysValues]  # of every layer, each [B, N, K, d]
    last: Tensor  # the last condition token after all layers, [B, D]; it predicts column 0

    def select(self, index: Tensor) -> "Context":
        """The context of rows `index` [B'], for a batch in which conditions repeat."""
        return Context([(k[index], v[index]) for k, v in self.keys_values], self.last[index])


class Rotations(NamedTuple):
    """Rotations of positions, [2, L, d/2] each: for attention among columns, which sees only
    their differences, and for the queries to the context, which see the positions."""

    columns: Tensor
    context: Tensor


class MLP(nn.Module):
    def __init__(self, width: int, ratio: float, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, int(width * ratio))
        self.fc2 = nn.Linear(int(width * ratio), width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(nn.functional.gelu(self.fc1(x)))
        return self.dropout(self.fc2(x))


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
        self, x: Tensor, context: KeysValues, rotations: Rotations, mask: Tensor | None
    ) -> Tensor:
        """Columns [B, L, D], all at once."""
        return self.step(x, context, rotations, mask, None)[0]

    def step(
        self,
        x: Tensor,
        context: KeysValues,
        rotations: Rotations,
        mask: Tensor | None,
        past: KeysValues | None,
    ) -> tuple[Tensor, KeysValues]:
        """The next L columns [B, L, D] after the keys and values `past` of M earlier ones, and the
        keys and values of all, [B, N, M+L, d].

        `rotations` are of M + L columns and of L queries to the context, mask is [L, M+L]. Keys are
        kept unrotated: without positions, so that a long run needs no large ones.
        """
        q, k, v = self.attention.project(self.norm1(x))
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        x = x + self.attention.attend(q, k, v, rotations.columns, mask)  # [B, L, D]
        x = x + self.cross_attention(self.cross_norm(x), context, rotations.context)
        return x + self.mlp(self.norm2(x)), (k, v)
