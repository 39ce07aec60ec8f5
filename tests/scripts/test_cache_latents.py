from __future__ import annotations

import pytest
import torch
from PIL import Image

from common import checkpoint, images
from common.config import load
from common.data.latents import LatentDataset
from common.panoramas.dataset import CLASS_NAMES, Panoramas
from tokenizer.checkpoints import load_tokenizer


def test_cached_tokens_are_the_posterior_means_of_every_image(project):
    tokenizer = load_tokenizer(project.stage_two_yaml)
    latents = LatentDataset(project.cached, tokenizer.fingerprint)
    params = load(project.stage_two_yaml).data.params.train.params
    pictures = Panoramas(**params)
    assert len(latents) == len(pictures) and latents.class_names == list(CLASS_NAMES)
    for k in (0, 5, 17):
        picture, label = pictures[k]
        mean, cached_label = latents[k]
        with torch.inference_mode():
            expected = tokenizer.encode(images.to_float(picture[None])).mode()[0]
        torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-5)
        assert cached_label == label
    assert latents.header.token_scale == float(tokenizer.token_scale)


def test_two_processes_write_one_file_in_the_order_of_the_data(project, together):
    one, two = checkpoint.load(project.cached), checkpoint.load(together / "latents.safetensors")
    torch.testing.assert_close(two["means"], one["means"], atol=1e-5, rtol=1e-5)
    assert torch.equal(two["labels"], one["labels"])
    headers = [
        checkpoint.load_metadata(p) for p in (project.cached, together / project.cached.name)
    ]
    assert headers[0] == headers[1]
    assert [p.name for p in together.glob("*.safetensors")] == ["latents.safetensors"]  # no parts
    outputs = [(together / name).read_text() for name in ("output.txt", "output_of_the_other.txt")]
    assert ["18 images: " in output for output in outputs] == [True, False]


def folder(tmp_path, bad=False):
    root = tmp_path / "images"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for k in range(2):
            Image.new("RGB", (140, 70), (90 * k, 40, 9)).save(root / name / f"{k}.png")
    if bad:
        (root / "a" / "1.png").write_text("no image")
    return root


def test_a_folder_of_images_of_another_width(project, call, tmp_path):
    root, path = folder(tmp_path, bad=True), tmp_path / "latents.safetensors"
    flags = ("--data_path", root, "--img_size", 128, "--cached_path", path, "--device", "cpu")
    done = call("cache_latents", "--config_path", project.stage_two_yaml, *flags)
    assert done.code == 0, done.err
    assert "images: 1 of 4 images could not be read" in done.out
    assert str(root / "a" / "1.png") in done.out
    assert f"4 images x 2 flips: {path}" in done.out
    latents = checkpoint.load(path)
    assert latents["means"].shape == (4, 2, 16, 4)
    assert latents["labels"].tolist() == [0, 1, 1, 1]  # the next readable one took its place


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (("--cached_path", "latents.pt"), "--cached_path"),
        (("--batch_size", 0), "--batch_size"),
        (("data.params.train.params.size=32",), "data.params.train"),
        (("data.params.train.params.sizes=32",), "data.params.train.params.sizes"),
        (("model.params.ckpt_path=no.ckpt",), "no.ckpt"),
    ],
)
def test_mistakes_are_named(project, call, tmp_path, flags, name):
    given = ("--config_path", project.stage_two_yaml, "--cached_path", tmp_path / "x.safetensors")
    done = call("cache_latents", *given, "--device", "cpu", *flags)
    assert done.code == 2 and f"error: {name}" in done.err, done.err
    assert not list(tmp_path.iterdir())


def test_random_crops(project, call, tmp_path):
    """Of a data set that crops and flips at random, as its config says."""
    node = "data.params.train"
    overrides = (f"{node}.target=common.data.folders.ImageFolder", f"{node}.params=null")
    root = folder(tmp_path)
    for file in root.rglob("*.png"):
        pixels = torch.randint(256, (3, 70, 140), dtype=torch.uint8)
        images.save_image(file, pixels)
    params = f"{node}.params={{root: {root}, size: 64, train: true}}"
    path = tmp_path / "latents.safetensors"
    given = ("--config_path", project.stage_two_yaml, "--cached_path", path, "--device", "cpu")
    done = call("cache_latents", *given, "--crops", 3, *overrides, params)
    assert (done.code, done.out) == (0, f"4 images x 3 crops x 2 flips: {path}\n")
    means = checkpoint.load(path)["means"]
    assert means.shape == (4, 6, 8, 4)
    crops = means[1, ::2].flatten(1)
    assert any(not torch.equal(crops[0], crop) for crop in crops)


def test_a_file_is_not_overwritten(project, call, tmp_path):
    given = ("--config_path", project.stage_two_yaml, "--cached_path", project.cached)
    before = project.cached.stat().st_mtime_ns
    done = call("cache_latents", *given, "--device", "cpu")
    assert (done.code, done.out) == (0, f"18 images: {project.cached} (there already)\n")
    done = call("cache_latents", *given, "--device", "cpu", "data.params.train.params.seed=5")
    assert done.code == 2 and f"{project.cached}: made with data" in done.err
    assert project.cached.stat().st_mtime_ns == before
