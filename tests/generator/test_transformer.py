import pytest
import torch

from generator.layout import ColumnLayout, GridLayout
from generator.transformer import SelfAttention, rotate, rotation


@pytest.mark.parametrize(
    ("window", "rows"),
    [
        (1, ["1....", "11...", ".11..", "..11.", "...11"]),
        (2, ["1....", "11...", "111..", ".111.", "..111"]),
        (0, ["1....", "11...", "111..", "1111.", "11111"]),
        (9, ["1....", "11...", "111..", "1111.", "11111"]),
    ],
)
def test_the_mask_by_hand(window, rows):
    expected = [[cell == "1" for cell in row] for row in rows]
    layout = ColumnLayout(window)
    assert layout.mask(5).tolist() == expected
    assert layout.mask(2, 3).tolist() == expected[3:]
    assert layout.mask(1, min(window, 4)) is None
    assert layout.positions(3, 2).tolist() == [2, 3, 4]


def test_a_grid_in_raster_order():
    layout = GridLayout(0, 3)
    assert layout.positions(4, 2).tolist() == [[0, 2], [1, 0], [1, 1], [1, 2]]
    assert torch.equal(layout.mask(5, 3), ColumnLayout(0).mask(5, 3))
    assert (layout.held, layout.reach(2)) == (ColumnLayout(0).held, None)


def test_half_of_the_channels_turn_with_the_row_and_half_with_the_column():
    """Each half as that of a column does; so attention sees differences along both axes alone."""
    positions = GridLayout(0, 4).positions(16)
    rows, columns = positions.unbind(1)
    halves = rotation(rows, 4), rotation(columns, 4)
    turn = rotation(positions, 8)
    assert torch.equal(turn, torch.cat(halves, dim=2))
    q, k = (rotate(torch.randn(8).expand(16, 8), turn) for _ in range(2))
    scores = (q @ k.T).view(4, 4, 4, 4)
    torch.testing.assert_close(scores[1:, 1:, 1:, 1:], scores[:-1, :-1, :-1, :-1])


def test_self_attention_by_hand():
    """Two heads, each a softmax of scaled products over what the mask shows."""
    attention = SelfAttention(8, 2, 0.0, 0.0).eval()
    x, turn, mask = torch.randn(1, 5, 8), rotation(torch.arange(5), 4), ColumnLayout(2).mask(5)
    q, k, v = attention.qkv(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    q, k = rotate(q, turn), rotate(k, turn)
    assert q.shape == (1, 2, 5, 4)
    expected = torch.zeros(1, 5, 8)
    for head in range(2):
        for i in range(5):
            seen = slice(max(0, i - 2), i + 1)
            weights = (k[0, head, seen] @ q[0, head, i] / 2).softmax(0)
            expected[0, i, 4 * head : 4 * head + 4] = weights @ v[0, head, seen]
    torch.testing.assert_close(attention(x, turn, mask)[0], attention.proj(expected))
