import copy

import pytest
import torch

from common import provenance
from generator import inference
from generator.inference import InferenceLinear, can_pack, prepare
from generator.sampling import SampleConfig

from .plain import sample

SAMPLING = SampleConfig(cfg=3.0, steps=4)
LABELS = torch.tensor([1, 4])


@pytest.fixture
def noise():
    return torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def expected(model, noise):
    return sample(model, LABELS, noise, SAMPLING)


def kinds(module, kind):
    return [name for name, child in module.named_modules() if isinstance(child, kind)]


@pytest.mark.skipif(not can_pack(torch.float32), reason="this build of torch cannot pack weights")
@pytest.mark.parametrize("shape", [(1, 32), (5, 32), (2, 1, 32), (3, 7, 32)])
@torch.no_grad()
def test_a_packed_product_is_the_product(shape):
    linear, x = torch.nn.Linear(32, 48), torch.randn(shape)
    packed = InferenceLinear(linear, torch.float32, packed=True)
    torch.testing.assert_close(packed(x), linear(x))
    strided = torch.randn(32, 5).mT
    torch.testing.assert_close(packed(strided), linear(strided))


def test_the_same_columns_come_from_packed_weights(model, noise, expected, monkeypatch):
    monkeypatch.setattr(provenance, "processor", lambda: "AMD EPYC")
    names = kinds(model, torch.nn.Linear)
    ready = prepare(model)
    if can_pack(torch.float32):
        left = set(kinds(ready, torch.nn.Linear))
        assert left == {"head.time.fc1", "head.time.fc2"}
        assert set(kinds(ready, InferenceLinear)) | left == set(names)
    torch.testing.assert_close(sample(ready, LABELS, noise, SAMPLING), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("packs", [True, False])
def test_bf16_is_near_and_keeps_the_time_in_float32(model, noise, expected, monkeypatch, packs):
    if not packs:
        monkeypatch.setattr(inference, "can_pack", lambda dtype: False)
    elif not can_pack(torch.bfloat16):
        pytest.skip("this processor does not multiply packed bfloat16 weights")
    ready = prepare(copy.deepcopy(model), "bf16")
    assert ready.token_in.packed == packs
    assert ready.head.time.fc1.weight.dtype == torch.float32
    found = sample(ready, LABELS, noise, SAMPLING)
    assert found.dtype == torch.float32
    error = (found - expected).abs().mean() / expected.abs().mean()
    assert 1e-5 < error < 0.05
