from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common import distributed
from tokenizer.losses.patchgan import BatchNorm, PatchGAN


@pytest.fixture(scope="module")
def discriminator():
    torch.manual_seed(0)
    return PatchGAN().eval()


def test_weights_begin_small_and_centred(discriminator):
    """Means and deviations of n draws lie within four of their own deviations."""
    for module in discriminator.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            centre = 1.0 if isinstance(module, nn.BatchNorm2d) else 0.0
            n = module.weight.numel()
            assert module.weight.mean().item() == pytest.approx(centre, abs=4 * 0.02 / n**0.5)
            assert module.weight.std().item() == pytest.approx(0.02, rel=4 / (2 * n) ** 0.5)
        if isinstance(module, nn.BatchNorm2d):
            assert not module.bias.any()


def test_the_usual_size(discriminator):
    assert sum(p.numel() for p in discriminator.parameters()) == 2_765_633


def test_a_logit_sees_a_patch_of_70_pixels(discriminator):
    images = torch.randn(1, 3, 128, 128, requires_grad=True)
    logits = discriminator(images)
    assert logits.shape == (1, 1, 14, 14)
    logits[0, 0, 7, 7].backward()
    rows = images.grad[0].abs().sum((0, 2)).nonzero()
    assert (rows.max() - rows.min() + 1).item() == 70


@pytest.mark.parametrize("layers", [1, 2])
def test_fewer_layers_see_smaller_patches(layers):
    logits = PatchGAN(width=8, layers=layers)(torch.randn(2, 3, 32, 64))
    side = 2**layers
    assert logits.shape == (2, 1, 32 // side - 2, 64 // side - 2)


def test_the_names_of_the_norm_are_those_of_torch():
    assert BatchNorm(4).state_dict().keys() == nn.BatchNorm2d(4).state_dict().keys()


def train(rows: slice = slice(None), norm: type = BatchNorm) -> dict[str, torch.Tensor]:
    """One step of an adversary on some rows of a batch, as the objective does it: what the decoder
    (two numbers a channel, here) and the discriminator learn, and what the norms remember."""
    torch.manual_seed(0)
    discriminator = PatchGAN(width=8, layers=2)
    for name, module in list(discriminator.stack.named_children()):
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.1)  # or the norm's epsilon would hide the variance
        if isinstance(module, BatchNorm):
            setattr(discriminator.stack, name, norm(module.num_features))
    real = torch.randn(4, 3, 24, 32)
    codes = 3 + real * torch.arange(1.0, 5.0)[:, None, None, None]  # no two images alike
    real, codes = real[rows], codes[rows]
    weight = nn.Parameter(torch.tensor([[0.5, -0.2, 0.3], [0.1, 0.2, -0.1]])[:, :, None, None])
    fake = torch.tanh(codes * weight[0] + weight[1])

    discriminator.requires_grad_(False)
    adversarial = -discriminator(fake).mean()
    discriminator.requires_grad_(True)
    alone = torch.autograd.grad(adversarial, weight, retain_graph=True)[0]
    alone = distributed.all_reduce_mean(alone)
    (adversarial / alone.norm() + (fake - real).abs().mean()).backward()
    distributed.average_gradients([weight])

    logits = [discriminator(images) for images in (real, fake.detach())]
    (F.relu(1 - logits[0]).mean() + F.relu(1 + logits[1]).mean()).backward()
    distributed.average_gradients(list(discriminator.parameters()))
    learned = {k: p.grad for k, p in discriminator.named_parameters()}
    remembered = {k: v for k, v in discriminator.state_dict().items() if k not in learned}
    return {"alone": alone, "weight": weight.grad, **learned, **remembered}


def work(folder: Path) -> None:
    """One of two processes, with half of the batch."""
    torch.set_num_threads(1)
    with distributed.launch("cpu") as process:
        rows = slice(process.rank, None, process.world)
        with torch.autocast("cpu", torch.bfloat16):
            norm = BatchNorm(3)(torch.randn(2, 3, 4, 4).bfloat16())
        found = {"found": train(rows), "torch": train(rows, nn.BatchNorm2d)}
        torch.save({**found, "dtype": norm.dtype}, folder / f"{process.rank}.pth")


def test_two_processes_learn_what_one_does(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "localhost"}
    common |= {"MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    common |= {"PYTHONPATH": Path(__file__).parents[3], "CUDA_VISIBLE_DEVICES": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path)],
            env=os.environ | {k: str(v) for k, v in {**common, "RANK": r, "LOCAL_RANK": r}.items()},
        )
        for r in range(2)
    ]
    try:
        assert [process.wait(120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()

    expected = train()
    for rank in range(2):
        saved = torch.load(tmp_path / f"{rank}.pth")
        assert saved["dtype"] == torch.bfloat16
        for name, tensor in expected.items():
            torch.testing.assert_close(saved["found"][name], tensor, atol=1e-6, rtol=1e-4)
        # the halves alone have others: the comparison can fail
        for name in ("alone", "weight", "stack.0.weight", "stack.3.running_var"):
            difference = saved["torch"][name] - expected[name]
            assert difference.norm() > 0.003 * expected[name].norm(), name


if __name__ == "__main__":
    work(Path(sys.argv[1]))
