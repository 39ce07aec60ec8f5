from __future__ import annotations

import pytest
import torch

from common.errors import UserError
from common.seeding import BatchDraws
from tokenizer import Tokenizer
from tokenizer.posterior import Posterior

WIDTH = 2  # of a column of the small tokenizer, in pixels


@pytest.mark.parametrize("columns", [2, 3, 8, 21])
@torch.no_grad()
def test_any_width(tokenizer, columns):
    images = torch.randn(2, 3, 16, columns * WIDTH)
    posterior = tokenizer.encode(images)
    assert posterior.mode().shape == (2, columns, 6)
    assert posterior.kl().shape == (2,)
    decoded, semantic = tokenizer.decode_with_semantics(posterior.mode())
    assert decoded.shape == images.shape
    assert semantic.shape == (2, 24, 4, columns)
    assert torch.equal(decoded, tokenizer.decode(posterior.mode()))


@torch.no_grad()
def test_no_column_is_told_from_another(tokenizer):
    """A constant image has one token many times, and one token many times a periodic image."""
    tokens = tokenizer.encode(torch.full((1, 3, 16, 20), 0.3)).mode()
    torch.testing.assert_close(tokens, tokens[:, :1].expand_as(tokens), atol=1e-5, rtol=0)
    strips = tokenizer.decode(torch.randn(1, 1, 6).expand(1, 10, 6)).unflatten(3, (10, WIDTH))
    torch.testing.assert_close(strips, strips[..., :1, :].expand_as(strips), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("height", "width", "message"),
    [
        (32, 16, "image height: found 32, expected 16"),
        (16, 17, "image width: found 17, expected a multiple of the column width 2"),
        (16, 2, "image width: found 2, .* at least 4"),
    ],
)
def test_images_that_do_not_fit(tokenizer, height, width, message):
    with pytest.raises(UserError, match=message):
        tokenizer.encode(torch.zeros(1, 3, height, width))


def test_a_single_token_cannot_be_decoded(tokenizer):
    with pytest.raises(UserError, match="number of tokens: found 1, expected at least 2"):
        tokenizer.decode(torch.zeros(1, 1, 6))


@torch.no_grad()
def test_tokens_of_stage_two_are_scaled_on_both_ways(tokenizer):
    tokenizer.token_scale.fill_(0.25)
    mean = torch.randn(2, 5, 6)
    posterior = tokenizer.posterior(mean)
    drawn = posterior.sample(BatchDraws(torch.Generator().manual_seed(3)))
    tokens = tokenizer.sample_tokens(posterior, BatchDraws(torch.Generator().manual_seed(3)))
    assert torch.equal(tokens, 0.25 * drawn)
    torch.testing.assert_close(tokenizer.decode_tokens(tokens), tokenizer.decode(drawn))


def test_the_posterior_has_the_noise_range_of_the_config(tokenizer):
    mean = torch.zeros(1, 2, 6)
    assert tokenizer.posterior(mean) == Posterior(mean, 1.5)


def test_without_a_semantic_decoder(sizes):
    del sizes["sematicconfig"]
    model = Tokenizer(**sizes)
    assert not any(name.startswith("semantic") for name in model.state_dict())
    with pytest.raises(UserError, match="lacks sematicconfig"):
        model.decode_with_semantics(torch.zeros(1, 2, 6))


@pytest.mark.parametrize("features", ["base", "mid", "res"])
@torch.no_grad()
def test_features_for_the_semantic_decoder(tokenizer, features):
    decoder = tokenizer.decoder
    decoder.semantic_map = features
    seen = {}
    for name, module in (
        ("base", decoder.conv_in),
        ("mid", decoder.middle),
        ("res", decoder.levels[-1]),
    ):
        module.register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, out))
    assert torch.equal(decoder(torch.randn(1, 3, 32)).features, seen[features])


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("ddconfig", "double_enc", True, "ddconfig.double_enc: true is not supported"),
        ("ddconfig", "resolution", 18, "ddconfig.resolution: found 18, expected a multiple of 4"),
        ("ddconfig", "semantic_map", "deep", "ddconfig.semantic_map: found 'deep'"),
        ("ddconfig", "chs", 1, "ddconfig.chs: unknown key"),
        ("sematicconfig", "attn_resolutions", (8,), "sematicconfig.attn_resolutions: found"),
    ],
)
def test_sizes_that_make_no_tokenizer(sizes, section, key, value, message):
    sizes[section][key] = value
    with pytest.raises(UserError, match=message):
        Tokenizer(**sizes)


def test_post_channels_are_checked(sizes):
    assert Tokenizer(**sizes, post_channels=32).channels == 6
    with pytest.raises(UserError, match=r"post_channels: found 64, expected .* = 32"):
        Tokenizer(**sizes, post_channels=64)


def test_a_missing_size_is_named(sizes):
    del sizes["ddconfig"]["ch"]
    with pytest.raises(UserError, match=r"ddconfig: missing .*'ch'"):
        Tokenizer(**sizes)
