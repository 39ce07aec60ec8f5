import torch

from tokenizer import Tokenizer, load_tokenizer
from tokenizer.checkpoints import export


def test_a_folder_holds_all_that_a_tokenizer_needs(project, call, tmp_path):
    given = project.run / "checkpoints" / "last.ckpt"
    done = call("export_tokenizer", given, tmp_path / "exported")
    assert done.code == 0 and "4 channels a column of 64 × 8 px" in done.out
    assert {p.name for p in (tmp_path / "exported").iterdir()} == {
        "model.safetensors",
        "config.json",
    }
    expected, found = load_tokenizer(given), load_tokenizer(tmp_path / "exported")
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    image = torch.rand(1, 3, 64, 72) * 2 - 1
    assert torch.equal(found.encode(image).mean, expected.encode(image).mean)
    assert found.decode(found.encode(image).mean).shape == image.shape

    # again, through a YAML file and with another scale
    given = (tmp_path / "exported", "--overwrite", "--vae_norm", 2)
    done = call("export_tokenizer", project.stage_two_yaml, *given)
    assert done.code == 0 and float(load_tokenizer(tmp_path / "exported").token_scale) == 2


def test_the_export_of_another_tokenizer_is_replaced_on_demand_only(project, call, tmp_path):
    given = project.run / "checkpoints" / "last.ckpt"
    export(Tokenizer(**load_tokenizer(given).sizes), tmp_path / "there")
    done = call("export_tokenizer", given, tmp_path / "there")
    assert done.code == 2 and "--overwrite" in done.err
    assert call("export_tokenizer", given, tmp_path / "there", "--overwrite").code == 0
    assert load_tokenizer(tmp_path / "there").fingerprint == load_tokenizer(given).fingerprint
