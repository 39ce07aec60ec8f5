import shutil

import pytest

from common import checkpoint
from tokenizer import load_tokenizer


def test_a_checkpoint_gets_the_scale_it_had_and_a_yaml_file_prints_it(project, call, tmp_path):
    shutil.copytree(project.run, tmp_path / "run")
    old, path = (run / "checkpoints" / "last.ckpt" for run in (project.run, tmp_path / "run"))
    file = checkpoint.load(path)
    for name, tensor in file["state_dict"].items():
        if name.endswith("token_scale"):
            tensor.fill_(1.0)
    checkpoint.save(path, file)
    expected = float(load_tokenizer(old).token_scale)

    yaml = tmp_path / "two.yaml"
    yaml.write_text(project.stage_two_yaml.read_text().replace(str(old), str(path)))
    done = call("measure_token_scale", yaml, "--device", "cpu", "--batch_size", 7)
    assert done.out == f"token scale {expected:.5f}\n", done.err
    assert float(load_tokenizer(path).token_scale) == 1

    done = call("measure_token_scale", path, "--device", "cpu", "--batch_size", 5)
    assert done.out == f"token scale {expected:.5f}, stored in {path}\n", done.err
    assert float(load_tokenizer(path).token_scale) == pytest.approx(expected) != 1
    # of fewer and other images, another one
    more = ("--images", 3, "data.params.train.params.seed=5")
    assert call("measure_token_scale", path, "--device", "cpu", *more).code == 0
    assert float(load_tokenizer(path).token_scale) != pytest.approx(expected, rel=1e-4)
