"""The generator: from earlier columns and a class to the vector that predicts the next column.

Shapes: B batch, L columns, C token channels, D width, K class tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from common.errors import UserError
from generator.attention import window_mask
from generator.heads.flow_head import FlowHead
from generator.rope import rotation
from generator.transformer import ClassMemory, Layer, Turns


@dataclass(frozen=True)
class GeneratorConfig:
    """Sizes of the generator.

    Args:
        width, depth, heads: D, layers and attention heads of the transformer.
        channels: C, of a column token.
        classes: number of classes; labels are 0 … classes − 1.
        class_tokens: K, class tokens the columns attend to (`buffer_size`).
        window: earlier columns a layer sees (`cond_length`); 0: all.
        head_width, head_depth: of the flow head (`diffloss_w`, `diffloss_d`).
    """

    width: int
    depth: int
    heads: int
    channels: int
    classes: int
    class_tokens: int = 16
    window: int = 3
    head_width: int = 1024
    head_depth: int = 12
    mlp_ratio: float = 4.0
    attn_dropout: float = 0.1
    proj_dropout: float = 0.1

    def __post_init__(self) -> None:
        least = dict.fromkeys(("width", "depth", "heads", "channels", "classes", "class_tokens"), 1)
        for field, bound in {**least, "window": 0, "head_width": 1, "head_depth": 0}.items():
            if getattr(self, field) < bound:
                raise UserError(
                    f"generator's {field}: found {getattr(self, field)}, expected {bound} or more"
                )
        if self.width % self.heads or self.width // self.heads % 2:
            raise UserError(
                f"width {self.width} over {self.heads} heads: expected an even whole number of "
                "channels a head, which rotary positions need"
            )


# transformer and flow head of the named sizes (paper, generator table)
SIZES = {
    "tiny_model": {"width": 256, "depth": 8, "heads": 4},
    "small_model": {"width": 512, "depth": 16, "heads": 8},
    "base_model": {"width": 768, "depth": 24, "heads": 12},
    "large_model": {"width": 1024, "depth": 32, "heads": 16},
    "huge_model": {"width": 1280, "depth": 40, "heads": 16},
}
FLOW_HEADS = {
    "tiny_model": {"head_width": 512, "head_depth": 6},
    "small_model": {"head_width": 960, "head_depth": 12},
    "base_model": {"head_width": 1024, "head_depth": 12},
    "large_model": {"head_width": 1280, "head_depth": 12},
    "huge_model": {"head_width": 1536, "head_depth": 12},
}


class Generator(nn.Module):
    """A windowed causal transformer over column tokens with a flow head.

    Tokens are in the model's scale (posterior sample × token scale). Class `classes` stands for
    "no class", the unconditional branch of guidance.

    With `recompute` a layer's activations are not kept for the backward pass, but computed again.
    """

    recompute = False

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.class_embedding = nn.Embedding(config.classes, width)
        self.unconditional = nn.Parameter(torch.zeros(1, width))
        self.class_positions = nn.Parameter(torch.zeros(1, config.class_tokens, width))
        self.token_in = nn.Linear(config.channels, width)
        self.norm_in = nn.LayerNorm(width, eps=1e-6)
        self.layers = nn.ModuleList(
            Layer(width, config.heads, config.mlp_ratio, config.attn_dropout, config.proj_dropout)
            for _ in range(config.depth)
        )
        self.norm_out = nn.LayerNorm(width, eps=1e-6)
        self.head = FlowHead(config.channels, width, config.head_width, config.head_depth)
        initialise(self)

    @property
    def no_class(self) -> int:
        return self.config.classes

    @property
    def device(self) -> torch.device:
        return self.unconditional.device

    def read_classes(self, labels: Tensor) -> ClassMemory:
        """Labels [B], `no_class` among them if wanted → what the columns see of their class."""
        table = torch.cat([self.class_embedding.weight, self.unconditional])
        tokens = self.norm_in(table[labels][:, None] + self.class_positions)  # [B, K, D]
        keys_values = []
        for layer in self.layers:
            kv, tokens = self._run(layer.read_class, tokens)
            keys_values.append(kv)
        return ClassMemory(keys_values, tokens[:, -1])

    def turns(
        self, among_columns: Tensor, to_class: Tensor, last_position: int | None = None
    ) -> Turns:
        """Rotations for attention among columns at positions [M], and to the class from [L].

        With `last_position` the queries to the class stay at it once it is reached, so that a
        long run never leaves the positions seen in training; attention among columns depends on
        differences of positions alone and needs no bound.
        """
        channels = self.config.width // self.config.heads
        if last_position is not None:
            to_class = to_class.clamp(max=last_position)
        return Turns(rotation(among_columns, channels), rotation(to_class, channels))

    def hidden(
        self,
        tokens: Tensor,
        memory: ClassMemory,
        shift: int = 0,
        last_position: int | None = None,
    ) -> Tensor:
        """The vectors that predict columns 0 … L, given columns 0 … L−1.

        Args:
            tokens: [B, L, C]; L may be 0.
            memory: of the B classes.
            shift: added to all positions.
            last_position: see `turns`.

        Returns:
            [B, L+1, D]; vector i depends on the class and on columns before i alone.
        """
        length = tokens.shape[1]
        positions = torch.arange(length, device=tokens.device) + shift
        turns = self.turns(positions, positions, last_position)
        mask = window_mask(length, self.config.window, tokens.device)
        x = self.norm_in(self.token_in(tokens))  # [B, L, D]
        for layer, class_kv in zip(self.layers, memory.keys_values, strict=True):
            x = self._run(layer, x, class_kv, turns, mask)  # [B, L, D]
        return self.norm_out(torch.cat([memory.last[:, None], x], dim=1))  # [B, L+1, D]

    def _run(self, part: Callable[..., Any], *inputs: Any) -> Any:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(part, *inputs, use_reentrant=False)
        return part(*inputs)


def initialise(model: Generator) -> None:
    """Xavier for linear layers, N(0, 0.02²) for embeddings and the time MLP, zero for what
    modulates the head and for its output, so that the first velocity is zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    time = model.head.time
    for weight in (
        model.class_embedding.weight,
        model.unconditional,
        model.class_positions,
        time.fc1.weight,
        time.fc2.weight,
    ):
        nn.init.normal_(weight, std=0.02)
    for layer in (*model.head.modulation_layers, model.head.token_out):
        nn.init.zeros_(layer.weight)
