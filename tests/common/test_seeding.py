import itertools

import torch

from common.seeding import BatchDraws, generator, normal, stream


def first(*name):
    return tuple(stream(*name).integers(2**63, size=2).tolist())


def test_streams_are_the_same_in_every_process_and_version():
    assert stream(3, "noise", 7).integers(1000, size=6).tolist() == [389, 993, 507, 841, 648, 539]


def test_names_that_numpy_would_confuse_are_different_streams():
    names = [(1,), (1, 0), (0, 1), (2**32,), (1, "0"), (1, "a", "b"), (1, "a, b"), (1, "a', 'b")]
    for one, other in itertools.combinations(names, 2):
        assert first(*one) != first(*other), (one, other)


def test_a_longer_draw_begins_with_the_shorter_one():
    short = normal(1, "noise", 4, shape=(3, 5))
    long = normal(1, "noise", 4, shape=(11, 5))
    assert torch.equal(long[:3], short)


def test_a_batch_has_the_same_draws_however_it_is_shared_out():
    def draw(rank, world, rows):
        draws = BatchDraws(generator(3, "batch"), rank, world)
        return draws.normal(rows, 2), draws.shared(4), draws.uniform(rows)

    normal, shared, uniform = draw(0, 1, 6)
    assert uniform.min() >= 0 and uniform.max() < 1 and normal.min() < 0
    for rank in range(3):
        part = draw(rank, 3, 2)
        assert torch.equal(part[0], normal[rank::3])
        assert torch.equal(part[1], shared)
        assert torch.equal(part[2], uniform[rank::3])
