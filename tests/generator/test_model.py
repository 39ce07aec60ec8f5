import pytest
import torch


def changed_rows(model, column, length=20):
    """Which vectors change when one column does."""
    tokens, memory = torch.randn(2, length, 6), model.read_condition(torch.tensor([0, 3]))
    other = tokens.clone()
    other[:, column] += 1.0
    with torch.no_grad():
        difference = model.hidden(tokens, memory) - model.hidden(other, memory)
    return [i for i, d in enumerate(difference.abs().amax((0, 2))) if d > 0]


@pytest.mark.parametrize("column", [0, 4, 19])
@pytest.mark.parametrize(("depth", "window"), [(1, 1), (1, 3), (2, 3), (3, 2)])
def test_a_column_reaches_depth_times_window_further(build, depth, window, column):
    """Vector i + 1 comes from column i, whose layers each look `window` columns back."""
    model = build(depth=depth, window=window)
    reached = range(column + 1, min(column + 1 + depth * window, 20) + 1)
    assert changed_rows(model, column) == list(reached)


@torch.no_grad()
def test_self_attention_does_not_see_a_shift(model):
    """Only the cross-attention's queries do; without it, all positions may move together."""
    tokens, memory = torch.randn(1, 9, 6), model.read_condition(torch.tensor([0]))
    assert (model.hidden(tokens, memory, 5) - model.hidden(tokens, memory)).abs().max() > 1e-3
    for layer in model.layers:
        layer.cross_attention.q.weight.zero_()
        layer.cross_attention.q.bias.zero_()
    torch.testing.assert_close(model.hidden(tokens, memory, 5), model.hidden(tokens, memory))
