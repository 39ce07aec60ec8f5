import pytest
import torch
from safetensors.torch import save_file

from common import checkpoint
from common.errors import UserError
from common.metrics.features import load_extractor, random_weights
from common.pretrained.files import FILES

INCEPTION = FILES["inception"].name


def test_random_weights_have_a_seed_and_a_name(random_extractor):
    found = random_extractor.state_dict()
    assert all(torch.equal(found[k], v) for k, v in random_weights(0).items())
    # these digits are the promise that the weights are the same on every machine
    assert random_extractor.about["weights"] == "609e75323747c326"
    assert random_extractor.about["name"] == "random:0" and random_extractor.is_random


def test_features_spread_and_do_not_depend_on_the_batch(random_extractor):
    noise = torch.randint(256, (2, 3, 40, 60), dtype=torch.uint8)
    rows = random_extractor(noise)
    assert rows.shape == (2, 2048 + 1008) and rows.dtype == torch.float32
    assert 0.01 < rows[:, :2048].std() < 10 and 0.1 < rows[:, 2048:].std() < 100
    # sizes that differ: one after the other
    apart = random_extractor([noise[0], noise[1, :, :30]])
    torch.testing.assert_close(apart[0], rows[0], rtol=1e-3, atol=1e-3 * rows.std().item())
    assert not torch.allclose(apart[1], rows[1])


def test_weights_of_inception_are_those_published_or_converted(tmp_path):
    weights = random_weights(1)
    checkpoint.save(tmp_path / INCEPTION, weights)
    with pytest.raises(UserError, match=INCEPTION):
        load_extractor("inception", tmp_path)
    (tmp_path / INCEPTION).unlink()
    # without the counters of training, as a converted file may be
    trained = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    save_file(trained, (tmp_path / INCEPTION).with_suffix(".safetensors"))
    extractor = load_extractor("inception", tmp_path)
    assert extractor.about["file"] == FILES["inception"].name.replace(".pth", ".safetensors")
    assert extractor.about["weights"] == checkpoint.weights_hash(weights)


def test_missing_and_wrong_weights_are_named(tmp_path):
    for name, expected in (
        ("inception", INCEPTION),
        ("inception:3", "inception:3"),
        ("random:x",) * 2,
    ):
        with pytest.raises(UserError, match=expected):
            load_extractor(name, tmp_path)
    path = (tmp_path / INCEPTION).with_suffix(".safetensors")
    save_file({"fc.bias": torch.zeros(1008)}, path)
    with pytest.raises(UserError, match=path.name):
        load_extractor("inception", tmp_path)
