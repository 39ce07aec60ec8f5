from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from common import images
from common.distributed import Process
from common.errors import UserError
from common.metrics.extraction import Loading
from common.metrics.features import Extractor
from common.metrics.references import compute_statistics, load_reference
from common.metrics.sources import Crop, open_images
from common.metrics.statistics import write_statistics

CPU = torch.device("cpu")
ALONE = Process(0, 0, 1, CPU)


class Means(nn.Module):
    """Four means of colour an image, as features and logits."""

    def forward(self, pictures):
        return pictures.float().mean(3).flatten(1)[:, :4].repeat(1, 2)


@pytest.fixture
def extractor():
    return Extractor("inception", Means(), 4, 4, "abc", "file.pth", True, "none", CPU)


@pytest.fixture
def folder(tmp_path):
    """Six pictures in two classes, 30 x 40 and 40 x 30 pixels."""
    noise = np.random.default_rng(0)
    for k in range(6):
        shape = (30, 40, 3) if k % 2 else (40, 30, 3)
        path = tmp_path / "pictures" / str(k % 2) / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(256, size=shape, dtype=np.uint8)).save(path)
    return tmp_path / "pictures"


@pytest.fixture
def config(folder, tmp_path):
    def write(**params):
        target = {"target": "common.data.folders.ImageFolder"}
        node = {**target, "params": {"root": str(folder), "size": 16, **params}}
        path = tmp_path / "data.yaml"
        path.write_text(yaml.safe_dump({"data": {"params": {"validation": node}}}))
        return path

    return write


def statistics(path, extractor, source, **options):
    pictures = open_images(source, **options)
    write_statistics(path, *compute_statistics(pictures, extractor, ALONE, Loading(4)))
    return path


def read_statistics(path, extractor):
    return load_reference(path, extractor, ALONE, Loading())


def test_statistics_survive_the_file(folder, extractor, tmp_path):
    path = statistics(tmp_path / "s.npz", extractor, folder, crop=Crop("center", 16))
    found = read_statistics(path, extractor)
    pictures = open_images(folder, Crop("center", 16)).dataset
    features = extractor(torch.stack([pictures[i][0] for i in range(6)]))[:, :4].double()
    torch.testing.assert_close(found.statistics.mean, features.mean(0))
    root = found.statistics.root
    torch.testing.assert_close(root.T @ root, torch.cov(features.T), atol=1e-6, rtol=1e-6)
    assert found.record["images"] == 6 and found.warnings == ()
    assert found.record["preparation"] == "center crop of 16 x 16"
    assert found.record["extractor"]["weights"] == "abc"
    with np.load(path) as file:
        assert file["mu"].dtype == file["sigma"].dtype == np.float64
        assert file["num_images"] == 6
        assert json.loads(str(file["record"]))["source"] == str(folder)


def test_statistics_of_another_extractor_are_refused(folder, extractor, tmp_path):
    path = statistics(tmp_path / "s.npz", extractor, folder, crop=Crop("center", 16))
    for other in (replace(extractor, name="random:0"), replace(extractor, weights="def")):
        with pytest.raises(UserError, match=r"s.npz: found statistics of extractor inception"):
            read_statistics(path, other)
    wider = replace(extractor, width=5)
    with pytest.raises(UserError, match=r"found mu \[4\] and sigma \[4, 4\], expected \[5\] and"):
        read_statistics(path, wider)


def test_statistics_in_the_layout_of_adm(extractor, tmp_path):
    path = tmp_path / "VIRTUAL.npz"
    arrays = {"mu": np.ones(4), "sigma": np.eye(4), "mu_s": np.ones(7), "sigma_s": np.eye(7)}
    np.savez(path, arr_0=np.zeros((2, 8, 8, 3), np.uint8), **arrays)
    found = read_statistics(path, extractor)
    assert found.features is None and found.statistics.variance == pytest.approx(4)
    assert "taken for statistics of Inception" in found.warnings[0]
    assert len(found.record["sha256"]) == 64
    with pytest.raises(UserError, match=r"VIRTUAL.npz: does not say which extractor made it"):
        read_statistics(path, replace(extractor, name="random:0"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.ones(4)}, "found mu, expected mu and sigma"),
        ({"mu": np.ones(3), "sigma": np.eye(3)}, r"found mu \[3\] and sigma"),
        ({"mu": np.ones(4), "sigma": -np.eye(4)}, "found sigma with a negative variance"),
        ({"mu": np.ones(4), "sigma": np.triu(np.ones((4, 4)))}, "found sigma not symmetric"),
        ({"mu": np.full(4, np.nan), "sigma": np.eye(4)}, "found values that are not finite"),
        ({"mu": np.ones(4, int), "sigma": np.eye(4)}, "found mu of int64, expected floats"),
        ({"mu": np.ones(4), "sigma": np.eye(4), "record": "{}"}, "damaged or changed"),
        ({"mu": np.array([None] * 4), "sigma": np.eye(4)}, "not a readable .npz"),
        (b"PK\x03\x04 and no more", "not a readable .npz"),
        (None, "no such file"),
    ],
)
def test_wrong_files_of_statistics_are_named(extractor, tmp_path, arrays, message):
    path = tmp_path / "wrong.npz"
    if isinstance(arrays, bytes):
        path.write_bytes(arrays)
    elif arrays is not None:
        np.savez(path, **arrays)
    with pytest.raises(UserError, match=rf"wrong.npz: {message}"):
        read_statistics(path, extractor)


def test_images_of_a_folder_and_those_inside_it(folder, extractor):
    found = load_reference(folder, extractor, ALONE, Loading(4))
    assert found.record["images"] == len(found.features) == 6
    assert found.record["preparation"] == "as they are"
    assert "3 of 6 images are not of" in found.warnings[0]
    for source, message in (
        (folder / "0" / "0.png", "no such folder"),
        (folder.parent / "none", "no such folder"),
        (folder.parent, None),
    ):
        if message:
            with pytest.raises(UserError, match=message):
                open_images(source)
        else:
            assert len(open_images(source).dataset) == 6
    (folder.parent / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: found no images in it"):
        open_images(folder.parent / "empty")


def test_images_of_a_yaml_file_have_its_crops(config, folder):
    found = open_images(config())
    assert (len(found.dataset), found.preparation) == (6, "crops of the data set")
    assert found.dataset[0][0].shape == (3, 16, 16)
    changed = open_images(config(), overrides=["data.params.validation.params.size=20"])
    assert '"size": 20' in changed.source and changed.dataset[0][0].shape == (3, 20, 20)
    own = Crop("adm-center", 8)
    assert open_images(config(train=True), own).dataset[0][0].shape == (3, 8, 8)
    with pytest.raises(UserError, match=r"data.params.validation draws random crops or flips"):
        open_images(config(train=True))
    with pytest.raises(UserError, match=r"data.yaml: has no data.params.test; expected"):
        open_images(config(), part="test")
    drawn = folder.parent / "drawn.yaml"
    node = {"target": "common.panoramas.dataset.Panoramas", "params": {"length": 2, "size": 64}}
    drawn.write_text(yaml.safe_dump({"data": {"params": {"validation": node}}}))
    with pytest.raises(UserError, match=r"--crop: given, but .* has no picture files"):
        open_images(drawn, own)


def test_pictures_that_others_replace_are_reported(config, folder, extractor):
    (folder / "0" / "2.png").write_bytes(b"damaged")
    found = load_reference(config(), extractor, ALONE, Loading(4))
    assert any("1 of 6 pictures could not be read" in text for text in found.warnings)


def test_the_crop_of_adm():
    # a picture of 4 equal pixels a side: halving by averages keeps them, bicubic would not
    small = np.random.default_rng(0).integers(256, size=(8, 12, 3), dtype=np.uint8)
    large = Image.fromarray(small.repeat(4, 0).repeat(4, 1))
    found = images.adm_crop(large, 8)
    assert np.array_equal(found.permute(1, 2, 0), small[:, 2:10])
    # between a half and the whole: Pillow's bicubic, then the centre
    picture = Image.fromarray(
        np.random.default_rng(1).integers(256, size=(20, 30, 3), dtype=np.uint8)
    )
    expected = np.asarray(picture.resize((18, 12), Image.Resampling.BICUBIC))[:, 3:15]
    assert np.array_equal(images.adm_crop(picture, 12).permute(1, 2, 0), expected)
