from __future__ import annotations

import pytest
import torch
from torch import nn

from tokenizer.blocks import (
    AttentionBlock,
    Downsample,
    Level,
    ResidualBlock,
    Upsample,
    conv3,
    shuffle,
    unshuffle,
)
from tokenizer.bottleneck import column_conv, columnise, rasterise

STRIDES = [(2, 2), (2, 1)]


def without_convolution(block):
    nn.init.zeros_(block.conv.weight)
    nn.init.zeros_(block.conv.bias)
    return block


@pytest.mark.parametrize("stride", STRIDES)
def test_shuffle_is_the_inverse_of_unshuffle(stride):
    x = torch.randn(2, 3, 8, 6)
    assert torch.equal(shuffle(unshuffle(x, stride), stride), x)


@pytest.mark.parametrize("stride", STRIDES)
def test_unshuffled_channels_count_channel_row_column(stride):
    sh, sw = stride
    x = torch.randn(1, 3, 4, 6)
    y = unshuffle(x, stride)
    assert y.shape == (1, 3 * sh * sw, 4 // sh, 6 // sw)
    for channel in range(3):
        for i in range(sh):
            for j in range(sw):
                index = (channel * sh + i) * sw + j
                assert torch.equal(y[:, index], x[:, channel, i::sh, j::sw])


@pytest.mark.parametrize("stride", STRIDES)
def test_the_shortcut_of_downsampling_is_a_mean_over_runs_of_channels(stride):
    ratio = stride[0] * stride[1]
    x = torch.randn(2, 8, 4, 6)
    found = without_convolution(Downsample(8, stride))(x)
    unshuffled = unshuffle(x, stride)
    for i in range(8):
        expected = unshuffled[:, i * ratio : (i + 1) * ratio].mean(1)
        torch.testing.assert_close(found[:, i], expected)


@pytest.mark.parametrize("stride", STRIDES)
def test_the_shortcut_of_upsampling_repeats_pixels(stride):
    x = torch.randn(2, 4, 3, 5)
    found = without_convolution(Upsample(4, stride))(x)
    expected = x.repeat_interleave(stride[0], 2).repeat_interleave(stride[1], 3)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("stride", STRIDES)
def test_resampling_adds_its_convolution(stride):
    ratio = stride[0] * stride[1]
    x = torch.randn(2, 8, 4, 6)
    for kind, arrange in ((Downsample, unshuffle), (Upsample, shuffle)):
        block = kind(8, stride)
        learned = arrange(block.conv(x), stride)
        torch.testing.assert_close(block(x), learned + without_convolution(block)(x))
    assert Downsample(8, stride).conv.out_channels == 8 // ratio
    assert Upsample(8, stride).conv.out_channels == 8 * ratio


@pytest.mark.parametrize(
    ("conv", "shape"), [(conv3(2, 3), (1, 2, 5, 7)), (column_conv(2, 3), (1, 2, 7))]
)
def test_no_border_is_marked(conv, shape):
    """On a constant, a convolution that pads by reflection gives a constant."""
    y = conv(torch.ones(shape)).flatten(2)
    torch.testing.assert_close(y, y[:, :, :1].expand_as(y))


def test_padding_mirrors_without_repeating_the_edge():
    conv = column_conv(1, 1)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[1.0, 0.0, 0.0]]]))  # looks one to the left
        conv.bias.zero_()
        found = conv(torch.tensor([[[1.0, 2.0, 4.0]]]))
    assert found.tolist() == [[[2.0, 1.0, 2.0]]]


def test_attention_is_one_head_over_all_positions():
    block = AttentionBlock(8, groups=4)
    x = torch.randn(2, 8, 3, 5)
    flat = block.norm(x).flatten(2).mT  # [B, h·w, c]
    q, k, v = (flat @ f.weight[:, :, 0, 0].T + f.bias for f in (block.q, block.k, block.v))
    scores = (q @ k.mT * 8**-0.5).softmax(-1)
    y = (scores @ v) @ block.proj.weight[:, :, 0, 0].T + block.proj.bias
    torch.testing.assert_close(block(x), x + y.mT.unflatten(2, (3, 5)))


def test_a_residual_block_keeps_its_input():
    x = torch.randn(2, 8, 4, 4)
    for out_channels in (8, 16):
        block = ResidualBlock(8, out_channels, groups=4)
        nn.init.zeros_(block.conv2.weight)
        nn.init.zeros_(block.conv2.bias)
        assert torch.equal(block(x), block.shortcut(x))
    assert isinstance(ResidualBlock(8, 8, groups=4).shortcut, nn.Identity)


def test_recomputing_activations_changes_nothing():
    torch.manual_seed(0)
    level = Level(8, 16, blocks=2, attention=True, dropout=0.0, groups=4)
    gradients = []
    for level.recompute in (False, True):
        x = torch.linspace(-1, 1, 8 * 36).reshape(1, 8, 6, 6).requires_grad_()
        level(x).square().sum().backward()
        gradients.append([x.grad, *(p.grad.clone() for p in level.parameters())])
        level.zero_grad()
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_columns_hold_their_channels_row_by_row():
    features = torch.arange(24.0).view(1, 2, 3, 4)  # [B, z, h, w]
    columns = columnise(features)
    assert columns[0, 1].tolist() == [1, 5, 9, 13, 17, 21]  # channel slowest, row fastest
    assert torch.equal(rasterise(columns, 3), features)
