from __future__ import annotations

import json

from PIL import Image

MEASURED = ("--extractor", "random", "--metrics", "fid,is")


def test_a_sweep_draws_and_measures_each_point_once(project, call, tmp_path):
    out, reference = tmp_path / "out", tmp_path / "reference"
    given = ("--resume", project.generator, "--config_path", project.stage_two_yaml)
    given += ("--token_num", 4, "--num_sampling_steps", 2, "--device", "cpu", "--num_images", 4)
    first = ("--output_dir", reference, "--seed", 1)
    assert call("eval_generator", *given, *first).code == 0

    flags = (*given, "--output_dir", out, "--reference", reference / "images", "--cfgs", "3,1")
    flags += MEASURED
    done = call("sweep_cfg", *flags)
    assert done.code == 0, done.err
    points = json.loads((out / "sweep.json").read_text())
    assert {kind: list(found) for kind, found in points.items()} == {
        "averaged": ["1.0", "3.0"],
        "raw": ["1.0", "3.0"],
    }
    found = [p["random_features_distance"] for curve in points.values() for p in curve.values()]
    assert len(set(found)) == 4 and min(found) > 0
    with Image.open(out / "sweep.png") as picture:
        assert picture.width > 500
    record = json.loads((out / "raw_cfg_3" / "metrics.json").read_text())
    assert record["drawing"]["guidance"]["scale"] == 3.0
    assert record["figures"] == points["raw"]["3.0"]

    # measured points are kept, others are measured again, and all of it is the same
    kept = out / "averaged_cfg_1" / "metrics.json"
    before = kept.stat().st_mtime_ns, (out / "averaged_cfg_1" / "images").stat().st_mtime_ns
    (out / "raw_cfg_3" / "metrics.json").unlink()
    (out / "raw_cfg_3" / "images" / "000002.png").unlink()
    assert call("sweep_cfg", *flags).code == 0
    assert json.loads((out / "sweep.json").read_text()) == points
    assert before[1] == (out / "averaged_cfg_1" / "images").stat().st_mtime_ns

    done = call("sweep_cfg", *flags, "--seed", 5)
    assert done.code == 2 and "holds results made with seed 0, not 5" in done.err
    done = call("sweep_cfg", *flags, "--cfgs", "1,x")
    assert done.code == 2 and "--cfgs: found '1,x', expected numbers" in done.err
