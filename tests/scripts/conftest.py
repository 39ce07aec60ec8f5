"""The four scripts on tiny models: one run of each, for many tests.

Most calls happen in this process, which has PyTorch loaded already.
"""

import contextlib
import importlib.util
import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
# The objective without networks that have to be downloaded.
TOKENIZER = yaml.safe_load("""
model:
  base_learning_rate: 1.0e-3
  target: tokenizer.lightning.TokenizerModule
  params:
    ddconfig: {resolution: 64, ch: 4, ch_mult: [1, 1, 1, 1], num_res_blocks: 0, z_channels: 2,
               len_down_scale: 3, norm_groups: 2}
    embed_dim: 4
    std: 0.3
    ema_decay: 0.9
    scheduler_config: {warm_up_steps: 4, interval: 3, decay: 0.5}
    lossconfig:
      target: tokenizer.losses.objective.Objective
      params: {perceptual_weight: 0, disc_type: patchgan, semantic_loss_w: 0, disc_start: 3,
               disc_width: 4}
data:
  target: common.data.loader.DataModule
  params:
    batch_size: 4
    train: {target: common.panoramas.dataset.Panoramas, params: {length: 18, size: 64}}
    validation: {target: common.panoramas.dataset.Panoramas, params: {length: 9, size: 64, seed: 1}}
lightning: {trainer: {max_epochs: 2, log_every_n_steps: 1}}
""")
SIZES = {"width": 16, "depth": 2, "heads": 2, "diffloss_w": 8, "diffloss_d": 1}
GENERATOR = {
    **SIZES,
    **{"batch_size": 6, "epochs": 2, "lr": 1e-3, "warmup_epochs": 1, "num_workers": 0},
    **{"ema_rate": 0.9, "log_freq": 1, "device": "cpu"},
}


@dataclass(frozen=True)
class Done:
    """How a script ended, and what it wrote."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Project:
    """Files that the scripts are given and leave, `folder` above them all."""

    folder: Path
    tokenizer_yaml: Path
    stage_two_yaml: Path
    generator_yaml: Path
    run: Path
    cached: Path
    generator: Path

    def stage_two(self, *flags: object) -> list[str]:
        """Flags of `train_generator.py` on cached tokens."""
        given = ["--config", self.generator_yaml, "--config_path", self.stage_two_yaml]
        return list(map(str, [*given, "--use_cached", "--cached_path", self.cached, *flags]))

    def drawing(self, *flags: object) -> list[str]:
        """Flags of `eval_generator.py`, without the generator and the output."""
        given = ["--config_path", self.stage_two_yaml, "--num_sampling_steps", 2, "--cfg", 2]
        given += ["--num_images", 5, "--eval_bsz", 2, "--token_num", 16, "--device", "cpu"]
        return list(map(str, [*given, *flags]))


def write_yaml(path: Path, value: object) -> Path:
    path.write_text(yaml.safe_dump(value))
    return path


def environment(**more: str) -> dict[str, str]:
    # PYTHONPATH takes the place of an installation
    fixed = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **fixed, **more}


def load_script(name: str):
    path = ROOT / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"script_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run_script(name: str, *flags: object) -> Done:
    """A script in this process."""
    module, before, out, err = load_script(name), sys.argv, io.StringIO(), io.StringIO()
    sys.argv, code = [f"{name}.py", *map(str, flags)], 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            module.run_cli(module.main)
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = before
    return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def call() -> Callable[..., Done]:
    return run_script


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Project:
    """Both stages, trained for two epochs on built-in images."""
    folder = tmp_path_factory.mktemp("project")
    tokenizer_yaml = write_yaml(folder / "tiny.yaml", TOKENIZER)
    given = ("-t", "True", "-b", tokenizer_yaml, "-l", folder / "logs", "--device", "cpu")
    done = run_script("train_tokenizer", *given)
    assert done.code == 0 and "Warning" not in done.err, done.err
    (run,) = (folder / "logs").iterdir()
    two = {
        "model": {"params": {"ckpt_path": str(run / "checkpoints" / "last.ckpt")}},
        "data": {"params": {"train": TOKENIZER["data"]["params"]["train"]}},
    }
    yamls = write_yaml(folder / "two.yaml", two), write_yaml(folder / "generator.yaml", GENERATOR)
    left = run, folder / "latents.safetensors", folder / "generator"
    project = Project(folder, tokenizer_yaml, *yamls, *left)
    given = ("--config_path", project.stage_two_yaml, "--cached_path", project.cached)
    done = run_script("cache_latents", *given, "--device", "cpu")
    assert (done.code, done.out) == (0, f"18 images: {project.cached}\n"), done.err
    output = ("--output_dir", project.generator)
    done = run_script("train_generator", *project.stage_two(*output, "--save_freq", 1))
    assert done.code == 0, done.err
    assert f"checkpoint: {project.generator / 'checkpoint-last.pth'}" in done.out
    return project


@pytest.fixture
def size_flags() -> tuple[object, ...]:
    return tuple(word for name, value in SIZES.items() for word in (f"--{name}", value))


@dataclass(frozen=True)
class Background:
    """A script in a process group of its own, that goes on while the test does."""

    process: subprocess.Popen
    output: Path

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Until the condition holds; an end of the process or two minutes are a failure."""
        deadline = time.monotonic() + 120
        while not condition():
            assert self.process.poll() is None and time.monotonic() < deadline, self.output
            time.sleep(0.02)

    def signal(self, number: int) -> None:
        """Send a signal to all processes of the group."""
        os.killpg(self.process.pid, number)


@pytest.fixture
def start_in_background(tmp_path):
    started = []

    def run(script: str, *flags: object) -> Background:
        command = [sys.executable, ROOT / "scripts" / f"{script}.py", *map(str, flags)]
        path, given = tmp_path / "output.txt", environment(PYTHONUNBUFFERED="1")
        with path.open("w") as out:
            process = subprocess.Popen(
                command, env=given, stdout=out, stderr=out, start_new_session=True
            )
        started.append(process)
        return Background(process, path)

    yield run
    for process in started:
        process.kill()


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@pytest.fixture
def free_port() -> Callable[[], int]:
    return unused_port


@pytest.fixture(scope="session")
def together(project, tmp_path_factory) -> Path:
    """What two processes leave that do the same as `project`; see `two_processes.py`."""
    folder = tmp_path_factory.mktemp("together")
    tokenizer = ["-b", project.tokenizer_yaml, "-l", folder / "logs", "--device", "cpu"]
    caching = ["--config_path", project.stage_two_yaml, "--device", "cpu", "--batch_size", 3]
    images = ["--resume", project.generator, "--output_dir", folder / "images"]
    calls = {
        "train_tokenizer": [*tokenizer, "data.params.batch_size=2"],
        "cache_latents": [*caching, "--cached_path", folder / "latents.safetensors"],
        "eval_generator": project.drawing(*images),
    }
    write_yaml(folder / "calls.yaml", {k: [str(v) for v in flags] for k, flags in calls.items()})
    ports = [str(unused_port()) for _ in calls]
    command = [sys.executable, Path(__file__).with_name("two_processes.py"), folder, *ports]
    both = environment(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="localhost")
    processes = [
        subprocess.Popen(
            command,
            env={**both, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=(folder / f"output_{rank}.txt").open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    try:
        codes = [process.wait(240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], (folder / "output_0.txt").read_text()
    return folder
