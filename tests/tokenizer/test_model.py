import pytest
import torch

from common.errors import UserError
from tokenizer import Tokenizer

WIDTH = 2  # of a column of the small tokenizer, in pixels


@pytest.mark.parametrize("columns", [2, 3, 8, 21])
@torch.no_grad()
def test_any_width(tokenizer, columns):
    images = torch.randn(2, 3, 16, columns * WIDTH)
    posterior = tokenizer.encode(images)
    assert posterior.mean.shape == (2, columns, 6)
    assert posterior.kl().shape == (2,)
    decoded, semantic = tokenizer.decode_with_semantics(posterior.mean)
    assert decoded.shape == images.shape
    assert semantic.shape == (2, 24, 4, columns)
    assert torch.equal(decoded, tokenizer.decode(posterior.mean))


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (2, 5), (4, 4)])
@torch.no_grad()
def test_a_grid_of_square_patches(sizes, rows, columns):
    sizes["ddconfig"]["token_grid"] = rows
    tokenizer = Tokenizer(**sizes).eval()
    images = torch.randn(2, 3, 16, columns * 16 // rows)
    tokens = tokenizer.encode(images).mean
    assert tokens.shape == (2, rows * columns, 6)
    assert tokenizer.decode(tokens).shape == images.shape
    for count in (rows, 2 * rows + 1):
        with pytest.raises(UserError, match="tokens"):
            tokenizer.decode(torch.zeros(1, count, 6))


@torch.no_grad()
def test_no_column_is_told_from_another(tokenizer):
    """A constant image has one token many times, and one token many times a periodic image."""
    tokens = tokenizer.encode(torch.full((1, 3, 16, 20), 0.3)).mean
    torch.testing.assert_close(tokens, tokens[:, :1].expand_as(tokens), atol=1e-5, rtol=0)
    strips = tokenizer.decode(torch.randn(1, 1, 6).expand(1, 10, 6)).unflatten(3, (10, WIDTH))
    torch.testing.assert_close(strips, strips[..., :1, :].expand_as(strips), atol=1e-5, rtol=0)


@torch.no_grad()
def test_tokens_of_stage_two_are_scaled_on_both_ways(tokenizer):
    tokenizer.token_scale.fill_(0.25)
    tokens = torch.randn(2, 5, 6)
    assert torch.equal(tokenizer.scaled(tokens), 0.25 * tokens)
    torch.testing.assert_close(tokenizer.decode_tokens(0.25 * tokens), tokenizer.decode(tokens))


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
    assert torch.equal(decoder(torch.randn(1, 8, 4, 3))[1], seen[features])


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("ddconfig", "double_enc", True),
        ("ddconfig", "num_res_blocks", -1),
        ("ddconfig", "dropout", 1.5),
        ("ddconfig", "resolution", 18),
        ("ddconfig", "norm_groups", 5),
        ("ddconfig", "token_grid", 1),
        ("ddconfig", "token_grid", 3),
        ("ddconfig", "semantic_map", "deep"),
        ("ddconfig", "chs", 1),
        ("sematicconfig", "attn_resolutions", (8,)),
        ("sematicconfig", "ch_mult", (1, 1)),  # 16 channels enter, not the decoder's 32
    ],
)
def test_sizes_that_make_no_tokenizer(sizes, section, key, value):
    sizes[section][key] = value
    with pytest.raises(UserError, match=rf"{section}\..*(ch|{key})"):
        Tokenizer(**sizes)


@pytest.mark.parametrize(
    "call",
    [
        lambda tokenizer: tokenizer.encode(torch.zeros(1, 3, 32, 16)),
        lambda tokenizer: tokenizer.encode(torch.zeros(1, 3, 16, 17)),
        lambda tokenizer: tokenizer.encode(torch.zeros(1, 3, 16, 2)),
        lambda tokenizer: tokenizer.decode(torch.zeros(1, 1, 6)),
        lambda tokenizer: Tokenizer(**tokenizer.sizes | {"post_channels": 64}),
    ],
)
def test_what_does_not_fit_is_refused(tokenizer, call):
    with pytest.raises(UserError):
        call(tokenizer)
