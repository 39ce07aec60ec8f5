from itertools import count

import pytest
import torch

from common import images
from generator import generate as module
from generator.generate import decode_strips, generate
from generator.sampling import SampleConfig


def tiles(columns, overlap):
    return SampleConfig(decode_columns=columns, decode_overlap=overlap)


class Local:
    """Columns of two pixels; each is the mean of its token and its neighbours."""

    column_width = 2
    rows = 1

    def __init__(self):
        self.lengths = []

    def decode_tokens(self, tokens):
        self.lengths.append(tokens.shape[1])
        around = torch.nn.functional.pad(tokens, (0, 0, 1, 1))
        mean = (around[:, :-2] + around[:, 1:-1] + around[:, 2:]) / 3
        return mean[:, :, :3].mT[:, :, None].repeat_interleave(2, dim=3)


class Uneven(Local):
    """A decoder that adds to each tile a tone of its own."""

    def decode_tokens(self, tokens):
        return super().decode_tokens(tokens) * 0 + len(self.lengths)


def whole(tokens, decoder, tiles):
    return torch.cat(list(decode_strips(decoder, tokens.unbind(1), tiles)), dim=3)


@pytest.mark.parametrize("length", [2, 7, 8, 9, 13, 14, 15, 20, 39, 40])
@pytest.mark.parametrize(("size", "overlap"), [(8, 2), (8, 3), (8, 4), (40, 5)])
def test_tiles_of_a_local_decoder_are_the_whole(length, size, overlap):
    """Any length; where tiles meet, both see their neighbours but for the outermost column."""
    tokens = torch.rand(2, length, 3)
    decoder = Local()
    found = whole(tokens, decoder, tiles(size, overlap))
    expected = Local().decode_tokens(tokens)
    assert found.shape == expected.shape
    assert set(decoder.lengths) == {min(size, length)}
    difference = (found - expected).abs().amax((0, 1, 2)).unflatten(0, (-1, 2)).amax(1)
    ends = [0] if length <= size else range(size - overlap, length, size - overlap)
    edges = {i for end in ends for i in (end, end + overlap - 1)}
    assert all(difference[i] < 1e-6 for i in range(length) if i not in edges)
    if length <= size:
        assert torch.equal(found, expected)


def test_one_tile_fades_into_the_next():
    """Over the columns they share, in equal steps."""
    found = whole(torch.rand(1, 12, 3), Uneven(), tiles(8, 4))[0, 0, 0]
    shared = [1 + (i + 0.5) / 8 for i in range(8)]
    assert found.tolist() == pytest.approx([1] * 8 + shared + [2] * 8)
    # without shared columns there is an edge
    assert whole(torch.rand(1, 12, 3), Uneven(), tiles(6, 0)).unique().tolist() == [1, 2]


def test_strips_come_early():
    asked = count()
    strips = decode_strips(Local(), (torch.rand(1, 3) for _ in asked), tiles(8, 2))
    for k in range(3):
        next(strips)
        assert next(asked) == 8 + 7 * k  # six of a tile, and the one just asked for


def test_images_that_fit_are_decoded_together(monkeypatch):
    tokens = torch.rand(5, 4, 3) * 2 - 1
    decoder = Local()
    monkeypatch.setattr(module, "generate_tokens", lambda *_: tokens)
    found = list(generate(None, decoder, [0] * 5, tiles(8, 2)))
    assert torch.equal(torch.stack(found), images.to_uint8(Local().decode_tokens(tokens)))
    assert decoder.lengths == [4, 4, 4]  # two, two, one
