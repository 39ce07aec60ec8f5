"""KV cache: the transformer, fed columns as they come.

Shapes: B batch, L columns, C token channels, D width, M earlier columns that are held.
"""

from torch import Tensor

from generator.model import Generator
from generator.transformer import Context, KeysValues, Rotations


class KVCache:
    """Holds keys and values of the columns that the next one sees, of each layer, so that with a
    window a column costs the same however many came before it."""

    def __init__(self, model: Generator, context: Context, last_position: int | None = None):
        self.model = model
        self.context = context
        self.last_position = last_position
        self.forget(0)

    def forget(self, position: int) -> None:
        """Go on at a later position as if nothing stood before it."""
        self.position = position
        self.past: list[KeysValues | None] = [None] * len(self.model.layers)

    def first(self) -> Tensor:
        """The vector that predicts column 0, [B, D]."""
        return self.model.norm_out(self.context.last)

    def read(self, tokens: Tensor) -> Tensor:
        """The next columns [B, L, C] → the vector that predicts the one after them, [B, D]."""
        model, layout, count = self.model, self.model.layout, tokens.shape[1]
        held = 0 if self.past[0] is None else self.past[0][0].shape[2]  # M
        mask = layout.mask(count, held, tokens.device)  # [L, M+L]
        # Attention among columns sees only differences of positions: they count from the first
        # column that is held, and stay small in a run without end. The condition sees positions
        # up to `last_position`, so that they never leave those seen in training.
        columns = layout.positions(held + count, device=tokens.device)
        queries = layout.positions(count, self.position, tokens.device)
        if self.last_position is not None:
            queries = queries.clamp(max=self.last_position)
        rotations = Rotations(model.rotation(columns), model.rotation(queries))
        x = model.norm_in(model.token_in(tokens))  # [B, L, D]
        for i, layer in enumerate(model.layers):
            context = self.context.keys_values[i]
            x, (k, v) = layer(x, context, rotations, mask, self.past[i])  # [B, L, D]
            self.past[i] = (k[:, :, layout.held], v[:, :, layout.held])
        self.position += count
        return model.norm_out(x[:, -1])
