from __future__ import annotations

from itertools import count, islice

import pytest
import torch

from common.errors import UserError
from generator.checkpoints import LoadedGenerator
from generator.generate import redraw
from generator.guidance import Guidance
from generator.kv_cache import KVCache
from generator.sampling import SampleConfig, numbered, sample, sample_columns

from .plain import sample_plainly

STEPS = 4


def settings(guidance, steps=STEPS, **more):
    scale, schedule, ramp = guidance.scale, guidance.schedule, guidance.ramp
    return SampleConfig(cfg=scale, cfg_schedule=schedule, cfg_ramp=ramp, steps=steps, **more)


def compare(model, labels, length, guidance, given=(), last_position=None):
    """The engine against the plain sampler, some columns given."""
    labels = torch.tensor(labels)
    noise = torch.randn(len(labels), length, 6)
    columns = {column: torch.randn(len(labels), 6) for column in given}
    scales = [guidance.at(i) for i in range(length)]
    sampling = settings(guidance, last_position=last_position)
    found = sample(model, labels, noise, sampling, columns)
    expected = sample_plainly(model, labels, noise, scales, STEPS, columns, last_position)
    assert found.shape == (len(labels), length, 6)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    for column, token in columns.items():
        assert torch.equal(found[:, column], token)


@pytest.mark.parametrize("window", [0, 1, 3])
@pytest.mark.parametrize("length", [1, 4, 11])
def test_any_window_and_length(build, window, length):
    compare(build(window=window), [0, 3], length, Guidance(4.0, ramp=length))


@pytest.mark.parametrize(
    "guidance",
    [Guidance(1.0), Guidance(3.0, "linear", 5), Guidance(3.0, "constant"), Guidance(3.0, "none")],
    ids=str,
)
@pytest.mark.parametrize("labels", [[2], [1, 1, 1], [4, 0, 4, 2]], ids=str)
def test_any_guidance_and_classes(model, labels, guidance):
    compare(model, labels, 7, guidance)


@pytest.mark.parametrize("window", [0, 1])
@pytest.mark.parametrize("given", [(2,), (0, 4, 5), (1, 2, 3, 4, 5, 8)], ids=str)
def test_any_columns_may_be_given(build, window, given):
    """Also more of them in a row than the two layers reach back: three with a window of one."""
    compare(build(window=window), [0, 3], 9, Guidance(3.0), given)


@pytest.mark.parametrize("seed", range(12))
def test_random_settings(build, seed):
    """Models, lengths beyond window and class tokens, given columns, bounded positions."""
    draw = torch.Generator().manual_seed(seed)

    def choose(low, high):
        return int(torch.randint(low, high + 1, (), generator=draw))

    model = build(depth=choose(1, 3), window=choose(0, 4), context_tokens=choose(1, 5))
    length, batch = choose(1, 16), choose(1, 4)
    schedule = ("linear", "constant", "none")[choose(0, 2)]
    guidance = Guidance(choose(1, 5), schedule, choose(1, 20))
    labels = [choose(0, 4) for _ in range(batch)]
    given = [i for i in range(length) if choose(0, 2) == 0]
    compare(model, labels, length, guidance, given, [None, choose(0, 8)][choose(0, 1)])


@pytest.mark.parametrize("method", ["heun", "ab2"])
def test_other_solvers_come_to_the_same_columns(model, method):
    """Both follow the same flow: with many steps they and Euler's method agree."""
    labels, noise = torch.tensor([1]), torch.randn(1, 4, 6)
    guidance = Guidance(2.0)
    fine = sample(model, labels, noise, settings(guidance, 2000))
    found = sample(model, labels, noise, settings(guidance, 50, solver=method))
    coarse = sample(model, labels, noise, settings(guidance, 50))
    assert (found - fine).abs().mean() < 0.1 * (coarse - fine).abs().mean()


def test_columns_come_without_end_and_begin_the_same(model):
    labels, noise = torch.tensor([1]), torch.randn(1, 30, 6)
    endless = (noise[:, i % 30] for i in count())
    columns = sample_columns(model, labels, endless, settings(Guidance(3.0)))
    found = torch.stack(list(islice(columns, 50)), 1)
    short = sample(model, labels, noise[:, :9], settings(Guidance(3.0)))
    assert torch.equal(found[:, :9], short)
    assert found[:, 30:].isfinite().all()


class TestRedraw:
    sampling = settings(Guidance(3.0))
    labels = (4, 0)

    @pytest.fixture
    def noise(self):
        return torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(5))

    @pytest.fixture
    def tokens(self, model, noise):
        return sample(model, torch.tensor(self.labels), noise, self.sampling)

    def test_columns_before_are_kept_and_columns_after_are_drawn(self, model, tokens, noise):
        new = {3: torch.randn(2, 6), 5: torch.randn(2, 6)}
        found = redraw(LoadedGenerator(model, []), self.labels, tokens, new, self.sampling, noise)
        assert torch.equal(found[:, :3], tokens[:, :3])
        assert torch.equal(found[:, 3], new[3]) and torch.equal(found[:, 5], new[5])
        scales = [self.sampling.guidance().at(i) for i in range(8)]
        given = {**numbered(tokens[:, :3]), **new}
        expected = sample_plainly(model, torch.tensor(self.labels), noise, scales, STEPS, given)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        assert all((found - tokens)[:, i].abs().max() > 1e-3 for i in (4, 6, 7))

    def test_a_column_put_back_gives_the_image_back(self, model, tokens, noise):
        for replaced in ({2: tokens[:, 2]}, {2: None}, {0: None, 7: None}, {}):
            found = redraw(
                LoadedGenerator(model, []), self.labels, tokens, replaced, self.sampling, noise
            )
            torch.testing.assert_close(found, tokens, atol=1e-5, rtol=0)

    def test_new_noise_draws_the_column_anew(self, model, tokens, noise):
        other = noise.clone()
        other[:, 4] = torch.randn(2, 6)
        found = redraw(
            LoadedGenerator(model, []), self.labels, tokens, {4: None}, self.sampling, other
        )
        assert torch.equal(found[:, :4], tokens[:, :4])
        assert all((found - tokens)[:, i].abs().max() > 1e-3 for i in range(4, 8))
        torch.testing.assert_close(
            found, sample(model, torch.tensor(self.labels), other, self.sampling), atol=1e-5, rtol=0
        )

    @pytest.mark.parametrize("column", [-1, 8])
    def test_columns_that_are_not_there(self, model, tokens, noise, column):
        with pytest.raises(UserError, match="expected 0 … 7"):
            redraw(
                LoadedGenerator(model, []),
                self.labels,
                tokens,
                {column: None},
                self.sampling,
                noise,
            )


@pytest.mark.parametrize("label", [-1, 5])
def test_labels_that_are_no_class(model, label):
    with pytest.raises(UserError, match="class labels"):
        sample(model, torch.tensor([0, label]), torch.zeros(2, 1, 6), SampleConfig())


@pytest.fixture
def memory(model):
    return model.read_condition(torch.tensor([0, 1]))


@pytest.mark.parametrize("window", [0, 1, 3])
@pytest.mark.parametrize("pieces", [[1] * 9, [9], [1, 4, 1, 3], [2, 7]], ids=str)
@pytest.mark.parametrize("last_position", [None, 4])
@torch.no_grad()
def test_columns_in_pieces_give_what_all_give(build, window, pieces, last_position):
    model = build(window=window)
    tokens, memory = torch.randn(2, 9, 6), model.read_condition(torch.tensor([0, 1]))
    expected = model.hidden(tokens, memory, last_position=last_position)
    cache = KVCache(model, memory, last_position)
    torch.testing.assert_close(cache.first(), expected[:, 0])
    end = 0
    for some in tokens.split(pieces, dim=1):
        end += some.shape[1]
        torch.testing.assert_close(cache.read(some), expected[:, end])


@torch.no_grad()
def test_memory_does_not_grow(model, memory):
    cache = KVCache(model, memory)
    for i in range(1, 12):
        cache.read(torch.randn(2, 1, 6))
        assert {k.shape[2] for k, _ in cache.past} == {min(i, model.config.window)}


@torch.no_grad()
def test_what_lies_out_of_reach_can_be_forgotten(model, memory):
    """Two layers with a window of three see back seven columns, and no fewer."""
    tokens = torch.randn(2, 20, 6)
    expected = model.hidden(tokens, memory)[:, -1]
    for extra, same in ((0, True), (-1, False)):
        cache = KVCache(model, memory)
        assert model.layout.reach(len(model.layers)) == 7
        cache.read(torch.randn(2, 4, 6))
        cache.forget(20 - model.layout.reach(len(model.layers)) - extra)
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
