import pytest
import torch

from common.images import to_float
from common.panoramas import classifier
from common.panoramas.dataset import CLASS_NAMES, Panoramas


def panoramas(length, seed):
    pixels, labels = zip(*Panoramas(length, 64, seed=seed), strict=True)
    return torch.stack(pixels), torch.tensor(labels)


@pytest.fixture(scope="module")
def lessons():
    return panoramas(360, 5)


def test_it_names_panoramas_of_another_world(lessons):
    model = classifier.train(*lessons, len(CLASS_NAMES), 0)
    pixels, labels = panoramas(90, 6)
    assert (model(to_float(pixels)).argmax(1) == labels).float().mean() >= 0.9


def test_training_is_decided_by_its_seed_alone(lessons):
    def weights(seed):
        torch.rand(3)  # moves the ambient generator
        model = classifier.train(*(x[:32] for x in lessons), len(CLASS_NAMES), seed)
        return torch.cat([p.flatten() for p in model.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
