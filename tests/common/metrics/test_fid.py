from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from common.errors import UserError
from common.metrics import fid as fidelity
from common.metrics.fid import Statistics, count_splits, frechet_distance, named


def gaussian(mean, covariance):
    return Statistics.from_covariance(torch.tensor(mean), torch.as_tensor(covariance))


def test_frechet_distance_of_gaussians_is_the_closed_form():
    # covariances that commute: the sum of squared differences of the standard deviations
    a = gaussian([0.0, 1.0, 2.0], torch.diag(torch.tensor([1.0, 4.0, 0.0])))
    b = gaussian([3.0, 1.0, 0.0], torch.diag(torch.tensor([9.0, 1.0, 4.0])))
    expected = (9 + 0 + 4) + (1 - 3) ** 2 + (2 - 1) ** 2 + (0 - 2) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)


def test_frechet_distance_of_covariances_that_do_not_commute():
    # for 2 x 2: tr(√(AB)) = √(tr(AB) + 2 √det(AB))
    a, b = (torch.tensor(m).double() for m in ([[2.0, 0.5], [0.5, 1.0]], [[1.0, -0.3], [-0.3, 3]]))
    product = a @ b
    overlap = (product.trace() + 2 * torch.linalg.det(product).sqrt()).sqrt()
    expected = (a.trace() + b.trace() - 2 * overlap).item()
    found = frechet_distance(gaussian([0.0, 0.0], a), gaussian([0.0, 0.0], b))
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("counts", [(5, 7), (40, 60), (5, 60)])  # fewer and more than features
def test_statistics_of_features_are_those_of_torch_fidelity(counts):
    torch.manual_seed(0)
    sets = [torch.randn(n, 16) @ torch.randn(16, 16) + k for k, n in enumerate(counts)]
    plain = [fid_features_to_statistics(features.double()) for features in sets]
    expected = fid_statistics_to_metric(*plain, verbose=False)["frechet_inception_distance"]
    ours = [Statistics.of(features) for features in sets]
    assert frechet_distance(*ours) == pytest.approx(expected, rel=1e-6)
    for statistics, other in zip(ours, plain, strict=True):
        np.testing.assert_allclose(statistics.root.T @ statistics.root, other["sigma"], atol=1e-9)
    stored = [Statistics.from_covariance(*map(torch.from_numpy, s.values())) for s in plain]
    assert frechet_distance(ours[0], stored[1]) == pytest.approx(expected, rel=1e-6)


def test_what_is_no_covariance():
    for matrix, message in (
        ([[1.0, 2.0], [0.0, 1.0]], "symmetric"),
        ([[1.0, 2.0], [2.0, 1.0]], "negative"),
    ):
        with pytest.raises(ValueError, match=message):
            gaussian([0.0, 0.0], torch.tensor(matrix))


def test_the_score_counts_classes_that_are_certain():
    logits = 100.0 * torch.eye(8).repeat(4, 1)[torch.randperm(32)]
    assert fidelity.score(logits, 1) == {"is": pytest.approx(8), "is_std": None}
    assert fidelity.score(torch.zeros(32, 8), 4) == {"is": pytest.approx(1), "is_std": 0}


def test_distances_of_parts():
    torch.manual_seed(0)
    pooled = torch.randn(400, 4)
    far = Statistics.of(torch.randn(4000, 4) + 1)
    found = fidelity.distances(pooled, far, 4)
    parts = [frechet_distance(Statistics.of(p), far) for p in pooled.split(100)]
    assert found["fid_parts_mean"] == pytest.approx(np.mean(parts))
    assert found["fid_parts_std"] == pytest.approx(np.std(parts))
    assert found["fid"] == pytest.approx(4, abs=0.7)
    assert fidelity.distances(pooled, far, 1).keys() == {"fid"}


def test_precision_and_recall_of_sets_inside_one_another():
    grid = torch.cartesian_prod(*[torch.arange(8.0)] * 2)
    corner = grid[(grid < 4).all(1)] + 0.1
    assert fidelity.coverage(corner, grid)["precision"] == 1
    assert fidelity.coverage(corner, grid)["recall"] < 0.6
    assert fidelity.coverage(corner + 100, grid) == {"precision": 0, "recall": 0}


def test_the_kernel_distance_of_sets_from_one_distribution_is_near_zero():
    torch.manual_seed(0)
    a, b = torch.randn(2, 600, 8)
    near, far = fidelity.kernel_distance(a, b)["kid"], fidelity.kernel_distance(a, b + 1)["kid"]
    assert abs(near) < 0.02 < 0.5 < far


def test_only_inception_makes_an_fid():
    plain = {"fid": 1.0, "fid_parts_std": 0.1, "is": 2.0, "is_std": 0.2, "precision": 0.5}
    assert list(named(plain, "inception")) == [
        *("fid", "fid_parts_std", "inception_score", "inception_score_std", "precision")
    ]
    random = named(plain, "random")
    assert all(name.startswith("random_features_") for name in random)
    assert not any("fid" in name or "inception" in name for name in random)


def test_how_many_splits():
    assert [count_splits(None, n) for n in (1, 199, 200, 5000)] == [1, 1, 2, 10]
    assert count_splits(3, 6) == 3
    for asked, images in ((0, 10), (4, 7)):
        with pytest.raises(UserError, match=f"--splits: found {asked} for {images} images"):
            count_splits(asked, images)


def test_the_kernel_distance_of_whole_sets_has_no_deviation():
    torch.manual_seed(0)
    a, b = torch.randn(2, 20, 8)
    assert fidelity.kid_subsets(20, 20) == (1, 20)
    assert fidelity.kernel_distance(a, b)["kid_std"] is None
    assert fidelity.kid_subsets(20, 30) == (100, 20)
    assert fidelity.kernel_distance(a, torch.cat([b, a + 3]))["kid_std"] > 0
    assert fidelity.kid_subsets(50_000, 50_000) == (100, 1000)
