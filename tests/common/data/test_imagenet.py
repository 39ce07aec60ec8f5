import numpy as np
import pytest
from PIL import Image

from common import config
from common.data.imagenet import ImageNetConfig, ImageNetTrain, ImageNetValidation
from common.data.sampler import Draw
from common.errors import UserError

PARTS = ("ILSVRC2012_train", "ILSVRC2012_validation")
TRAIN = "common.data.imagenet.ImageNetTrain"
SYNSETS = ("n02", "n01", "n10")


@pytest.fixture
def datadir(tmp_path):
    """Three synsets, two images in each, in both parts."""
    randomness = np.random.default_rng(0)
    for part in PARTS:
        for synset in SYNSETS:
            folder = tmp_path / "autoencoders" / "data" / part / "data" / synset
            folder.mkdir(parents=True)
            for k in range(2):
                pixels = randomness.integers(0, 256, (12, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{synset}_{k}.JPEG")
    return tmp_path


def test_released_configurations_are_read(datadir):
    for size in ({"size": 8}, {"config": {"size": 8}}):
        params = {**size, "config": {"datadir": str(datadir), **size.get("config", {})}}
        for name in ("ImageNetTrain", "ImageNetValidation"):
            node = {"target": f"tokenizer.data.imagenet.{name}", "params": params}
            data = config.instantiate(node, "data.params.train")
            assert data[0][0].shape == (3, 8, 8) and data.interpolation == "cv2_bilinear"
            assert data.random_crop == data.flip == (name == "ImageNetTrain")


def looks(data):
    """The different images that 60 draws of one image give."""
    return {data[Draw(0, number)][0].numpy().tobytes() for number in range(60)}


def test_training_crops_and_flips_and_validation_does_not(datadir):
    # Five places for a crop, each also flipped.
    def data(kind, **options):
        crop = options.pop("random_crop", None)
        return kind(ImageNetConfig(str(datadir), random_crop=crop), size=12, **options)

    assert len(looks(data(ImageNetTrain))) == 10
    assert len(looks(data(ImageNetTrain, flip=False))) == 5
    assert len(looks(data(ImageNetTrain, random_crop=False))) == 2
    assert len(looks(data(ImageNetValidation))) == 1
    assert len(looks(data(ImageNetValidation, random_crop=True))) == 5


@pytest.mark.parametrize(
    "settings", [{"datadirr": "x"}, {"size": "big"}, {"size": 0}, {"datadir": None}, {"size": None}]
)
def test_wrong_settings_are_named(datadir, settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        params = {"config": {"datadir": str(datadir), "size": 8, **settings}}
        config.instantiate({"target": TRAIN, "params": params}, "data.params.train")
