import pytest
import torch

from common import checkpoint, images
from common.config import load
from common.data.latents import LatentDataset
from common.panoramas.dataset import CLASS_NAMES, Panoramas
from tokenizer.checkpoints import load_tokenizer


def test_cached_tokens_are_the_posterior_means_of_every_image(project):
    tokenizer = load_tokenizer(project.stage_two_yaml)
    latents = LatentDataset(project.cached, tokenizer.fingerprint)
    pictures = Panoramas(**load(project.stage_two_yaml).data.params.train.params)
    assert len(latents) == len(pictures) and latents.class_names == list(CLASS_NAMES)
    for k in (0, 5, 17):
        picture, label = pictures[k]
        mean, cached_label = latents[k]
        with torch.inference_mode():
            expected = tokenizer.encode(images.to_float(picture[None])).mean[0]
        torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-5)
        assert cached_label == label
    assert latents.header.token_scale == float(tokenizer.token_scale)


def test_two_processes_write_one_file_in_the_order_of_the_data(project, together):
    one, two = checkpoint.load(project.cached), checkpoint.load(together / "latents.safetensors")
    torch.testing.assert_close(two["means"], one["means"], atol=1e-5, rtol=1e-5)
    assert torch.equal(two["labels"], one["labels"])
    paths = project.cached, together / project.cached.name
    headers = [checkpoint.load_metadata(path) for path in paths]
    assert headers[0] == headers[1]
    assert [p.name for p in together.glob("*.safetensors")] == ["latents.safetensors"]  # no parts


@pytest.fixture
def cache(project, call, tmp_path):
    """Into a file of the test, unless flags name another."""

    def run(*flags):
        given = ("--config_path", project.stage_two_yaml, "--device", "cpu")
        return call("cache_latents", *given, "--cached_path", tmp_path / "x.safetensors", *flags)

    return run


def test_a_folder_of_images_of_another_width(cache, tmp_path, caplog):
    for name in ("a/0", "a/1", "b/0", "b/1"):
        pixels = torch.randint(256, (3, 70, 140), dtype=torch.uint8)
        images.save_image(tmp_path / "images" / f"{name}.png", pixels)
    bad = tmp_path / "images" / "a" / "1.png"
    bad.write_text("no image")
    done = cache("--data_path", tmp_path / "images", "--img_size", 128, "--num_workers", 0)
    assert done.code == 0 and str(bad) in caplog.text, done.err
    assert f"4 images x 2 flips: {tmp_path / 'x.safetensors'}" in done.out
    latents = checkpoint.load(tmp_path / "x.safetensors")
    assert latents["means"].shape == (4, 2, 16, 4)
    assert latents["labels"].tolist() == [0, 1, 1, 1]  # the next readable one took its place


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (("--cached_path", "latents.pt"), "--cached_path"),
        (("data.params.train.params.size=32",), "data.params.train"),
        (("model.params.ckpt_path=no.ckpt",), "no.ckpt"),
    ],
)
def test_mistakes_are_named(cache, tmp_path, flags, name):
    done = cache(*flags)
    assert done.code == 2 and f"error: {name}" in done.err, done.err
    assert not list(tmp_path.iterdir())


def test_a_file_is_not_overwritten(project, cache):
    before = project.cached.stat().st_mtime_ns
    done = cache("--cached_path", project.cached)
    assert (done.code, done.out) == (0, f"18 images: {project.cached} (there already)\n")
    done = cache("--cached_path", project.cached, "data.params.train.params.seed=5")
    assert done.code == 2 and f"{project.cached}: made with data" in done.err
    assert project.cached.stat().st_mtime_ns == before
