from __future__ import annotations

from itertools import islice

import pytest
import torch

from common.errors import UserError
from generator.sampling import ColumnReader, Guidance, sample, sample_columns

from .plain_sampler import sample_plainly

STEPS = 4


def compare(model, labels, length, guidance, prefix=0):
    labels = torch.tensor(labels)
    noise = torch.randn(len(labels), length, 6)
    given = torch.randn(len(labels), prefix, 6) if prefix else None
    scales = [guidance.at(i) for i in range(length)]
    found = sample(model, labels, noise, guidance, STEPS, given)
    expected = sample_plainly(model, labels, noise, scales, STEPS, given)
    assert found.shape == (len(labels), length, 6)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    if prefix:
        assert torch.equal(found[:, :prefix], given)


@pytest.mark.parametrize("window", [0, 1, 3])
@pytest.mark.parametrize("length", [1, 4, 11])
def test_any_window_and_length(build, window, length):
    compare(build(window=window), [0, 3], length, Guidance(4.0, ramp=length))


@pytest.mark.parametrize(
    "guidance", [Guidance(1.0), Guidance(3.0, "linear", 5), Guidance(3.0, "constant")], ids=str
)
@pytest.mark.parametrize("labels", [[2], [1, 1, 1], [4, 0, 4, 2]], ids=str)
def test_any_guidance_and_classes(model, labels, guidance):
    compare(model, labels, 7, guidance)


@pytest.mark.parametrize("window", [0, 1, 3])
@pytest.mark.parametrize("prefix", [1, 3, 6, 7])
def test_any_prefix(build, window, prefix):
    compare(build(window=window), [0, 3], 7, Guidance(3.0), prefix)


def test_a_picture_does_not_depend_on_the_others(model):
    labels, noise = torch.tensor([4, 0, 4]), torch.randn(3, 5, 6)
    together = sample(model, labels, noise, Guidance(3.0), STEPS)
    for i in range(3):
        alone = sample(model, labels[i : i + 1], noise[i : i + 1], Guidance(3.0), STEPS)
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=0)


def test_columns_come_without_end_and_begin_the_same(model):
    labels, noise = torch.tensor([1]), torch.randn(1, 30, 6)
    columns = sample_columns(model, labels, lambda i: noise[:, i], Guidance(3.0), STEPS)
    endless = torch.stack(list(islice(columns, 30)), 1)
    short = sample(model, labels, noise[:, :9], Guidance(3.0), STEPS)
    assert torch.equal(endless[:, :9], short)


@torch.inference_mode()
def test_memory_does_not_grow(model):
    reader = ColumnReader(model, model.read_classes(torch.tensor([0, 1])))
    for i in range(1, 12):
        reader.read(torch.randn(2, 6))
        assert {k.shape[2] for k, _ in reader.past} == {min(i, model.config.window)}


@torch.inference_mode()
def test_the_reader_gives_what_the_transformer_gives(model):
    tokens, memory = torch.randn(2, 9, 6), model.read_classes(torch.tensor([0, 1]))
    reader = ColumnReader(model, memory)
    found = [reader.first(), *(reader.read(tokens[:, i]) for i in range(9))]
    torch.testing.assert_close(torch.stack(found, 1), model.hidden(tokens, memory))


@pytest.mark.parametrize(
    ("guidance", "scales"),
    [
        (Guidance(5.0, "linear", 4), [2.0, 3.0, 4.0, 5.0, 5.0]),
        (Guidance(5.0, "constant", 4), [5.0] * 5),
        (Guidance(1.0, "linear", 4), [1.0] * 5),
    ],
    ids=str,
)
def test_guidance_by_column(guidance, scales):
    assert [guidance.at(i) for i in range(5)] == pytest.approx(scales)


def test_an_unknown_schedule_is_named():
    with pytest.raises(UserError, match="guidance schedule: found 'cosine', expected linear or"):
        Guidance(2.0, "cosine")


@pytest.mark.parametrize("label", [-1, 5])
def test_labels_that_are_no_class(model, label):
    with pytest.raises(UserError, match=r"class labels: found .* expected 0 … 4"):
        sample(model, torch.tensor([0, label]), torch.zeros(2, 1, 6), Guidance())
