"""Compare both models with reference tensors, which the paper's released code computed.

    python scripts/check_parity.py FILE.safetensors ... [--device cuda]

Prints the largest absolute error of every output in a file; exits with 1 if one is too large.
tests/reference/README.md describes the files.
"""

import json
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from common import checkpoint, cli, config, distributed
from common.errors import UserError, run_cli
from common.precision import full_float32
from generator.checkpoints import from_released, released_name
from generator.config import GeneratorConfig
from generator.model import Generator
from generator.objective import Draws, token_losses
from generator.sampling import SampleConfig, sample_columns
from generator.solvers import guided
from tokenizer import checkpoints
from tokenizer.config import TokenizerConfig
from tokenizer.model import Tokenizer

TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-3  # relative
# A key bias adds one value to all scores of a query, which a softmax does not see: in exact
# arithmetic the gradient of cross-attention's key biases is zero, and its norm in a file is
# rounding noise of 1e-9. Norms below this floor are compared as if they were the floor.
GRADIENT_FLOOR = 1e-4

# name in the files → field of GeneratorConfig
GENERATOR_SIZES = {
    "embed_dim": "width",
    "depth": "depth",
    "num_heads": "heads",
    "token_channels": "channels",
    "class_num": "classes",
    "buffer_size": "context_tokens",
    "window": "window",
    "diffloss_w": "head_width",
    "diffloss_d": "head_depth",
    "mlp_ratio": "mlp_ratio",
}


class Deviation(NamedTuple):
    """How far a recomputed value lies from the reference, and how far it may."""

    name: str
    error: float
    tolerance: float = TOLERANCE

    @property
    def is_small(self) -> bool:
        return self.error <= self.tolerance  # false for NaN


class Reference(dict[str, Tensor]):
    """The tensors of a reference file by name, its `weights` by released name, `config` and
    `grad_norms`; what it lacks is a KeyError."""

    def __init__(self, path: str, device: torch.device | str) -> None:
        super().__init__({k: v.to(device) for k, v in checkpoint.load(path).items()})
        metadata = checkpoint.load_metadata(path)
        self.weights = {k[8:]: v for k, v in self.items() if k.startswith("weights.")}
        self.config = json.loads(metadata["config"])
        self.grad_norms = json.loads(metadata.get("grad_norms", "{}"))

    def deviation(self, name: str, found: Tensor) -> Deviation:
        if found.shape != self[name].shape:
            raise ValueError(f"{name}: found {[*self[name].shape]}, expected {[*found.shape]}")
        return Deviation(name, (found - self[name]).abs().max().item())

    def deviation_of_weights(
        self, name: str, model: nn.Module, released_name: Callable[[str], str]
    ) -> Deviation:
        """Of a model's parameters, which were converted, from those of their released names."""
        parameters = model.named_parameters()
        errors = [self.deviation(f"weights.{released_name(k)}", p).error for k, p in parameters]
        return Deviation(name, np.max(errors).item(), 0)


def deviations(path: str, device: torch.device | str = "cpu") -> Iterator[Deviation]:
    """Everything that the reference file at `path` lets one compare, of either model; a UserError
    where it is of another form."""
    try:
        reference = Reference(path, device)
        compare = compare_tokenizer if "ddconfig" in reference.config else compare_generator
        yield from compare(reference, device)
    except KeyError as error:
        raise UserError(f"{path}: has no {error}; is this a reference file?") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


@torch.no_grad()
def compare_tokenizer(reference: Reference, device: torch.device | str) -> Iterator[Deviation]:
    sizes = config.structured(TokenizerConfig, reference.config, "config")
    model = Tokenizer(**vars(sizes)).to(device).eval()
    for ema, rename in ((True, checkpoints.ema_name), (False, checkpoints.released_name)):
        model.load_state_dict(checkpoints.from_released(reference.weights, model, ema))
        yield reference.deviation_of_weights("weights_ema" if ema else "weights", model, rename)

    posterior, tokens = model.encode(reference["image"]), reference["posterior_mean"]
    yield reference.deviation("posterior_mean", posterior.mean)
    yield reference.deviation("kl", posterior.kl())
    if model.semantic_decoder is not None:
        yield reference.deviation("semantic", model.decode_with_semantics(tokens)[1])
    yield reference.deviation("reconstruction", model.decode(tokens))
    yield reference.deviation("random_decoded", model.decode(reference["random_tokens"]))


def compare_generator(reference: Reference, device: torch.device | str) -> Iterator[Deviation]:
    sizes = {ours: reference.config[name] for name, ours in GENERATOR_SIZES.items()}
    model = Generator(GeneratorConfig(**sizes)).to(device).eval().requires_grad_(False)
    model.load_state_dict(from_released(reference.weights, model))
    yield reference.deviation_of_weights("weights", model, released_name)

    tokens, labels = reference["tokens"], reference["labels"]
    for name, given in (("hidden", labels), ("hidden_uncond", model.condition.null(labels))):
        hidden = model.hidden(tokens[:, :-1], model.read_condition(given))
        yield reference.deviation(name, hidden)

    x, t, condition = (reference[f"head_{name}"] for name in "xtc")
    yield reference.deviation("head_velocity", model.head(x, t, condition))
    # The first rows of x serve both branches: the first half of the times and conditions is the
    # conditional branch, the second the unconditional one; the result stands in both halves.
    velocity = guided(lambda x, _: model.head(x, t, condition), 3.0)
    found = velocity(x.chunk(2)[0], 0.0).repeat(2, 1)
    yield reference.deviation("head_velocity_cfg3", found)

    columns, steps = reference.config["token_num"], reference.config["num_sampling_steps"]
    noise = reference["sample_noise"].unbind()  # L times [B, C]
    for name, cfg, schedule, known in (
        ("sample_cfg1", 1.0, "linear", 0),
        ("sample_cfg4_linear", 4.0, "linear", 0),
        ("sample_cfg4_constant", 4.0, "constant", 0),
        ("sample_cfg4_linear_prefix", 4.0, "linear", reference.config["prefix"]),
    ):
        sampling = SampleConfig(columns, cfg=cfg, cfg_schedule=schedule, steps=steps)
        given = dict(enumerate(tokens[:, :known].unbind(1)))
        sampled = sample_columns(model, labels, noise, sampling, given)
        yield reference.deviation(name, torch.stack(list(sampled), dim=1))

    model.requires_grad_(True)
    names = ("shift", "drop", "flow_t", "flow_noise")
    shift, drop, t, flow_noise = (reference[f"train_{name}"] for name in names)
    draws = Draws(int(shift), drop, t[:, 0], flow_noise)
    loss = token_losses(model, tokens, labels, draws).mean(dim=(0, 1)).mean()
    yield reference.deviation("train_loss", loss.detach())
    loss.backward()
    errors = []
    for name, parameter in model.named_parameters():
        expected = reference.grad_norms[released_name(name)]
        error = abs(parameter.grad.norm().item() - expected)
        errors.append(error / max(expected, GRADIENT_FLOOR))
    yield Deviation("grad_norms", np.max(errors).item(), GRADIENT_TOLERANCE)


def main() -> None:
    parser = cli.new_parser(__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="reference files (safetensors)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    flags = cli.parse(parser)

    agree = True
    with distributed.launch(flags.device) as process, full_float32():
        for path in flags.files:
            print(path)
            for found in deviations(path, process.device):
                agree &= found.is_small
                note = "" if found.is_small else f"  (above {found.tolerance:g})"
                print(f"  {found.name:26}{found.error:.2e}{note}")
    if not agree:
        sys.exit(1)


if __name__ == "__main__":
    run_cli(main)
