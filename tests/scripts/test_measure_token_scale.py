from __future__ import annotations

import shutil

import pytest
import torch

from tokenizer import load_tokenizer


@pytest.fixture
def run(project, tmp_path):
    """A copy of the run whose checkpoint has lost its scale."""
    shutil.copytree(project.run, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    file = torch.load(path, weights_only=True)
    for name, tensor in file["state_dict"].items():
        if name.endswith("token_scale"):
            tensor.fill_(1.0)
    torch.save(file, path)
    return path


def test_a_checkpoint_gets_the_scale_it_had(project, run, call):
    done = call("measure_token_scale", run, "--device", "cpu", "--batch_size", 5)
    assert done.code == 0, done.err
    found, expected = (
        float(load_tokenizer(p).token_scale)
        for p in (run, project.run / "checkpoints" / "last.ckpt")
    )
    assert found == pytest.approx(expected) and found != 1
    assert done.out == f"token scale {expected:.5f}, stored in {run}\n"
    # of fewer and other images, another one
    more = ("--images", 3, "data.params.train.params.seed=5")
    assert call("measure_token_scale", run, "--device", "cpu", *more).code == 0
    assert float(load_tokenizer(run).token_scale) != pytest.approx(expected, rel=1e-4)


def test_a_yaml_file_names_a_tokenizer_that_stays_as_it_is(project, run, call, tmp_path):
    yaml = tmp_path / "two.yaml"
    old = str(project.run / "checkpoints" / "last.ckpt")
    yaml.write_text(project.stage_two_yaml.read_text().replace(old, str(run)))
    done = call("measure_token_scale", yaml, "--device", "cpu", "--batch_size", 7)
    assert done.code == 0, done.err
    expected = float(load_tokenizer(old).token_scale)
    assert done.out == f"token scale {expected:.5f}\n"
    assert float(load_tokenizer(run).token_scale) == 1
