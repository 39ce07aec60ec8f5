from dataclasses import replace
from itertools import count, islice

import pytest
import torch

from common.errors import UserError
from generator.checkpoints import LoadedGenerator
from generator.generate import continue_image, generate_tokens, redraw, scroll
from generator.kv_cache import KVCache
from generator.sampling import SampleConfig, sample_columns

from .plain import hidden, sample, sample_plainly

STEPS = 4


def guided(cfg, schedule="linear", ramp=16, steps=STEPS, **more):
    return SampleConfig(cfg=cfg, cfg_schedule=schedule, cfg_ramp=ramp, steps=steps, **more)


def compare(model, labels, length, config, given=()):
    """The engine against the plain sampler, some columns given."""
    labels = torch.tensor(labels)
    noise = torch.randn(len(labels), length, 6)
    columns = {column: torch.randn(len(labels), 6) for column in given}
    scales = [config.scale_at(i) for i in range(length)]
    found = sample(model, labels, noise, config, columns)
    expected = sample_plainly(model, labels, noise, scales, STEPS, columns, config.last_position)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert all(torch.equal(found[:, column], token) for column, token in columns.items())


@pytest.mark.parametrize(
    ("cfg", "schedule", "scales"),
    [
        (5.0, "linear", [2.0, 3.0, 4.0, 5.0, 5.0]),
        (5.0, "constant", [5.0] * 5),
        (1.0, "linear", [1.0] * 5),
    ],
)
def test_guidance_by_column(cfg, schedule, scales):
    config = guided(cfg, schedule, 4)
    assert [config.scale_at(i) for i in range(5)] == pytest.approx(scales)


@pytest.mark.parametrize("window", [0, 1])
@pytest.mark.parametrize("given", [(), (2,), (0, 4, 5), (1, 2, 3, 4, 5, 8)], ids=str)
def test_any_window_and_given_columns(build, window, given):
    """Also more of them in a row than the two layers reach back: three with a window of one."""
    compare(build(window=window), [0, 3], 9, guided(3.0), given)


@pytest.mark.parametrize("given", [(), (2,), (0, 4, 5)], ids=str)
def test_a_grid_of_tokens(build, given):
    """The cache against the plain sampler, each of which takes positions from the layout."""
    compare(build(window=0, grid=3), [0, 3, 1], 9, guided(3.0), given)


@pytest.mark.parametrize("seed", range(5))
def test_random_settings(build, seed):
    """Models, lengths beyond window and class tokens, given columns, bounded positions."""
    draw = torch.Generator().manual_seed(seed)

    def choose(low, high):
        return int(torch.randint(low, high + 1, (), generator=draw))

    model = build(depth=choose(1, 3), window=choose(0, 4), context_tokens=choose(1, 5))
    length, batch = choose(1, 16), choose(1, 4)
    schedule = ("linear", "constant")[choose(0, 1)]
    last = [None, choose(0, 8)][choose(0, 1)]
    config = guided(choose(1, 5), schedule, choose(1, 20), last_position=last)
    labels = [choose(0, 4) for _ in range(batch)]
    compare(model, labels, length, config, [i for i in range(length) if choose(0, 2) == 0])


@pytest.mark.parametrize("method", ["heun", "ab2"])
def test_other_solvers_come_to_the_same_columns(model, method):
    """Both follow the same flow: with many steps they and Euler's method agree."""
    labels, noise = torch.tensor([1]), torch.randn(1, 4, 6)
    fine = sample(model, labels, noise, guided(2.0, steps=1000))
    found = sample(model, labels, noise, guided(2.0, steps=50, solver=method))
    coarse = sample(model, labels, noise, guided(2.0, steps=50))
    assert (found - fine).abs().mean() < 0.1 * (coarse - fine).abs().mean()


def test_columns_come_without_end_and_begin_the_same(model):
    labels, noise = torch.tensor([1]), torch.randn(1, 30, 6)
    endless = (noise[:, i % 30] for i in count())
    columns = sample_columns(model, labels, endless, guided(3.0))
    found = torch.stack(list(islice(columns, 50)), 1)
    short = sample(model, labels, noise[:, :9], guided(3.0))
    assert torch.equal(found[:, :9], short)
    assert found[:, 30:].isfinite().all()


def test_columns_before_a_replaced_one_are_kept_and_columns_after_are_drawn(model):
    loaded, labels, config = LoadedGenerator(model, []), [4, 0], guided(3.0, columns=8)
    tokens = generate_tokens(loaded, labels, config)
    new = {3: torch.randn(2, 6), 5: torch.randn(2, 6)}
    found = redraw(loaded, labels, tokens, new, config)
    kept = {**{i: tokens[:, i] for i in range(3)}, **new}
    assert all(torch.equal(found[:, i], token) for i, token in kept.items())
    assert torch.equal(found, generate_tokens(loaded, labels, config, given=kept))
    assert all((found - tokens)[:, i].abs().max() > 1e-3 for i in (4, 6, 7))
    for replaced in ({2: tokens[:, 2]}, {2: None}, {0: None, 7: None}, {}):
        again = redraw(loaded, labels, tokens, replaced, config)
        torch.testing.assert_close(again, tokens, atol=1e-5, rtol=0)
    for column in (-1, 8):
        with pytest.raises(UserError):
            redraw(loaded, labels, tokens, {column: None}, config)


def test_a_grid_is_generated_as_a_whole(build):
    """Tokens within it can be replaced; nothing goes on beyond it."""
    loaded = LoadedGenerator(build(window=0, grid=3), [], columns=9)
    labels, config = [4], guided(2.0)
    tokens = generate_tokens(loaded, labels, config)
    again = redraw(loaded, labels, tokens, {4: None}, config)
    torch.testing.assert_close(again, tokens, atol=1e-5, rtol=0)
    image = torch.zeros(1, 3, 6, 4)
    for refused in (
        lambda: generate_tokens(loaded, labels, replace(config, columns=12)),
        lambda: next(scroll(loaded, None, labels, config)),
        lambda: continue_image(loaded, None, image, labels, 3),
    ):
        with pytest.raises(UserError, match="expected the 9 tokens of a grid"):
            refused()


@pytest.mark.parametrize("label", [-1, 5])
def test_labels_that_are_no_class(model, label):
    with pytest.raises(UserError, match="class labels"):
        sample(model, torch.tensor([0, label]), torch.zeros(2, 1, 6), SampleConfig())


@pytest.fixture
def memory(model):
    return model.read_condition(torch.tensor([0, 1]))


@pytest.mark.parametrize("window", [0, 1, 3])
@pytest.mark.parametrize("pieces", [[1] * 9, [9], [1, 4, 1, 3]], ids=str)
@pytest.mark.parametrize("last_position", [None, 4])
@torch.no_grad()
def test_columns_in_pieces_give_what_all_give(build, window, pieces, last_position):
    """At a memory that does not grow beyond the window."""
    model = build(window=window)
    tokens, memory = torch.randn(2, 9, 6), model.read_condition(torch.tensor([0, 1]))
    expected = hidden(model, tokens, memory, last_position)
    cache = KVCache(model, memory, last_position)
    torch.testing.assert_close(cache.first(), expected[:, 0])
    end = 0
    for some in tokens.split(pieces, dim=1):
        end += some.shape[1]
        torch.testing.assert_close(cache.read(some), expected[:, end])
        assert {k.shape[2] for k, _ in cache.past} == {min(end, window or end)}


@torch.no_grad()
def test_what_lies_out_of_reach_can_be_forgotten(model, memory):
    """Two layers with a window of three see back seven columns, and no fewer."""
    tokens = torch.randn(2, 20, 6)
    expected = model.hidden(tokens, memory)[:, -1]
    assert model.layout.reach(len(model.layers)) == 7
    for seen, same in ((7, True), (6, False)):
        cache = KVCache(model, memory)
        cache.read(torch.randn(2, 4, 6))
        cache.forget(20 - seen)
        found = cache.read(tokens[:, cache.position :])
        assert ((found - expected).abs().max() < 1e-5) == same


@torch.no_grad()
def test_a_run_of_millions_of_columns_attends_as_at_its_beginning(model, memory):
    """Positions that large would lose their last digits in float32."""
    tokens = torch.randn(2, 7, 6)
    found = []
    for start in (1_000, 50_000_001):
        cache = KVCache(model, memory, last_position=15)
        cache.forget(start)
        found.append(cache.read(tokens))
    assert torch.equal(*found)
