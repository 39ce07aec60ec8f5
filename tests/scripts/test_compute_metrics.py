from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from PIL import Image

RANDOM = ("--extractor", "random", "--device", "cpu")


@pytest.fixture(scope="module")
def measured(picture_folders, start, tmp_path_factory):
    """The figures of two folders, and the weights they were made with."""
    folder = tmp_path_factory.mktemp("measured")
    files = ("--json", folder / "metrics.json", "--random_weights", folder / "random.pth")
    done = start("compute_metrics", *picture_folders, *RANDOM, "--splits", 1, *files)
    assert done.code == 0, done.err
    return json.loads((folder / "metrics.json").read_text()), folder / "random.pth", done


def test_figures_are_those_of_torch_fidelity(picture_folders, measured):
    record, weights, _ = measured
    one, other = map(str, picture_folders)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch_fidelity.fidelity", "--cpu", "--json", "--no-cache"),
            *("--isc", "--fid", "--kid", "--prc", "--input1", one, "--input2", other),
            *("--isc-splits", "1", "--kid-subset-size", "9", "--silent"),
            *("--feature-extractor", "inception-v3-compat"),  # for precision and recall too
            *("--feature-extractor-weights-path", str(weights)),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    theirs, ours = json.loads(done.stdout), record["figures"]
    for name, key in {
        "random_features_distance": "frechet_inception_distance",
        "random_features_score": "inception_score_mean",
        "random_features_kernel_distance": "kernel_inception_distance_mean",
        "random_features_precision": "precision",
        "random_features_recall": "recall",
    }.items():
        assert ours[name] == pytest.approx(theirs[key], rel=1e-4), name
    assert ours["random_features_distance"] > 1 and ours["random_features_recall"] < 1


def test_the_record_names_all_conditions(picture_folders, measured):
    record, _, done = measured
    assert record["images"]["source"] == str(picture_folders[0])
    assert record["images"]["images"] == record["reference"]["images"] == 9
    assert record["extractor"]["name"] == "random:0"
    assert record["settings"]["splits"] == 1
    assert record["conditions"]["torch"] and record["images_per_second"] > 0
    assert not any("fid" in name for name in record["figures"])
    assert any("no figure here is an FID" in text for text in record["warnings"])
    assert "random_features_distance" in done.out and "warning: " in done.out


def test_against_statistics_only_what_they_allow(picture_folders, call, tmp_path):
    other = picture_folders[1]
    small = tmp_path / "small"
    small.mkdir()
    for path in sorted(other.iterdir())[:4]:
        shutil.copy(path, small)
    done = call("compute_fid_stats", small, tmp_path / "s.npz", *RANDOM)
    assert done.code == 0, done.err
    assert done.out == f"4 images, as they are: {tmp_path / 's.npz'}\n"
    again = call("compute_fid_stats", small, tmp_path / "s.npz", *RANDOM)
    assert again.code == 2 and "s.npz: is there already; expected another name, or" in again.err

    file = tmp_path / "m.json"
    done = call("compute_metrics", small, tmp_path / "s.npz", *RANDOM, "--json", file)
    assert done.code == 0, done.err
    record = json.loads(file.read_text())
    assert record["figures"]["random_features_distance"] == pytest.approx(0, abs=1e-3)
    assert record["figures"].keys() == {
        *("random_features_distance", "random_features_score", "random_features_score_std")
    }
    reason = "the reference has statistics only, not images"
    assert record["not_measured"] == {"kid": reason, "prc": reason}
    assert f"not measured: kid: {reason}" in done.out


def test_mistakes_are_named_before_the_work(picture_folders, call, tmp_path):
    one, other = picture_folders
    few = tmp_path / "few"
    few.mkdir()
    Image.open(next(one.iterdir())).save(few / "0.jpg")
    (tmp_path / "empty").mkdir()
    for given, message in (
        ((few, tmp_path / "none.npz"), "none.npz"),
        ((tmp_path / "empty", other), "empty"),
        ((tmp_path / "gone", other), "gone"),
        ((other, one, "--num_images", 50), "expected 50"),
        ((tmp_path / "s.npz", one), "s.npz"),
        ((one, other, "--extractor", "inception", "--weights_dir", tmp_path), "missing in"),
        ((one, other, "--random_weights", few / "0.jpg"), "0.jpg"),
        (
            (one, other, "--extractor", "inception", "--random_weights", tmp_path / "x.pth"),
            "--random_weights",
        ),
        ((one, other, "a.b=1"), "a.b=1"),
        ((one, few), "few: found 1"),
        ((few, one, "--strict"), "0.jpg"),
        ((one, other, "--metric_bsz", 0), "metric_bsz"),
    ):
        flags = RANDOM if "--extractor" not in given else RANDOM[2:]
        done = call("compute_metrics", *given, *flags, "--json", tmp_path / "m.json")
        assert done.code == 2 and message in done.err, (message, done.err)
        assert done.err.splitlines()[-1].startswith("error: ") and "Traceback" not in done.err
    assert not (tmp_path / "m.json").exists()
