import pytest

from common.errors import UserError
from generator.config import listed


def test_numbers_of_a_text():
    assert listed("--x", "0-2, 5,0", 6) == [0, 1, 2, 5, 0]
    assert listed("--x", "sea,0-1", 3, ["sky", "alps", "sea"]) == [2, 0, 1]
    for text in ("6", "0-6", "3-2", "", "1,", "a", "-1", "1-", "0:3"):
        with pytest.raises(UserError, match="--x"):
            listed("--x", text, 6)
