"""Objective of the tokenizer (paper, tokenizer section): faithful, compact, real-looking.

Shapes: B batch, H W pixels, h L the semantic map.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common import distributed
from common.config import Natural, Positive, limits
from common.pretrained.lpips import LPIPS
from common.seeding import BatchDraws
from tokenizer.losses.alignment import Alignment
from tokenizer.losses.augment import DRAWS, augment
from tokenizer.losses.dino import CROP_DRAWS, DinoDiscriminator
from tokenizer.losses.patchgan import PatchGAN
from tokenizer.posterior import Posterior

Weight = Annotated[float, limits(min=0)]


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
        distributed.all_reduce_mean(torch.autograd.grad(term, weight, retain_graph=True)[0]).norm()
        for term in (reconstruction, adversarial)
    ]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0.0, 1e4).detach()


@dataclass(frozen=True)
class Reconstruction:
    """What the autoencoder makes of a batch of images, and what it should make."""

    target: Tensor  # [B, 3, H, W] in [-1, 1]
    images: Tensor  # [B, 3, H, W], about [-1, 1]
    semantics: Tensor | None  # the semantic map [B, c, h, L] where it is wanted
    posterior: Posterior  # of the images' tokens


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
        disc_type, disc_loss: of the adversary; `disc_width`, `disc_num_layers` size the PatchGAN.
        disc_weight, disc_start: of the adversarial term, before the adaptive factor; first step.
        semantic_loss_w, semantic_iter_start: of the alignment with DINOv2; first step.
        weights_dir: folder of the pretrained networks.
        disc_factor, disc_in_channels, disc_conditional, use_actnorm, logvar_init: in released
            files, with the one meaning that they have there.
    """

    def __init__(
        self,
        pixelloss_weight: Weight = 1.0,
        perceptual_weight: Weight = 1.0,
        kl_weight: Weight = 0.01,
        disc_type: Literal["dino", "patchgan", "none"] = "dino",
        disc_loss: Literal["hinge", "vanilla"] = "hinge",
        disc_weight: Weight = 0.5,
        disc_start: Natural = 5001,
        disc_width: Positive = 64,
        disc_num_layers: Positive = 3,
        semantic_loss_w: Weight = 5.0,
        semantic_iter_start: Natural = 20001,
        weights_dir: str | None = None,
        disc_factor: Annotated[float, limits(choices=(1.0,))] = 1.0,
        disc_in_channels: Literal[3] = 3,
        disc_conditional: Literal[False] = False,
        use_actnorm: Literal[False] = False,
        logvar_init: Annotated[float, limits(choices=(0.0,))] = 0.0,
    ) -> None:
        super().__init__()
        self.pixel_weight, self.lpips_weight = pixelloss_weight, perceptual_weight
        self.kl_weight, self.semantic_weight = kl_weight, semantic_loss_w
        self.disc_weight, self.disc_start = disc_weight, disc_start
        self.disc_loss = {"hinge": hinge_loss, "vanilla": vanilla_loss}[disc_loss]
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
        self, fake: Reconstruction, last_weight: nn.Parameter, step: int, draws: BatchDraws
    ) -> Loss:
        """The autoencoder's loss after `step` updates; the adaptive factor looks at `last_weight`,
        that of the decoder's last convolution."""
        count, numbers = len(fake.target), fake.target[0].numel()
        pixel = (fake.images.float() - fake.target).abs().sum() / count
        reconstruction = self.pixel_weight * pixel
        terms = {"pixel": pixel / numbers}  # as they are logged
        if self.perceptual is not None:
            terms["lpips"] = self.perceptual(fake.images, fake.target).mean()
            reconstruction = reconstruction + self.lpips_weight * (numbers * terms["lpips"])
        terms["kl"] = fake.posterior.kl().mean()
        total = reconstruction + self.kl_weight * terms["kl"]
        if self.semantic(step):
            terms["semantic"] = self.alignment.loss(fake.semantics, fake.target)
            total = total + self.semantic_weight * terms["semantic"]
        if self.adversarial(step):
            self.discriminator.requires_grad_(False)  # the gradient reaches the images alone
            terms["adversarial"] = -self._judge(fake.images, draws).mean()
            self.discriminator.requires_grad_(True)
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
