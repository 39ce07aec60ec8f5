"""Settings of the generator: its sizes, and how it is trained.

Each field is a flag, under its released name, and is kept in checkpoints.
"""

import re
from dataclasses import dataclass
from functools import partial

from common.config import setting
from common.errors import UserError
from common.schedule import EpochSchedule
from generator.layout import ColumnLayout, GridLayout

_size, _train, _loss, _speed, _record = (
    partial(setting, group=name)
    for name in ("generator", "training", "objective", "speed", "records")
)


@dataclass(frozen=True)
class GeneratorConfig:
    """Sizes of the generator."""

    width: int = _size(help="width of the transformer", min=1)
    depth: int = _size(help="layers of the transformer", min=1)
    heads: int = _size(help="attention heads", min=1)
    channels: int = _size(help="channels of a token", min=1, flag="vae_embed_dim")
    classes: int = _size(help="number of classes", min=1, flag="class_num")
    context_tokens: int = _size(16, "condition tokens of an image", min=1, flag="buffer_size")
    window: int = _size(3, "earlier columns a layer sees; 0: all", min=0, flag="cond_length")
    grid: int = _size(0, "rows and columns of a square grid of tokens; 0: columns", min=0)
    head_width: int = _size(1024, "width of the flow head", min=1, flag="diffloss_w")
    head_depth: int = _size(12, "residual blocks of the flow head", min=0, flag="diffloss_d")
    mlp_ratio: float = _size(4.0, "width of the MLPs over that of the transformer", above=0)
    attn_dropout: float = _size(0.1, "dropout of attention weights", min=0, max=1)
    proj_dropout: float = _size(0.1, "dropout after projections and in MLPs", min=0, max=1)

    def __post_init__(self) -> None:
        parts = 4 if self.grid else 2  # pairs of channels, along each axis
        if self.width % self.heads or self.width // self.heads % parts:
            found = f"width {self.width} over {self.heads} heads"
            raise UserError(f"{found}: expected a multiple of {parts} channels a head")
        if self.grid and self.window:
            raise UserError(f"--cond_length: found {self.window}, expected 0 for a grid of tokens")

    @property
    def layout(self) -> ColumnLayout:
        """Where its tokens stand, and which of them each one sees."""
        return GridLayout(self.window, self.grid) if self.grid else ColumnLayout(self.window)


# flags of the released scripts without effect on a result; those with a value end with =
IGNORED = ["pin_mem", "no_pin_mem", "dist_url=", "dist_on_itp", "world_size=", "local_rank="]
IGNORED += ["start_epoch=", "evaluate", "vae_path="]

# transformer and flow head of the named sizes (paper, generator table)
SIZES = {
    "tiny_model": {"width": 256, "depth": 8, "heads": 4, "head_width": 512, "head_depth": 6},
    "small_model": {"width": 512, "depth": 16, "heads": 8, "head_width": 960, "head_depth": 12},
    "base_model": {"width": 768, "depth": 24, "heads": 12, "head_width": 1024, "head_depth": 12},
    "large_model": {"width": 1024, "depth": 32, "heads": 16, "head_width": 1280, "head_depth": 12},
    "huge_model": {"width": 1280, "depth": 40, "heads": 16, "head_width": 1536, "head_depth": 12},
}


@dataclass(frozen=True)
class TrainConfig:
    """How the generator is trained, and what is due when. Defaults are the paper's."""

    epochs: int = _train(1200, "passes over the data", min=1)
    max_steps: int = _train(0, "updates after which training ends all the same; 0: never", min=0)
    batch_size: int = _train(64, "images of one process in one pass", min=1)
    accumulate: int = _train(1, "passes whose gradients make one update", min=1)
    blr: float = _train(1e-4, "learning rate at a global batch of 256", min=0)
    lr: float | None = _train(None, "learning rate, instead of --blr", min=0)
    min_lr: float = _train(0.0, "end of the cosine schedule", min=0)
    lr_schedule: str = _train("constant", "after the warm-up", choices=("constant", "cosine"))
    warmup_epochs: float = _train(100.0, "epochs in which the rate grows from 0", min=0)
    weight_decay: float = _train(0.02, "weight decay of matrices outside the flow head", min=0)
    grad_clip: float = _train(3.0, "largest gradient norm; 0: any", min=0)
    ema_rate: float = _train(0.9999, "decay of the averaged weights", min=0, below=1)
    seed: int = _train(0, "random seed of weights, order, noise, and crops of --data_path")
    label_drop_prob: float = _loss(0.1, "how often an image loses its class", min=0, max=1)
    shift_num: int = _loss(16, "number of random shifts of positions; 1: no shift", min=1)
    diffusion_batch_mul: int = _loss(4, "flow draws of each token", min=1)
    train_columns: str = _loss("all", "columns whose loss is trained, such as 0-3,8-11")
    subsequence: int = _loss(0, "columns of random runs to train on, as images; 0: whole", min=0)
    precision: str = _speed("fp32", "of products", choices=("fp32", "tf32", "bf16", "auto"))
    compile: bool = _speed(False, "compile layers and flow head")
    grad_checkpointing: bool = _speed(False, "recompute layers in the backward pass")
    log_freq: int = _record(20, "updates between two entries of the logs", min=1)
    save_last_freq: int = _record(1, "epochs between two writes of the last checkpoint", min=1)
    save_freq: int = _record(50, "epochs between two checkpoints that are kept; 0: none", min=0)
    save_steps: int = _record(0, "updates between two writes of the last; 0: none", min=0)
    eval_freq: int = _record(0, "epochs between two measurements of the loss; 0: none", min=0)
    eval_images: int = _record(2048, "images of such a measurement", min=1)
    sample_freq: int = _record(0, "epochs between two grids of samples; 0: none", min=0)

    def __post_init__(self) -> None:
        if self.train_columns != "all" and self.subsequence:
            raise UserError("--subsequence: given together with --train_columns; expected one")

    def schedule(self, world: int) -> EpochSchedule:
        """The learning rate on `world` processes."""
        batch = self.batch_size * self.accumulate * world
        lr = self.blr * batch / 256 if self.lr is None else self.lr
        return EpochSchedule(lr, self.epochs, self.warmup_epochs, self.min_lr, self.lr_schedule)


def listed(flag: str, text: str, count: int) -> list[int]:
    """What a flag such as `0-3,8` lists of 0 … count − 1, ends included, in its order."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        span = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
        if not span or span[-1] >= count:
            raise UserError(f"{flag}: found {part!r}, expected some of 0 … {count - 1}")
        found += span
    return found
