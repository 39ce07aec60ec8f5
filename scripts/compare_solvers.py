"""How near each solver comes to Euler's method with 1000 steps, in how many evaluations.

    python scripts/compare_solvers.py --resume runs/quickstart/generator --json solvers.json

Prints the mean absolute difference of tokens, in the model's scale, and the mean size of a token.
Every column is drawn after the solver's own columns, so that errors pass on as they do in pictures.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import torch

from common import distributed
from common import provenance as environment
from common.data.latents import weights_hash
from common.errors import UserError, run_cli
from common.logger import progress
from common.records import write_json
from generator.flags import add_size_flags, parse_with_config
from generator.guidance import SCHEDULES, Guidance
from generator.inference import prepare
from generator.loading import load_generator
from generator.pipeline import image_noise
from generator.sampling import Sampling, sample
from generator.solvers import Solver

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = Solver("euler", 1000)
FINEST = Solver("heun", 500)  # tells how far the reference itself is from the flow's end
SOLVERS = [
    *(Solver("euler", steps) for steps in (25, 50, 100)),
    *(Solver("heun", steps, power) for steps in (6, 8, 10, 12) for power in (1.0, 1.5, 2.0)),
    *(Solver("ab2", steps, power) for steps in (12, 16, 20, 25) for power in (1.0, 1.5, 2.0)),
]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", metavar="YAML", help="any of these flags")
    add_size_flags(parser)
    add = parser.add_argument
    add("--resume", type=Path, metavar="DIR", help="folder of the generator's checkpoint")
    add("--ckpt", default="checkpoint-last.pth", help="its name there")
    add("--num_images", type=int, default=90)
    add("--token_num", type=int, default=16, help="columns of an image")
    add("--cfg", type=float, default=2.0, help="guidance")
    add("--cfg_schedule", default="constant", choices=SCHEDULES)
    add("--seed", type=int, default=0)
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--json", type=Path, metavar="FILE", help="write the table there too")
    return parser


def main() -> None:
    flags = parse_with_config(build_parser())
    if flags.resume is None:
        raise UserError("--resume: not given; expected the folder of a generator's checkpoint")
    with distributed.launch(flags.device) as process:
        model = load_generator(flags.resume / flags.ckpt, flags).model
        name = weights_hash(model.state_dict())
        model = prepare(model.to(process.device))
        numbers = range(flags.num_images)
        labels = torch.tensor([k % model.config.classes for k in numbers], device=model.device)
        noise = image_noise(
            flags.seed, numbers, flags.token_num, model.config.channels, model.device
        )
        guidance = Guidance(flags.cfg, flags.cfg_schedule, flags.token_num)

        def tokens(solver: Solver) -> torch.Tensor:
            bar.set_postfix_str(f"{solver.method} {solver.steps}", refresh=False)
            drawn = sample(model, labels, noise, Sampling(guidance, solver))
            bar.update()
            return drawn

        with progress(2 + len(SOLVERS), "solvers", "solver", process.is_main) as bar:
            reference = tokens(REFERENCE)
            rows = [
                {
                    **asdict(solver),
                    "evaluations": solver.evaluations,
                    "difference": (tokens(solver) - reference).abs().mean().item(),
                }
                for solver in (FINEST, *SOLVERS)
            ]
        size = reference.abs().mean().item()

    print(f"mean |token| {size:.4f}; difference to {REFERENCE.method} {REFERENCE.steps}:")
    for row in rows:
        print(
            f"{row['method']:6}{row['steps']:5} steps{row['evaluations']:5} evaluations, times "
            f"(i/n)^{row['power']:<4}{row['difference']:10.5f}"
        )
    if flags.json:
        settings = {
            "generator": name,
            "images": flags.num_images,
            "columns": flags.token_num,
            "guidance": asdict(guidance),
            "seed": flags.seed,
            "reference": asdict(REFERENCE),
        }
        conditions = environment.describe(ROOT)
        table = {"mean_token": size, "solvers": rows}
        write_json(flags.json, {"settings": settings, "conditions": conditions, **table})


if __name__ == "__main__":
    run_cli(main)
