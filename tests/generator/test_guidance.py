import pytest

from generator.sampling import SampleConfig


@pytest.mark.parametrize(
    ("cfg", "schedule", "scales"),
    [
        (5.0, "linear", [2.0, 3.0, 4.0, 5.0, 5.0]),
        (5.0, "constant", [5.0] * 5),
        (5.0, "none", [1.0] * 5),
        (1.0, "linear", [1.0] * 5),
    ],
)
def test_guidance_by_column(cfg, schedule, scales):
    config = SampleConfig(cfg=cfg, cfg_schedule=schedule, cfg_ramp=4)
    assert [config.scale_at(i) for i in range(5)] == pytest.approx(scales)
    assert config.is_guided == (scales[-1] != 1)
