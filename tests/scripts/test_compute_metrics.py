import json
import shutil

import pytest
import torch_fidelity
from PIL import Image

from common import checkpoint
from common.metrics.features import random_weights

RANDOM = ("--extractor", "random", "--device", "cpu")


def test_figures_are_those_of_torch_fidelity_with_all_conditions(image_folders, call, tmp_path):
    one, other = map(str, image_folders)
    done = call("compute_metrics", one, other, *RANDOM, "--json", tmp_path / "m.json")
    assert done.code == 0, done.err
    assert "random_features_distance" in done.out and "warning: " in done.out
    record = json.loads((tmp_path / "m.json").read_text())
    assert record["images"]["source"] == one
    assert record["images"]["images"] == record["reference"]["images"] == 9
    assert record["extractor"]["name"] == "random:0" and record["settings"]["splits"] == 1
    assert record["conditions"]["torch"]
    assert not any("fid" in name for name in record["figures"])

    checkpoint.save(tmp_path / "random.pth", random_weights(0))
    theirs = torch_fidelity.calculate_metrics(
        **{"input1": one, "input2": other, "cuda": False, "verbose": False, "cache": False},
        **{"isc": True, "fid": True, "isc_splits": 1, "save_cpu_ram": True},
        feature_extractor_weights_path=str(tmp_path / "random.pth"),
    )
    for name, key in {
        "random_features_distance": "frechet_inception_distance",
        "random_features_score": "inception_score_mean",
    }.items():
        assert record["figures"][name] == pytest.approx(theirs[key], rel=1e-4), name
    assert record["figures"]["random_features_distance"] > 1


def test_against_statistics(image_folders, call, tmp_path):
    small, statistics, file = tmp_path / "small", tmp_path / "s.npz", tmp_path / "m.json"
    small.mkdir()
    for path in sorted(image_folders[1].iterdir())[:4]:
        shutil.copy(path, small)
    done = call("compute_fid_stats", small, statistics, *RANDOM)
    assert done.code == 0, done.err
    assert done.out == f"4 images, as they are: {statistics}\n"
    again = call("compute_fid_stats", small, statistics, *RANDOM)
    assert again.code == 2 and "s.npz: expected a new file" in again.err

    done = call("compute_metrics", small, statistics, *RANDOM, "--json", file)
    assert done.code == 0, done.err
    record = json.loads(file.read_text())
    assert record["figures"]["random_features_distance"] == pytest.approx(0, abs=1e-3)


def test_mistakes_are_named_before_the_work(image_folders, call, tmp_path):
    one, other = image_folders
    few = tmp_path / "few"
    few.mkdir()
    lossy = tmp_path / "lossy"
    shutil.copytree(one, lossy)
    for folder in (few, lossy):
        Image.open(next(one.iterdir())).save(folder / "0.jpg")
    for given, message in (
        ((one, tmp_path / "none.npz"), "none.npz"),
        ((tmp_path / "gone", other), "gone"),
        ((other, one, "--num_images", 50), "expected 50"),
        ((one, other, "--extractor", "inception", "--weights_dir", tmp_path), "missing in"),
        ((one, other, "a.b=1"), "a.b=1"),
        ((one, few), "few: found 1 image"),
        ((lossy, one, "--strict"), "0.jpg"),
    ):
        flags = RANDOM if "--extractor" not in given else RANDOM[2:]
        done = call("compute_metrics", *given, *flags, "--json", tmp_path / "m.json")
        assert done.code == 2 and message in done.err, (message, done.err)
        assert done.err.splitlines()[-1].startswith("error: ") and "Traceback" not in done.err
    assert not (tmp_path / "m.json").exists()
