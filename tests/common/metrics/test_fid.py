import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from common.errors import UserError
from common.metrics import fid
from common.metrics.fid import Statistics, frechet_distance, read_statistics


def gaussian(mean, covariance):
    return Statistics.from_covariance(
        torch.tensor(mean).double(), torch.as_tensor(covariance).double()
    )


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
    overlap = ((a @ b).trace() + 2 * torch.linalg.det(a @ b).sqrt()).sqrt()
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
    stored = [Statistics.from_covariance(*map(torch.from_numpy, s.values())) for s in plain]
    assert frechet_distance(ours[0], stored[1]) == pytest.approx(expected, rel=1e-6)


def test_covariance_in_parts_is_that_of_all_features_at_once(monkeypatch):
    monkeypatch.setattr(fid, "CHUNK", 4)
    features = torch.randn(11, 5)
    found = Statistics.of(features)
    torch.testing.assert_close(found.mean, features.double().mean(0))
    torch.testing.assert_close(found.root.T @ found.root, torch.cov(features.double().T))


def test_the_score_counts_classes_that_are_certain():
    logits = 100.0 * torch.eye(8).repeat(4, 1)[torch.randperm(32)]
    assert fid.inception_score(logits, 1) == (pytest.approx(8), None)
    assert fid.inception_score(torch.zeros(32, 8), 4) == (pytest.approx(1), 0)


@pytest.mark.parametrize("names", [("mu", "sigma"), ("mean", "cov")])
def test_statistics_in_the_layout_of_adm(tmp_path, names):
    arrays = dict(zip(names, (np.ones(4), np.eye(4)), strict=True))
    np.savez(tmp_path / "s.npz", arr_0=np.zeros((2, 8, 8, 3), np.uint8), **arrays)
    found, record = read_statistics(tmp_path / "s.npz")
    assert "does not say" in record["warnings"][0] and found.mean.tolist() == [1] * 4
    torch.testing.assert_close(found.root.T @ found.root, torch.eye(4).double())


@pytest.mark.parametrize(
    "arrays",
    [
        {"mu": np.ones(4)},
        {"mu": np.ones(3), "sigma": np.eye(4)},
        {"mu": np.ones(4), "sigma": -np.eye(4)},
        {"mu": np.ones(4), "sigma": np.triu(np.ones((4, 4)))},
        {"mu": np.full(4, np.nan), "sigma": np.eye(4)},
        {"mu": np.array([None] * 4), "sigma": np.eye(4)},
        {"mu": np.ones(4), "sigma": np.eye(4), "record": "{}x"},
        {"mu": np.ones(4), "sigma": np.eye(4), "record": "[1]"},
        {
            **{"mu": np.ones(4), "sigma": np.eye(4)},
            "record": '{"images": 2, "source": "x", "extractor": "x", "warnings": []}',
        },
    ],
)
def test_damaged_statistics_are_named(tmp_path, arrays):
    path = tmp_path / "s.npz"
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=r"s\.npz"):
        read_statistics(path)
    np.savez(path, mu=np.ones(64), sigma=np.eye(64))
    whole = path.read_bytes()
    for damaged in (whole[:-100], b"", whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"s\.npz"):
            read_statistics(path)
