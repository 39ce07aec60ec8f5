from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

from common.panoramas.dataset import CLASS_NAMES

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "quickstart.py"


def run(folder, *flags):
    return subprocess.run(
        [sys.executable, SCRIPT, "--tiny", "--device", "cpu", "--output", folder, *flags],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_the_whole_quickstart_and_what_a_second_run_leaves_alone(tmp_path):
    folder = tmp_path / "run"
    first = run(folder)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "Starting afresh" in first.stdout

    metrics = json.loads((folder / "metrics.json").read_text())
    figures = metrics["figures"]
    assert set(figures) == {
        "psnr", "agreement", "far_agreement", "classifier_accuracy", "seconds"
    }  # fmt: skip
    assert figures["agreement"]["count"] == 18
    assert figures["far_agreement"]["count"] == 4 * len(CLASS_NAMES)
    assert figures["far_agreement"]["first_pixel"] == 768
    assert all(value >= 0 for value in metrics["seconds"].values())
    assert metrics["settings"]["seed"] == 0 and not metrics["resumed"]
    assert len(metrics["commands"]) == 5
    with Image.open(folder / "panorama.png") as strips:
        assert strips.width >= 16 * 64 and strips.height >= 64 * len(CLASS_NAMES)
    with Image.open(folder / "token_meaning.gif") as animation:
        assert animation.size == (256, 256) and animation.n_frames >= 17
    page = (folder / "report.html").read_text()
    assert page.count("data:image/") == 5

    kept = {
        name: (folder / name).stat().st_mtime_ns
        for name in ("tokenizer.ckpt", "latents.safetensors", "generator/checkpoint-last.pth")
    }
    (folder / "panorama.png").unlink()
    second = run(folder)
    assert second.returncode == 0, second.stderr
    assert "Resuming" in second.stdout and "scripts/" not in second.stdout
    assert (folder / "panorama.png").exists()
    assert kept == {name: (folder / name).stat().st_mtime_ns for name in kept}
    again = json.loads((folder / "metrics.json").read_text())
    assert again["resumed"] and again["seconds"]["tokenizer"] == metrics["seconds"]["tokenizer"]

    other = run(folder, "--seed", "1")
    assert other.returncode == 2
    assert "was made with seed 0, found 1 now" in other.stderr
