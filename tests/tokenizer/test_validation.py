from __future__ import annotations

import pytest
import torch
from torch.utils.data import TensorDataset

from common import images
from common.metrics.pixel import psnr, ssim
from common.pretrained.lpips import LPIPS
from tokenizer.validation import Fidelity, available_lpips, measure_fidelity

CPU = torch.device("cpu")


def pictures(count):
    values = torch.randint(256, (count, 3, 16, 16), dtype=torch.uint8)
    return TensorDataset(values, torch.zeros(count))


def test_means_are_over_images_not_batches():
    fidelity = Fidelity()
    real = torch.rand(5, 3, 16, 16) * 2 - 1
    fake = (real + 0.1 * torch.randn(5, 3, 16, 16)).clamp(-1, 1)
    for start, stop in ((0, 4), (4, 5)):
        fidelity.add(fake[start:stop], real[start:stop])
    assert fidelity.means(CPU) == {
        "psnr": pytest.approx(psnr(fake, real).mean().item()),
        "ssim": pytest.approx(ssim(fake, real).mean().item(), rel=1e-5),
    }


def test_a_whole_data_set(tokenizer):
    dataset = pictures(3)
    batches = [(dataset[i][0][None], 0) for i in range(3)]
    real = images.to_float(torch.cat([b for b, _ in batches]))
    with torch.no_grad():
        fake = tokenizer.decode(tokenizer.encode(real).mode())
    found = measure_fidelity(tokenizer, batches, CPU)
    assert found["psnr"] == pytest.approx(psnr(fake, real).mean().item(), rel=1e-5)


def test_lpips_is_measured_where_its_network_is(tokenizer, pretrained_folder, tmp_path):
    assert available_lpips(str(tmp_path)) is None
    lpips = available_lpips(str(pretrained_folder))
    assert isinstance(lpips, LPIPS)
    real, fake = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    fidelity = Fidelity(lpips)
    fidelity.add(fake, real)
    assert fidelity.means(CPU)["lpips"] == pytest.approx(lpips(fake, real).mean().item())
