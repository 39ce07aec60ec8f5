"""What the tokenizer is trained for (paper, tokenizer section): faithful, compact, real-looking.

Shapes: B batch, H W pixels, h L the semantic map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common import distributed
from common.errors import UserError
from common.pretrained.lpips import LPIPS
from common.seeding import BatchDraws
from tokenizer.losses.alignment import Alignment
from tokenizer.losses.augment import DRAWS, augment
from tokenizer.losses.dino import CROP_DRAWS, DinoDiscriminator
from tokenizer.losses.patchgan import PatchGAN
from tokenizer.posterior import Posterior

# Keys of released files that have one meaning here.
FIXED = {
    "disc_factor": 1.0,
    "disc_in_channels": 3,
    "disc_conditional": False,
    "use_actnorm": False,
    "logvar_init": 0.0,
}


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def vanilla_loss(real: Tensor, fake: Tensor) -> Tensor:
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, weight: nn.Parameter) -> Tensor:
    """How much the adversarial term counts: ‖∇rec‖ / (‖∇adv‖ + 1e-4), at most 1e4.

    Both gradients are those of the decoder's last convolution, averaged over all processes, so
    that the factor does not depend on how the batch is split.
    """
    norms = [
        distributed.mean(torch.autograd.grad(term, weight, retain_graph=True)[0]).norm()
        for term in (reconstruction, adversarial)
    ]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0.0, 1e4).detach()


@dataclass(frozen=True)
class Reconstruction:
    """What the autoencoder makes of a batch of images.

    Args:
        images: [B, 3, H, W], about [-1, 1].
        semantics: the semantic map [B, c, h, L], or None where it is not wanted.
        posterior: of the images' tokens.
    """

    images: Tensor
    semantics: Tensor | None
    posterior: Posterior


@dataclass(frozen=True)
class Loss:
    """A scalar to minimise and its parts, detached, for the logs."""

    total: Tensor
    terms: dict[str, Tensor]


class Objective(nn.Module):
    """The terms of stage one, each with its weight and the update it starts from.

    Steps are counted in updates of the autoencoder. The discriminator is trainable and belongs to
    the objective; the autoencoder is handed in. A term of weight 0 loads no network.

    Args:
        pixelloss_weight: of the absolute error, summed over pixels and channels, divided by B.
        perceptual_weight: of LPIPS, one number an image that counts for each pixel and channel.
        kl_weight: of the posterior's KL divergence, averaged over B.
        disc_type: `dino`, `patchgan`, or `none` to train without an adversary.
        disc_loss: `hinge` or `vanilla`.
        disc_weight: of the adversarial term, before the adaptive factor.
        disc_start: first step with the adversarial term.
        disc_width, disc_num_layers: size of the PatchGAN.
        semantic_loss_w: of the alignment with the features of DINOv2.
        semantic_iter_start: first step with the alignment.
        weights_dir: folder of the pretrained networks, see `common.pretrained.files.find`.
        disc_factor, disc_in_channels, disc_conditional, use_actnorm, logvar_init: in released
            files; anything but their values there is refused.

    Raises:
        UserError: a value that cannot be, or a network whose weights are not there.
    """

    def __init__(
        self,
        pixelloss_weight: float = 1.0,
        perceptual_weight: float = 1.0,
        kl_weight: float = 0.01,
        disc_type: Literal["dino", "patchgan", "none"] = "dino",
        disc_loss: Literal["hinge", "vanilla"] = "hinge",
        disc_weight: float = 0.5,
        disc_start: int = 5001,
        disc_width: int = 64,
        disc_num_layers: int = 3,
        semantic_loss_w: float = 5.0,
        semantic_iter_start: int = 20001,
        weights_dir: str | None = None,
        disc_factor: float = 1.0,
        disc_in_channels: int = 3,
        disc_conditional: bool = False,
        use_actnorm: bool = False,
        logvar_init: float = 0.0,
    ) -> None:
        super().__init__()
        given = locals()
        losses = {"hinge": hinge_loss, "vanilla": vanilla_loss}
        for key, choices in {
            "disc_loss": tuple(losses),
            "disc_type": ("dino", "patchgan", "none"),
            **{key: (value,) for key, value in FIXED.items()},
        }.items():
            if given[key] not in choices:
                expected = f"one of {', '.join(map(str, choices))}" if choices[1:] else choices[0]
                raise UserError(
                    f"lossconfig.params.{key}: found {given[key]!r}, expected {expected}"
                )
        self.pixel_weight = pixelloss_weight
        self.perceptual_weight = perceptual_weight
        self.kl_weight = kl_weight
        self.disc_weight = disc_weight
        self.disc_start = disc_start
        self.disc_loss = losses[disc_loss]
        self.semantic_weight = semantic_loss_w
        self.semantic_start = semantic_iter_start
        self.perceptual = LPIPS(weights_dir) if perceptual_weight else None
        self.alignment = Alignment(weights_dir) if semantic_loss_w else None
        self.discriminator: DinoDiscriminator | PatchGAN | None = None
        if disc_type == "dino":
            self.discriminator = DinoDiscriminator(weights_dir)
        elif disc_type == "patchgan":
            self.discriminator = PatchGAN(disc_width, disc_num_layers)

    def adversarial(self, step: int) -> bool:
        """Whether the discriminator takes part in this step."""
        return self.discriminator is not None and step >= self.disc_start

    def semantic(self, step: int) -> bool:
        """Whether the semantic map is wanted in this step."""
        return self.alignment is not None and step >= self.semantic_start

    def autoencoder_loss(
        self,
        images: Tensor,
        fake: Reconstruction,
        last_weight: nn.Parameter,
        step: int,
        draws: BatchDraws,
    ) -> Loss:
        """The autoencoder's loss.

        Args:
            images: [B, 3, H, W] in [-1, 1].
            fake: what the autoencoder makes of them.
            last_weight: of the decoder's last convolution, for the adaptive factor.
            step: updates of the autoencoder so far.
            draws: randomness of the discriminator's augmentation.
        """
        pixels = (fake.images.float() - images).abs().sum() / len(images)
        reconstruction = self.pixel_weight * pixels
        terms = {"pixel": pixels / images[0].numel()}
        if self.perceptual is not None:
            terms["lpips"] = self.perceptual(fake.images, images).mean()
            reconstruction = (
                reconstruction + self.perceptual_weight * images[0].numel() * terms["lpips"]
            )
        terms["kl"] = fake.posterior.kl().mean()
        total = reconstruction + self.kl_weight * terms["kl"]
        if self.semantic(step):
            terms["semantic"] = self.alignment.loss(fake.semantics, images)
            total = total + self.semantic_weight * terms["semantic"]
        if self.adversarial(step):
            terms["adversarial"] = -self._without_gradients(fake.images, draws).mean()
            terms["d_weight"] = adaptive_weight(reconstruction, terms["adversarial"], last_weight)
            total = total + self.disc_weight * terms["d_weight"] * terms["adversarial"]
        terms |= {"rec": reconstruction, "total": total}
        return Loss(total, {k: v.detach() for k, v in terms.items()})

    def discriminator_loss(self, images: Tensor, fake: Tensor, draws: BatchDraws) -> Loss:
        """The discriminator's loss on real images and on reconstructions, both [B, 3, H, W]."""
        real, fake = self._judge(images, draws), self._judge(fake.detach(), draws)
        loss = self.disc_loss(real, fake)
        terms = {"disc": loss, "logits_real": real.mean(), "logits_fake": fake.mean()}
        return Loss(loss, {k: v.detach() for k, v in terms.items()})

    def _judge(self, images: Tensor, draws: BatchDraws) -> Tensor:
        """The discriminator's logits, in float32."""
        if isinstance(self.discriminator, DinoDiscriminator):
            images = augment(images.float(), draws.uniform(len(images), DRAWS))
            return self.discriminator(images, draws.shared(CROP_DRAWS)).float()
        return self.discriminator(images).float()

    def _without_gradients(self, images: Tensor, draws: BatchDraws) -> Tensor:
        """Logits whose gradient reaches the images alone."""
        self.discriminator.requires_grad_(False)
        logits = self._judge(images, draws)
        self.discriminator.requires_grad_(True)
        return logits
