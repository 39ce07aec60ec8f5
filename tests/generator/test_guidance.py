import pytest

from generator.guidance import Guidance


@pytest.mark.parametrize(
    ("guidance", "scales"),
    [
        (Guidance(5.0, "linear", 4), [2.0, 3.0, 4.0, 5.0, 5.0]),
        (Guidance(5.0, "constant", 4), [5.0] * 5),
        (Guidance(5.0, "none", 4), [1.0] * 5),
        (Guidance(1.0, "linear", 4), [1.0] * 5),
    ],
    ids=str,
)
def test_guidance_by_column(guidance, scales):
    assert [guidance.at(i) for i in range(5)] == pytest.approx(scales)
    assert guidance.is_active == (scales[-1] != 1)
