"""Settings of all tests."""

import shutil
from itertools import product

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.models import vgg16

from common.config import allow_foreign_targets
from common.images import save_image
from common.metrics.features import load_extractor
from common.panoramas.dataset import Panoramas
from common.pretrained.files import FILES

# The models of the tests are small: threads cost more than they bring.
torch.set_num_threads(1)
# Some of them describe classes of their own in configurations.
allow_foreign_targets()


@pytest.fixture(scope="session")
def pretrained_folder(tmp_path_factory):
    """The objective's networks: files of the true names and shapes, with random weights."""
    folder = tmp_path_factory.mktemp("pretrained")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        with torch.device("meta"):  # the classifier beside the features is large
            features = vgg16(weights=None, init_weights=False).features
        features.to_empty(device="cpu")
        for tensor in features.parameters():
            if tensor.ndim > 1:
                torch.nn.init.kaiming_uniform_(tensor, nonlinearity="relu")
            else:
                tensor.uniform_(-0.1, 0.1)
        weights = {f"features.{k}": v for k, v in features.state_dict().items()}
        weights["classifier.0.bias"] = torch.zeros(4096)
        torch.save(weights, folder / FILES["vgg16"].name)
        for key in ("dino", "dinov2"):
            name = FILES[key].name.removesuffix(".safetensors")
            network = timm.create_model(name, pretrained=False, weight_init="skip")
            weights = network.state_dict()
            for name, tensor in weights.items():
                if name in ("cls_token", "pos_embed"):
                    tensor.normal_()
                if name.endswith("gamma"):  # of nearly 0 in an untrained network
                    tensor.uniform_(0.5, 1.0)
            save_file(weights, folder / FILES[key].name)
    yield folder
    shutil.rmtree(folder)  # half a gigabyte, which pytest would keep


@pytest.fixture(scope="session")
def random_extractor():
    return load_extractor("random")


@pytest.fixture(scope="session")
def image_folders(tmp_path_factory):
    """Two folders of 9 images each, sorted by class, with one class in common."""
    folder = tmp_path_factory.mktemp("images")
    images = Panoramas(length=72, size=64)  # image k is of class k modulo 9
    for name, first in (("one", 0), ("other", 2)):
        for number, label in product(range(3), range(first, first + 3)):
            image, _ = images[9 * (number + first) + label]
            save_image(folder / name / f"{label}_{number}.png", image)
    return folder / "one", folder / "other"
