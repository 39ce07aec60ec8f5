"""Tokenizer: images of any width to tokens and back, one a column or one a square patch.

Shapes: B batch, H W pixels, h w of the deepest feature map, L tokens, C token channels.
"""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from common.checkpoint import weights_hash
from common.config import structured
from common.errors import UserError
from tokenizer.autoencoder import Bottleneck, Decoder, Encoder, SemanticDecoder
from tokenizer.config import TokenizerConfig
from tokenizer.posterior import Posterior


class Tokenizer(nn.Module):
    """One vector for each vertical strip of an image, or for each patch of a grid, in raster order;
    `sizes` are those of `TokenizerConfig`."""

    token_scale: Tensor

    def __init__(self, **sizes: Any) -> None:
        super().__init__()
        given = structured(TokenizerConfig, sizes)
        config, self.channels, self.std = given.ddconfig, given.embed_dim, given.std
        self.rows = config.token_grid or 1  # of tokens
        self.height, self.column_width = config.resolution, config.token_size[1]
        self.encoder = Encoder(config)
        self.bottleneck = Bottleneck(config.z_channels, self.rows, config.patch, self.channels)
        self.decoder = Decoder(config)
        semantic = given.sematicconfig
        self.semantic_decoder = None if semantic is None else SemanticDecoder(semantic)
        self.sizes = asdict(given)  # plain values that build the same network
        # 1/std of sampled tokens, measured in training; the methods below alone scale by it
        self.register_buffer("token_scale", torch.ones(()))

    @property
    def fingerprint(self) -> str:
        """A short name of the weights that make tokens and images, whatever the tokens' scale."""
        state = {}
        for name, weight in self.state_dict().items():
            # under the names from before the bottleneck was a module, which token files rely on
            name = name.replace("bottleneck.mix_columns.", "encoder.mix_columns.")
            name = name.replace("bottleneck.unmix_columns.", "decoder.mix_columns.")
            state[name.removeprefix("bottleneck.")] = weight
        del state["token_scale"]
        return weights_hash(state)

    def encode(self, images: Tensor) -> Posterior:
        """Images [B, 3, H, W] in [-1, 1] → the posterior of their tokens, with its mean [B, L, C]
        in float32 under autocast too."""
        self.check_size(*images.shape[-2:])
        mean = self.bottleneck.encode(self.encoder(images))  # [B, L, C]
        return Posterior(mean.to(torch.promote_types(mean.dtype, torch.float32)), self.std)

    def check_size(self, height: int, width: int, name: str = "image") -> None:
        """Refuse images of another height, or of no whole number of columns, 2 or more."""
        column = self.column_width
        if height != self.height:
            raise UserError(f"{name} height: found {height}, expected {self.height} pixels")
        if width % column or width < 2 * column:
            raise UserError(f"{name} width: found {width}, expected 2 or more columns of {column}")

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens [B, L, C], 2 or more a row, in the posterior's scale → images [B, 3, H, W]."""
        return self._decoded(tokens)[0]

    def decode_with_semantics(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, 3, H, W] and the semantic map [B, out_ch, h, w] of tokens [B, L, C]."""
        images, features = self._decoded(tokens)
        return images, self.semantic_decoder(features)

    def scaled(self, tokens: Tensor) -> Tensor:
        """The posterior's tokens [..., C] in stage two's scale."""
        return tokens * self.token_scale

    def unscaled(self, tokens: Tensor) -> Tensor:
        """Stage two's tokens [..., C] in the posterior's scale."""
        return tokens / self.token_scale

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """Images [B, 3, H, W] of stage two's tokens [B, L, C]."""
        return self.decode(self.unscaled(tokens))

    def _decoded(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        count, rows = tokens.shape[1], self.rows
        if count % rows or count < 2 * rows:
            raise UserError(f"tokens: found {count}, expected 2 or more in each of {rows} rows")
        return self.decoder(self.bottleneck.decode(tokens))
