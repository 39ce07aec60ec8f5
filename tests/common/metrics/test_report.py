import json
import multiprocessing
import os
import shutil
import socket
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from common import distributed
from common.distributed import Process
from common.errors import UserError
from common.metrics import report
from common.metrics.extraction import ImageFiles, open_images
from common.metrics.fid import read_statistics, write_statistics
from common.metrics.report import Evaluator, MetricConfig, table

CPU = torch.device("cpu")
ALONE = Process(0, 0, 1, CPU)


class Means:
    """Four means of colour an image, as features and logits."""

    def __init__(self, width=4, **about):
        self.width, self.device = width, CPU
        self.about = {
            "name": "inception",
            "weights": "abc",
            "file": "x.pth",
            "verified": True,
            **about,
        }
        self.is_random = False

    def __call__(self, pixels):
        if not isinstance(pixels, torch.Tensor):
            return torch.cat([self(image[None]) for image in pixels])
        return pixels.float().mean(3).flatten(1)[:, :4].repeat(1, 2)


@pytest.fixture
def folder(tmp_path):
    """Six images in two classes, 30 x 40 and 40 x 30 pixels."""
    noise = np.random.default_rng(0)
    for k in range(6):
        shape = (30, 40, 3) if k % 2 else (40, 30, 3)
        path = tmp_path / "images" / str(k % 2) / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(256, size=shape, dtype=np.uint8)).save(path)
    return tmp_path / "images"


def evaluator(reference, extractor=None):
    """As `open_evaluator` makes one, with this extractor."""
    config = MetricConfig(reference=reference and str(reference), metric_bsz=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "load_extractor", lambda *_: extractor or Means())
        return report.open_evaluator(config, ALONE)


def test_statistics_survive_the_file(folder, tmp_path):
    crops, about = open_images(folder, size=16)
    seen = evaluator(None).extract(crops, about)[0].statistics
    record = {**about, "extractor": Means().about, "warnings": []}
    write_statistics(tmp_path / "s.npz", seen, record)
    found, record = read_statistics(tmp_path / "s.npz")
    features = Means()(torch.stack([crops[i][0] for i in range(6)]))[:, :4].double()
    torch.testing.assert_close(found.mean, features.mean(0))
    torch.testing.assert_close(found.root.T @ found.root, torch.cov(features.T))
    assert record["images"] == 6 and record["preparation"] == "center crop of 16 x 16"
    for other in (Means(name="random:0"), Means(weights="def")):
        with pytest.raises(UserError, match=r"s\.npz"):
            evaluator(tmp_path / "s.npz", other)
    np.savez(tmp_path / "adm.npz", mu=np.ones(4), sigma=np.eye(4))  # of unknown origin
    assert evaluator(tmp_path / "adm.npz").reference["warnings"]
    with pytest.raises(UserError, match=r"adm\.npz"):
        evaluator(tmp_path / "adm.npz", Means(width=5))


def test_what_a_reference_allows_is_measured_and_the_rest_named(folder, tmp_path):
    np.savez(tmp_path / "adm.npz", mu=np.ones(4), sigma=np.eye(4))
    for reference, figures in (
        (folder, {"fid", "inception_score", "inception_score_std"}),
        (tmp_path / "adm.npz", {"fid", "inception_score", "inception_score_std"}),
        (None, {"inception_score", "inception_score_std"}),
    ):
        record = evaluator(reference).measure(*open_images(folder, size=30))
        assert record["figures"].keys() == figures
        assert ("fid" in record["not_measured"]) == (reference is None)
        assert "6 images of" in table(record)
        json.dumps(record)


def test_a_reference_of_one_image_is_refused(folder, tmp_path):
    shutil.copy(folder / "0" / "0.png", tmp_path)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match=f"{tmp_path}: found 1 image"):
        evaluator(tmp_path)


def test_what_is_odd_is_counted_and_what_is_damaged_refused(folder, tmp_path):
    first, second, third = sorted(folder.glob("0/*.png"))
    for name in ("a.png", "b.png", "e.png"):
        shutil.copy(first, tmp_path / name)
    Image.open(second).save(tmp_path / "c.png", format="JPEG")  # whatever it is called
    Image.open(third).resize((50, 64)).save(tmp_path / "d.png")
    files = ImageFiles(sorted(tmp_path.glob("*.png")))
    other, lossy = files.oddities()
    assert lossy.startswith("1 of 5 images are JPEG") and lossy.endswith("c.png")
    assert other == "images of 2 sizes"
    (tmp_path / "b.png").write_bytes(first.read_bytes()[:200])
    with pytest.raises(UserError, match=r"b\.png"):
        evaluator(None).measure(files, {"source": "files"})


def test_crops(folder, tmp_path):
    # an image of 4 equal pixels a side: halving by averages keeps them, bicubic would not
    small = np.random.default_rng(0).integers(256, size=(8, 12, 3), dtype=np.uint8)
    Image.fromarray(small.repeat(4, 0).repeat(4, 1)).save(tmp_path / "x.png")
    (found,) = ImageFiles([tmp_path / "x.png"], 8, "adm-center")[0]
    assert np.array_equal(found.permute(1, 2, 0), small[:, 2:10])
    params = {"root": str(folder), "size": 16}
    node = {"target": "common.data.folders.ImageFolder", "params": params}
    path = tmp_path / "data.yaml"
    path.write_text(yaml.safe_dump({"data": {"params": {"validation": node}}}))
    (crops, _), (cut, _) = open_images(path), open_images(folder, size=16)
    assert len(crops) == len(cut) == 6
    for k in range(6):
        assert torch.equal(crops[k][0], cut[k][0])
    with pytest.raises(UserError, match="neither random"):
        open_images(path, overrides=["data.params.validation.params.train=true"])
    for source, part in ((path, "train"), (tmp_path / "gone", "validation")):
        with pytest.raises(UserError, match=str(source)):
            open_images(source, part=part)


def measured(process, folders):
    one, other = map(open_images, folders)
    found = Evaluator(MetricConfig(metric_bsz=2), Means(), process)
    features, about = found.extract(*other)
    found = replace(found, reference=about, statistics=features and features.statistics)
    return found.measure(*one)


def one_of_several(rank, port, folders, file):
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 3, "LOCAL_WORLD_SIZE": 3}
    numbers |= {"MASTER_PORT": port, "MASTER_ADDR": "localhost"}
    os.environ.update({name: str(value) for name, value in numbers.items()})
    torch.set_num_threads(1)
    with distributed.launch("cpu") as process:
        record = measured(process, folders)
        assert (record is not None) == process.is_main
        if record is not None:
            file.write_text(json.dumps(record))


def test_any_number_of_processes_gives_the_same_figures(image_folders, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "SPLIT_IMAGES", 4)  # two parts
    context, file = multiprocessing.get_context("fork"), tmp_path / "record.json"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        given = (free.getsockname()[1], image_folders, file)
    processes = [context.Process(target=one_of_several, args=(k, *given)) for k in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    three, one = json.loads(file.read_text()), measured(ALONE, image_folders)  # 5 batches: uneven
    assert (one["processes"], three["processes"]) == (1, 3) and len(one["figures"]) == 3
    assert three["figures"] == pytest.approx(one["figures"], rel=1e-6)
