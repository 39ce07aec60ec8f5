from __future__ import annotations

import math

import torch

from generator.rope import rotate, rotation


def test_products_depend_on_the_difference_of_positions_alone():
    q, k = torch.randn(2, 8)

    def product(i, j):
        turned = [rotate(x, rotation(torch.tensor([p]), 8)) for x, p in ((q, i), (k, j))]
        return (turned[0] * turned[1]).sum()

    for shift in (1, 7, 100):
        torch.testing.assert_close(product(5, 2), product(5 + shift, 2 + shift))
    assert (product(5, 2) - product(6, 2)).abs() > 1e-3


def test_position_zero_turns_nothing_and_no_length_changes():
    x = torch.randn(3, 10, 8)
    turned = rotate(x, rotation(torch.arange(10), 8))
    assert torch.equal(turned[:, 0], x[:, 0])
    pairs = x.unflatten(-1, (4, 2)).norm(dim=-1), turned.unflatten(-1, (4, 2)).norm(dim=-1)
    torch.testing.assert_close(*pairs)


def test_neighbouring_channels_are_a_pair_and_later_pairs_turn_slower():
    turned = rotate(torch.tensor([[1.0, 0.0, 0.0, 1.0]]), rotation(torch.tensor([3]), 4))
    slow = 3 / math.sqrt(10000)
    expected = [math.cos(3), math.sin(3), -math.sin(slow), math.cos(slow)]
    torch.testing.assert_close(turned, torch.tensor([expected]))


def test_angles_are_float32_whatever_the_precision():
    assert rotation(torch.tensor([1000], dtype=torch.bfloat16), 8).dtype == torch.float32
    assert rotate(torch.ones(1, 8).bfloat16(), rotation(torch.arange(1), 8)).dtype == torch.bfloat16
