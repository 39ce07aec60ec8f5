from __future__ import annotations

import pytest
import torch

from generator.kv_cache import ColumnReader


@pytest.fixture
def memory(model):
    return model.read_classes(torch.tensor([0, 1]))


@pytest.mark.parametrize("window", [0, 1, 3])
@pytest.mark.parametrize("pieces", [[1] * 9, [9], [1, 4, 1, 3], [2, 7]], ids=str)
@pytest.mark.parametrize("last_position", [None, 4])
@torch.no_grad()
def test_columns_in_pieces_give_what_all_give(build, window, pieces, last_position):
    model = build(window=window)
    tokens, memory = torch.randn(2, 9, 6), model.read_classes(torch.tensor([0, 1]))
    expected = model.hidden(tokens, memory, last_position=last_position)
    reader = ColumnReader(model, memory, last_position)
    torch.testing.assert_close(reader.first(), expected[:, 0])
    end = 0
    for some in tokens.split(pieces, dim=1):
        end += some.shape[1]
        torch.testing.assert_close(reader.read(some), expected[:, end])


@torch.no_grad()
def test_memory_does_not_grow(model, memory):
    reader = ColumnReader(model, memory)
    for i in range(1, 12):
        reader.read(torch.randn(2, 1, 6))
        assert {k.shape[2] for k, _ in reader.past} == {min(i, model.config.window)}


@torch.no_grad()
def test_what_lies_out_of_reach_can_be_forgotten(model, memory):
    """Two layers with a window of three see back seven columns, and no fewer."""
    tokens = torch.randn(2, 20, 6)
    expected = model.hidden(tokens, memory)[:, -1]
    for extra, same in ((0, True), (-1, False)):
        reader = ColumnReader(model, memory)
        assert reader.reach == 7
        reader.read(torch.randn(2, 4, 6))
        reader.forget(20 - reader.reach - extra)
        found = reader.read(tokens[:, reader.position :])
        assert ((found - expected).abs().max() < 1e-5) == same


@torch.no_grad()
def test_a_run_of_millions_of_columns_attends_as_at_its_beginning(model, memory):
    """Positions that large would lose their last digits in float32."""
    tokens = torch.randn(2, 7, 6)
    found = []
    for start in (1_000, 50_000_001):
        reader = ColumnReader(model, memory, last_position=15)
        reader.forget(start)
        found.append(reader.read(tokens))
    assert torch.equal(*found)
