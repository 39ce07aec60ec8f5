from __future__ import annotations

import pytest

from common.errors import UserError
from common.records import NAME, claim_folder


def test_a_folder_is_claimed_for_one_group_of_settings(tmp_path):
    folder = tmp_path / "results"
    claim_folder(folder, {"seed": 1, "guidance": [2.0, "linear"]})
    (folder / "0.png").write_text("")
    claim_folder(folder, {"seed": 1, "guidance": [2.0, "linear"]})
    with pytest.raises(UserError, match=r"results: holds results made with seed 1, not 2"):
        claim_folder(folder, {"seed": 2, "guidance": [2.0, "linear"]})
    with pytest.raises(UserError, match="made with steps None, not 5"):
        claim_folder(folder, {"seed": 1, "steps": 5})


def test_an_empty_folder_is_free(tmp_path):
    claim_folder(tmp_path, {"seed": 1})
    assert (tmp_path / NAME).exists()


def test_files_of_unknown_origin_are_left_alone(tmp_path):
    (tmp_path / "0.png").write_text("")
    with pytest.raises(UserError, match=r"not empty, and no settings\.json says"):
        claim_folder(tmp_path, {"seed": 1})
    with pytest.raises(UserError, match=r"0\.png: found a file, expected a folder"):
        claim_folder(tmp_path / "0.png", {"seed": 1})


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_damaged_settings_are_told(tmp_path, text):
    (tmp_path / NAME).write_text(text)
    with pytest.raises(UserError, match=r"settings\.json: damaged"):
        claim_folder(tmp_path, {"seed": 1})
