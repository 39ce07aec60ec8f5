"""Settings of the generator: its sizes, and how it is trained.

Each field is a flag, under its released name, and is kept in checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.config import setting
from common.errors import UserError
from common.schedule import EpochSchedule


@dataclass(frozen=True)
class GeneratorConfig:
    """Sizes of the generator."""

    width: int = setting(help="width of the transformer", min=1, group="generator")
    depth: int = setting(help="layers of the transformer", min=1, group="generator")
    heads: int = setting(help="attention heads", min=1, group="generator")
    channels: int = setting(
        help="channels of a token", min=1, flag="vae_embed_dim", group="generator"
    )
    classes: int = setting(help="number of classes", min=1, flag="class_num", group="generator")
    context_tokens: int = setting(
        16,
        "condition tokens that the columns attend to",
        min=1,
        flag="buffer_size",
        group="generator",
    )
    window: int = setting(
        3,
        "earlier columns that a layer sees; 0: all",
        min=0,
        flag="cond_length",
        group="generator",
    )
    head_width: int = setting(
        1024, "width of the flow head", min=1, flag="diffloss_w", group="generator"
    )
    head_depth: int = setting(
        12, "residual blocks of the flow head", min=0, flag="diffloss_d", group="generator"
    )
    mlp_ratio: float = setting(
        4.0, "width of the MLPs over that of the transformer", above=0, group="generator"
    )
    attn_dropout: float = setting(
        0.1, "dropout of attention weights", min=0, max=1, group="generator"
    )
    proj_dropout: float = setting(
        0.1, "dropout after projections and in MLPs", min=0, max=1, group="generator"
    )

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width // self.heads % 2:
            raise UserError(
                f"width {self.width} over {self.heads} heads: expected an even whole number of "
                "channels a head, which rotary positions need"
            )


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

    epochs: int = setting(1200, "passes over the data", min=1, group="training")
    max_steps: int = setting(
        0, "updates after which training ends all the same; 0: never", min=0, group="training"
    )
    batch_size: int = setting(64, "images of one process in one pass", min=1, group="training")
    accumulate: int = setting(
        1,
        "passes whose gradients make one update; batch_size x this x processes is the global batch",
        min=1,
        group="training",
    )
    blr: float = setting(1e-4, "learning rate at a global batch of 256", min=0, group="training")
    lr: float | None = setting(None, "learning rate, instead of --blr", min=0, group="training")
    min_lr: float = setting(0.0, "end of the cosine schedule", min=0, group="training")
    lr_schedule: str = setting(
        "constant", "after the warm-up", choices=("constant", "cosine"), group="training"
    )
    warmup_epochs: float = setting(
        100.0, "epochs in which the rate grows from 0", min=0, group="training"
    )
    weight_decay: float = setting(
        0.02, "weight decay of matrices outside the flow head", min=0, group="training"
    )
    grad_clip: float = setting(3.0, "largest gradient norm; 0: any", min=0, group="training")
    ema_rate: float = setting(
        0.9999, "decay of the averaged weights", min=0, below=1, group="training"
    )
    seed: int = setting(
        0, "random seed of weights, order, noise, and crops of --data_path", group="training"
    )
    label_drop_prob: float = setting(
        0.1, "probability that an image loses its class", min=0, max=1, group="objective"
    )
    shift_num: int = setting(
        16,
        "number of random shifts of all positions, one an update; 1: no shift",
        min=1,
        group="objective",
    )
    diffusion_batch_mul: int = setting(4, "flow draws of each token", min=1, group="objective")
    train_columns: str = setting(
        "all", "columns whose loss is trained, such as 0-3,8-11", group="objective"
    )
    subsequence: int = setting(
        0,
        "train on random runs of so many columns, each as if it were an image; 0: on whole images",
        min=0,
        group="objective",
    )
    precision: str = setting(
        "fp32",
        "precision of products; auto: bf16 where the device multiplies in it. The default is that "
        "of the published line, --float32; without this flag the release takes bf16",
        choices=("fp32", "tf32", "bf16", "auto"),
        group="speed",
    )
    compile: bool = setting(False, "compile layers and flow head", group="speed")
    grad_checkpointing: bool = setting(
        False, "recompute layers in the backward pass, for less memory", group="speed"
    )
    share_classes: bool = setting(
        False,
        "read each class once, where a batch has more images than there are classes; images of a "
        "class then share its tokens' dropout",
        group="speed",
    )
    log_freq: int = setting(20, "updates between two entries of the logs", min=1, group="records")
    save_last_freq: int = setting(
        1, "epochs between two checkpoints that replace each other", min=1, group="records"
    )
    save_freq: int = setting(
        50, "epochs between two checkpoints that are kept; 0: none", min=0, group="records"
    )
    save_steps: int = setting(
        0,
        "updates between two checkpoints that replace each other; 0: none",
        min=0,
        group="records",
    )
    eval_freq: int = setting(
        0,
        "epochs between two evaluations of every column's loss, with the averaged weights; 0: none",
        min=0,
        group="records",
    )
    eval_images: int = setting(2048, "images of such an evaluation", min=1, group="records")
    sample_freq: int = setting(
        0,
        "epochs between two grids of samples, with the averaged weights; 0: none",
        min=0,
        group="records",
    )

    def __post_init__(self) -> None:
        if self.train_columns != "all" and self.subsequence:
            raise UserError("--subsequence: given together with --train_columns; expected one")

    def schedule(self, world: int) -> EpochSchedule:
        """The learning rate on `world` processes."""
        batch = self.batch_size * self.accumulate * world
        lr = self.blr * batch / 256 if self.lr is None else self.lr
        return EpochSchedule(lr, self.epochs, self.warmup_epochs, self.min_lr, self.lr_schedule)
