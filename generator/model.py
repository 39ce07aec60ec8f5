"""The generator: from earlier columns and a condition to the vector that predicts the next column.

Shapes: B batch, L columns, C token channels, D width, K condition tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from generator.conditions import ClassCondition
from generator.config import GeneratorConfig
from generator.heads.flow import FlowHead
from generator.transformer import Context, Layer, Rotations, rotation


class Generator(nn.Module):
    """A windowed causal transformer over column tokens with a flow head.

    Tokens are in the model's scale (posterior sample × token scale).
    """

    recompute = False  # layers in the backward pass, rather than keep their activations

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config, self.layout = config, config.layout
        width = config.width
        self.condition = ClassCondition(config.classes, width)
        self.context_positions = nn.Parameter(torch.zeros(1, config.context_tokens, width))
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
    def device(self) -> torch.device:
        return self.context_positions.device

    def read_condition(self, conditions: Tensor) -> Context:
        """Conditions [B] (labels, null ones or not) → what the columns see of them."""
        vectors = self.condition(conditions)  # [B, D]
        tokens = self.norm_in(vectors[:, None] + self.context_positions)  # [B, K, D]
        keys_values = []
        for layer in self.layers:
            kv, tokens = self._run(layer.read_context, tokens)
            keys_values.append(kv)
        return Context(keys_values, tokens[:, -1])

    def rotation(self, positions: Tensor) -> Tensor:
        """Of queries and keys at positions [L]."""
        return rotation(positions, self.config.width // self.config.heads)

    def hidden(self, tokens: Tensor, context: Context, shift: int = 0) -> Tensor:
        """Columns 0 … L−1 [B, L, C] → the vectors [B, L+1, D] that predict columns 0 … L: vector i
        depends on the condition and on columns before i alone; all positions move by `shift`."""
        length = tokens.shape[1]
        turn = self.rotation(self.layout.positions(length, shift, tokens.device))
        rotations = Rotations(columns=turn, context=turn)
        mask = self.layout.mask(length, device=tokens.device)
        x = self.norm_in(self.token_in(tokens))  # [B, L, D]
        for layer, kv in zip(self.layers, context.keys_values, strict=True):
            x, _ = self._run(layer, x, kv, rotations, mask)  # [B, L, D]
        return self.norm_out(torch.cat([context.last[:, None], x], dim=1))  # [B, L+1, D]

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
    condition, time = model.condition, model.head.time
    embeddings = condition.embedding.weight, condition.unconditional, model.context_positions
    for weight in (*embeddings, time.fc1.weight, time.fc2.weight):
        nn.init.normal_(weight, std=0.02)
    for layer in (*model.head.modulation_layers, model.head.token_out):
        nn.init.zeros_(layer.weight)
