"""Tokenizer: images of any width to column tokens and back.

Shapes: B batch, H W pixels, f_w column width, L = W/f_w columns, C token channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from common.checkpoint import weights_hash
from common.config import structured
from common.errors import UserError
from common.seeding import BatchDraws
from tokenizer.bottleneck import ColumnBottleneck
from tokenizer.config import AutoencoderConfig, SemanticConfig, TokenizerConfig
from tokenizer.decoder import Decoder, SemanticDecoder
from tokenizer.encoder import Encoder
from tokenizer.posterior import Posterior

# Where weights stood before the bottleneck was a module; fingerprints and old files name them so.
FORMER_NAMES = {
    "bottleneck.mix_columns.": "encoder.mix_columns.",
    "bottleneck.to_tokens.": "to_tokens.",
    "bottleneck.from_tokens.": "from_tokens.",
    "bottleneck.unmix_columns.": "decoder.mix_columns.",
}


class Tokenizer(nn.Module):
    """One vector for each vertical strip of an image.

    Args:
        ddconfig: sizes of encoder and decoder (`AutoencoderConfig` or its YAML section).
        embed_dim: channels of a token, C.
        std: largest noise scale of the posterior.
        sematicconfig: sizes of the semantic decoder; without it there is none.
        post_channels: channels of a column before it becomes a token; only checked.
    """

    token_scale: Tensor

    def __init__(
        self,
        ddconfig: AutoencoderConfig | Mapping[str, Any],
        embed_dim: int,
        std: float = 2.5,
        sematicconfig: SemanticConfig | Mapping[str, Any] | None = None,
        post_channels: int | None = None,
    ) -> None:
        super().__init__()
        given: dict[str, Any] = {"ddconfig": ddconfig, "embed_dim": embed_dim, "std": std}
        given |= {"sematicconfig": sematicconfig, "post_channels": post_channels}
        sizes = structured(TokenizerConfig, given)
        self.config = config = sizes.ddconfig
        self.channels, self.std = sizes.embed_dim, sizes.std
        self.encoder = Encoder(config)
        self.bottleneck = ColumnBottleneck(config.z_channels, config.rows, sizes.embed_dim)
        self.decoder = Decoder(config)
        semantic = sizes.sematicconfig
        self.semantic_decoder = None if semantic is None else SemanticDecoder(semantic)
        self.sizes = asdict(sizes)  # plain values that build the same network
        # 1/std of sampled tokens, measured in training; the methods below alone scale by it
        self.register_buffer("token_scale", torch.ones(()))

    @property
    def height(self) -> int:
        return self.config.resolution

    @property
    def column_width(self) -> int:
        return self.config.column_width

    @property
    def fingerprint(self) -> str:
        """A short name of the weights that make tokens and images, whatever the tokens' scale."""
        state = {former_name(k): v for k, v in self.state_dict().items() if k != "token_scale"}
        return weights_hash(state)

    def encode(self, images: Tensor) -> Posterior:
        """Images [B, 3, H, W] in [-1, 1] → the posterior of their tokens, mean [B, L, C]."""
        self.check_size(*images.shape[-2:])
        return self.posterior(self.bottleneck.encode(self.encoder(images)))  # [B, L, C]

    def check_size(self, height: int, width: int) -> None:
        """Refuse images of another height, or of no whole number of columns."""
        if height != self.height:
            raise UserError(f"image height: found {height}, expected {self.height} pixels")
        if width % self.column_width or width < 2 * self.column_width:
            raise UserError(
                f"image width: found {width}, expected a multiple of the column width "
                f"{self.column_width}, at least {2 * self.column_width} pixels"
            )

    def posterior(self, mean: Tensor) -> Posterior:
        """The posterior around a mean [B, L, C], in float32 under autocast too."""
        return Posterior(mean.to(torch.promote_types(mean.dtype, torch.float32)), self.std)

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens [B, L, C], L ≥ 2, in the posterior's scale → images [B, 3, H, L·f_w]."""
        return self.decoder(self._features(tokens)).images

    def decode_with_semantics(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, 3, H, W] and the semantic map [B, out_ch, h, L] of tokens [B, L, C]."""
        if self.semantic_decoder is None:
            raise UserError("sematicconfig: missing; this tokenizer has no semantic decoder")
        decoded = self.decoder(self._features(tokens))
        return decoded.images, self.semantic_decoder(decoded.features)

    @torch.no_grad()
    def sample_tokens(self, posterior: Posterior, draws: BatchDraws) -> Tensor:
        """Tokens [B, L, C] for stage two: a posterior sample in the scale of unit variance."""
        return self.scaled(posterior.sample(draws))

    def scaled(self, tokens: Tensor) -> Tensor:
        """The posterior's tokens [..., C] in stage two's scale."""
        return tokens * self.token_scale

    def unscaled(self, tokens: Tensor) -> Tensor:
        """Stage two's tokens [..., C] in the posterior's scale."""
        return tokens / self.token_scale

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """Images [B, 3, H, L·f_w] of stage two's tokens [B, L, C]."""
        return self.decode(self.unscaled(tokens))

    def _features(self, tokens: Tensor) -> Tensor:
        if tokens.shape[1] < 2:
            raise UserError(f"number of tokens: found {tokens.shape[1]}, expected at least 2")
        return self.bottleneck.decode(tokens)


def former_name(name: str) -> str:
    """The name of a weight before the bottleneck was a module."""
    for now, before in FORMER_NAMES.items():
        if name.startswith(now):
            return before + name.removeprefix(now)
    return name
