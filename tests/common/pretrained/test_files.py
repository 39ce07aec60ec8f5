import re

import pytest
import timm
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torchvision.models import VGG16_Weights

from common.errors import UserError
from common.pretrained import files as pretrained
from common.pretrained.files import FILES, find


def put(path):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"weights")
    return path


def test_addresses_are_those_of_the_packages_that_made_the_files():
    assert FILES["vgg16"].url == VGG16_Weights.IMAGENET1K_V1.url
    assert FILES["inception"].url == URL_INCEPTION_V3
    for file in FILES.values():
        if file.url:  # the first digits of SHA-256 stand in the name
            assert file.url.endswith("/" + file.name)
            assert re.search(r"-([0-9a-f]{8})\.pth$", file.name)[1] == file.sha256
        if file.name.endswith(".safetensors"):
            name = file.name.removesuffix(".safetensors")
            assert file.hub.rpartition("/")[0] == timm.get_pretrained_cfg(name).hf_hub_id


def test_where_weights_lie(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(pretrained.FOLDER_VARIABLE, raising=False)
    default = put(tmp_path / "pretrained_models" / "tokenizer.ckpt")
    assert find("tokenizer").absolute() == default
    elsewhere = put(tmp_path / "elsewhere" / "tokenizer.ckpt")
    monkeypatch.setenv(pretrained.FOLDER_VARIABLE, str(elsewhere.parent))
    assert find("tokenizer") == elsewhere
    given = put(tmp_path / "given" / "tokenizer.ckpt")
    assert find("tokenizer", given.parent) == given


def test_either_format_and_the_listed_one_first(tmp_path):
    other = put(tmp_path / "vit_small_patch16_224.dino.pth")
    assert find("dino", tmp_path) == other
    listed = put(tmp_path / "vit_small_patch16_224.dino.safetensors")
    assert find("dino", tmp_path) == listed


def test_a_missing_file_is_named_with_its_source_and_the_way_around_it(tmp_path):
    for key in ("vgg16", "dino", "tokenizer"):
        with pytest.raises(UserError) as caught:
            find(key, tmp_path)
        for part in (FILES[key].name, str(tmp_path), FILES[key].source, FILES[key].without):
            assert part in str(caught.value)
