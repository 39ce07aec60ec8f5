"""Both models agree with the released code on every reference file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from common import checkpoint
from common.errors import UserError
from scripts.check_parity import deviations

FILES = sorted((Path(__file__).parent / "reference").glob("*.safetensors"))
COMPARED = {
    "tokenizer": "weights_ema weights posterior_mean kl semantic reconstruction random_decoded",
    "generator": "weights hidden hidden_uncond head_velocity head_velocity_cfg3 sample_cfg1 "
    "sample_cfg4_linear sample_cfg4_constant sample_cfg4_linear_prefix train_loss grad_norms",
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_reference_files(path):
    found = list(deviations(path))
    assert {d.name for d in found} == set(COMPARED[path.stem.split("_")[0]].split())
    assert [d for d in found if not d.is_small] == []


def rewrite(path, folder, change):
    tensors, metadata = checkpoint.load(path), checkpoint.load_metadata(path)
    change(tensors, metadata)
    save_file(tensors, folder / "changed.safetensors", metadata)
    return folder / "changed.safetensors"


@pytest.fixture
def files():
    return {kind: next(p for p in FILES if p.stem.startswith(kind)) for kind in COMPARED}


@pytest.mark.parametrize(
    ("kind", "name", "affected"),
    [
        ("generator", "sample_cfg4_linear", {"sample_cfg4_linear"}),
        ("generator", "train_loss", {"train_loss"}),
        ("tokenizer", "posterior_mean", {"posterior_mean", "reconstruction", "semantic"}),
    ],
)
@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_a_wrong_value_is_seen(files, tmp_path, kind, name, affected, value):
    def change(tensors, metadata):
        tensors[name].view(-1)[-1] += value

    path = rewrite(files[kind], tmp_path, change)
    assert {d.name for d in deviations(path) if not d.is_small} == affected


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("generator", lambda t, m: m.pop("config"), "config"),
        ("generator", lambda t, m: m.update(config="{}"), "embed_dim"),
        ("generator", lambda t, m: t.pop("head_t"), "head_t"),
        ("tokenizer", lambda t, m: t.update(kl=torch.zeros(5)), "kl"),
        ("tokenizer", lambda t, m: m.update(config='{"ddconfig": {}}'), "ddconfig.*missing"),
    ],
)
def test_foreign_files_are_named(files, tmp_path, kind, change, message):
    path = rewrite(files[kind], tmp_path, change)
    with pytest.raises(UserError, match=message) as error:
        list(deviations(path))
    assert str(error.value).startswith(str(path))
