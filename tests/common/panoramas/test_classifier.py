import pytest
import torch

from common.panoramas import classifier
from common.panoramas.dataset import CLASS_NAMES, Panoramas


def panoramas(length, seed):
    pixels, labels = zip(*Panoramas(length, 64, seed=seed), strict=True)
    return torch.stack(pixels), torch.tensor(labels)


@pytest.fixture(scope="module")
def lessons():
    return panoramas(540, 5)


def test_it_names_panoramas_of_another_world(lessons):
    model = classifier.train(*lessons, len(CLASS_NAMES), 0)
    right, count = classifier.agreement(model, *panoramas(90, 6))
    assert count == [10] * len(CLASS_NAMES)
    assert sum(right) >= 0.9 * sum(count)


def test_training_is_decided_by_its_seed_alone(lessons):
    def weights(seed):
        torch.rand(3)  # moves the ambient generator
        model = classifier.train(*(x[:32] for x in lessons), len(CLASS_NAMES), seed)
        return torch.cat([p.flatten() for p in model.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_agreement_counts_each_class():
    def red(x):  # names class 1 where there is any red
        found = (x[:, 0].amax((1, 2)) > 0).float()
        return torch.stack([1 - found, found, 0 * found], 1)

    pixels = torch.zeros(5, 3, 32, 32, dtype=torch.uint8)
    pixels[2:, 0] = 255
    found = classifier.agreement(red, pixels, torch.tensor([0, 1, 1, 1, 2]))
    assert found == ([1, 2, 0], [1, 3, 1])
