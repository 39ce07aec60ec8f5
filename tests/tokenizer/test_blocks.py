from itertools import product

import pytest
import torch
from torch import nn

from tokenizer.autoencoder import Bottleneck
from tokenizer.blocks import AttentionBlock, Downsample, Upsample, conv3, shuffle, unshuffle

STRIDES = [(2, 2), (2, 1)]


def without_convolution(block):
    nn.init.zeros_(block.conv.weight)
    nn.init.zeros_(block.conv.bias)
    return block


@pytest.mark.parametrize("stride", STRIDES)
def test_unshuffled_channels_count_channel_row_column(stride):
    sh, sw = stride
    x = torch.randn(1, 3, 4, 6)
    y = unshuffle(x, stride)
    assert torch.equal(shuffle(y, stride), x)
    for channel in range(3):
        for i in range(sh):
            for j in range(sw):
                index = (channel * sh + i) * sw + j
                assert torch.equal(y[:, index], x[:, channel, i::sh, j::sw])


@pytest.mark.parametrize("stride", STRIDES)
def test_resampling_adds_its_convolution_to_a_shortcut(stride):
    """Down: the mean of each run of channels; up: repeated pixels."""
    ratio = stride[0] * stride[1]
    x = torch.randn(2, 8, 4, 6)
    mean = torch.stack([part.mean(1) for part in unshuffle(x, stride).split(ratio, 1)], 1)
    repeated = x.repeat_interleave(stride[0], 2).repeat_interleave(stride[1], 3)
    for kind, arrange, shortcut in ((Downsample, unshuffle, mean), (Upsample, shuffle, repeated)):
        block = kind(8, stride)
        torch.testing.assert_close(block(x), arrange(block.conv(x), stride) + shortcut)
        torch.testing.assert_close(without_convolution(block)(x), shortcut)


@pytest.mark.parametrize(
    ("conv", "shape"),
    [(conv3(2, 3), (1, 2, 5, 7)), (Bottleneck(2, 1, (1, 1), 3).to_tokens, (1, 2, 7))],
)
def test_no_border_is_marked(conv, shape):
    """On a constant, a convolution that pads by reflection gives a constant."""
    y = conv(torch.ones(shape)).flatten(2)
    torch.testing.assert_close(y, y[:, :, :1].expand_as(y))


@pytest.mark.parametrize(("rows", "patch"), [(1, (4, 1)), (2, (2, 3))])
@torch.no_grad()
def test_the_bottleneck_takes_patches_in_raster_order_and_mixes_those_of_a_row(rows, patch):
    """With convolutions that pass their input through, a token is its patch."""
    (height, width), channels, columns = patch, 2, 6 // patch[1]
    bottleneck = Bottleneck(channels, rows, patch, channels * height * width)
    features = torch.randn(1, channels, rows * height, columns * width)
    mixed = bottleneck.encode(features)
    other = features.clone()
    other[:, :, -1, -1] += 1.0  # of the last token
    changed = (bottleneck.encode(other) - mixed).abs().amax((0, 2)) > 0
    assert changed.nonzero().min() >= max((rows - 1) * columns, rows * columns - 3)
    for conv in bottleneck.children():
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)
    tokens = bottleneck.encode(features)
    for token, (i, j) in zip(tokens[0], product(range(rows), range(columns)), strict=True):
        part = features[0, :, i * height :, j * width :][:, :height, :width]
        torch.testing.assert_close(token, part.flatten())
    torch.testing.assert_close(bottleneck.decode(tokens), features)


def test_attention_is_one_head_over_all_positions():
    block = AttentionBlock(8, groups=4)
    x = torch.randn(2, 8, 3, 5)
    flat = block.norm(x).flatten(2).mT  # [B, h·w, c]
    q, k, v = (flat @ f.weight[:, :, 0, 0].T + f.bias for f in (block.q, block.k, block.v))
    scores = (q @ k.mT * 8**-0.5).softmax(-1)
    y = (scores @ v) @ block.proj.weight[:, :, 0, 0].T + block.proj.bias
    torch.testing.assert_close(block(x), x + y.mT.unflatten(2, (3, 5)))
