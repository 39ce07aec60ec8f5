from __future__ import annotations

import pytest
import torch

from common.panoramas import classifier
from common.panoramas.dataset import CLASS_NAMES, Panoramas


@pytest.fixture(scope="module")
def lessons():
    return classifier.stack(Panoramas(270, 64, seed=5, cache=False))


def learn(lessons, seed=0, epochs=6):
    pictures, labels = lessons
    return classifier.train(pictures, labels, len(CLASS_NAMES), seed, epochs, batch_size=18)


def test_it_names_panoramas_of_another_world(lessons):
    unseen = classifier.stack(Panoramas(90, 64, seed=6, cache=False))
    right, count = classifier.agreement(learn(lessons), *unseen)
    assert count == [10] * len(CLASS_NAMES)
    assert sum(right) >= 0.9 * sum(count)


def test_training_is_decided_by_its_seed_alone(lessons):
    def weights(seed):
        torch.rand(3)  # moves the ambient generator
        return torch.cat([p.flatten() for p in learn(lessons, seed, 1).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_agreement_counts_each_class():
    class Red(classifier.Classifier):  # names class 1 where there is any red
        def forward(self, x):
            red = (x[:, 0].amax((1, 2)) > 0).float()
            return torch.stack([1 - red, red, 0 * red], 1)

    pictures = torch.zeros(5, 3, 32, 32, dtype=torch.uint8)
    pictures[2:, 0] = 255
    found = classifier.agreement(Red(3), pictures, torch.tensor([0, 1, 1, 1, 2]))
    assert found == ([1, 2, 0], [1, 3, 1])


@pytest.mark.parametrize(
    ("width", "starts"), [(1024, [768, 832, 896, 960]), (1000, [808, 872, 936]), (64, [0])]
)
def test_far_crops_lie_side_by_side_at_the_right_end(width, starts):
    strip = torch.arange(width).expand(3, 64, width)
    crops = classifier.far_crops(strip, 64)
    assert crops.shape == (len(starts), 3, 64, 64)
    assert crops[:, 0, 0, 0].tolist() == starts
    assert crops[-1, 0, 0, -1] == width - 1
