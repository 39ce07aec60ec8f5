from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from common import distributed
from common.distributed import Process
from common.errors import UserError
from common.metrics.extraction import (
    Collector,
    Features,
    Files,
    Loading,
    Moments,
    extract,
    fact,
    oddities,
)
from common.metrics.references import of_features
from common.metrics.report import Judge, Measures, measure

ALONE = Process(0, 0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def features(picture_folders, random_extractor):
    """Of both folders."""
    found = []
    for folder in picture_folders:
        files = Files(sorted(folder.iterdir()))
        found.append(extract(files, random_extractor, ALONE, Loading(5), "images")[0])
    return found


@pytest.fixture(scope="module")
def reference(features):
    """One image fewer, so that KID has subsets to choose."""
    other = features[1]
    fewer = Features(other.pooled[:8], other.logits[:8], other.facts[:8])
    return of_features(fewer, {}, "other")


def one_of_several(rank, world, port, files, reference, extractor, folder):
    if world > 1:
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        numbers |= {"MASTER_PORT": port, "MASTER_ADDR": "localhost"}
        os.environ.update({name: str(value) for name, value in numbers.items()})
    torch.set_num_threads(1)
    with distributed.launch("cpu") as process:
        moments = Moments.none(extractor)
        moments.add(torch.full((rank, extractor.width), 2.0))
        measures = Measures(extractor="random", splits=2, loading=Loading(2))
        own = reference if process.is_main else None
        with pytest.raises(UserError, match=r"--splits: found 9"):  # on every process
            Judge(replace(measures, splits=9), extractor, own, process).measure(files)
        record = Judge(measures, extractor, own, process).measure(files)
        assert (record is not None) == process.is_main
        if process.is_main:
            (folder / f"{world}.json").write_text(json.dumps(record))


def test_any_number_of_processes_gives_the_same_figures(
    picture_folders, random_extractor, reference, tmp_path
):
    files = sorted(picture_folders[0].iterdir())  # 5 batches: uneven for 2 and 3 processes
    context = multiprocessing.get_context("fork")
    for world in (1, 2, 3):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        given = (files, reference, random_extractor, tmp_path)
        processes = [
            context.Process(target=one_of_several, args=(rank, world, port, *given))
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
            assert process.exitcode == 0
    records = [json.loads((tmp_path / f"{world}.json").read_text()) for world in (1, 2, 3)]
    assert [r["processes"] for r in records] == [1, 2, 3]
    assert len(records[0]["figures"]) == 9
    for record in records[1:]:
        assert record["figures"] == pytest.approx(records[0]["figures"], rel=1e-6)
        assert record["images"] == records[0]["images"]


def test_names_and_order_of_the_images_do_not_matter(
    picture_folders, random_extractor, features, reference, tmp_path
):
    files = sorted(picture_folders[0].iterdir())
    for k, number in enumerate(
        torch.randperm(len(files), generator=torch.Generator().manual_seed(0))
    ):
        shutil.copy(files[number], tmp_path / f"{k:02d}.png")
    shuffled = Files(sorted(tmp_path.iterdir()))
    found, _ = extract(shuffled, random_extractor, ALONE, Loading(7), "images")
    measures = Measures(splits=4)
    a, b = (measure(f, reference, random_extractor, measures) for f in (features[0], found))
    assert a["figures"] == pytest.approx(b["figures"], rel=1e-4)
    assert a["images"]["digest"] == b["images"]["digest"]
    # and parts by class would not have been the same
    parts = features[0].logits.split(4)
    assert not torch.allclose(parts[0].mean(0), parts[1].mean(0), rtol=1e-3)


def test_images_in_memory_are_those_of_the_files(picture_folders, random_extractor, features):
    collector = Collector(random_extractor)
    pictures = [Files([path])[0][0] for path in sorted(picture_folders[0].iterdir())[:3]]
    collector.add(torch.stack(pictures[:2]))
    collector.add(torch.stack(pictures[2:]))
    found = collector.features()
    rows = [features[0].facts[:, 0].tolist().index(d) for d in found.facts[:, 0].tolist()]
    torch.testing.assert_close(found.pooled, features[0].pooled[rows], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.logits, features[0].logits[rows], rtol=1e-4, atol=1e-3)


def test_moments_are_those_of_all_features_at_once(features, random_extractor):
    moments = Moments.none(random_extractor)
    for part in features[0].pooled.split(6):
        moments.add(part)
    mean, covariance = moments.result()
    torch.testing.assert_close(mean, features[0].pooled.double().mean(0))
    torch.testing.assert_close(covariance, torch.cov(features[0].pooled.double().T))


def test_jpegs_other_sizes_and_copies_are_reported(picture_folders, random_extractor, tmp_path):
    first, second, third, *_ = sorted(picture_folders[0].iterdir())
    shutil.copy(first, tmp_path / "a.png")
    shutil.copy(first, tmp_path / "b.png")
    Image.open(second).save(tmp_path / "c.png", format="JPEG")  # whatever it is called
    Image.open(third).resize((50, 64)).save(tmp_path / "d.png")
    files = sorted(tmp_path.iterdir())
    found, _ = extract(Files(files), random_extractor, ALONE, Loading(), "images")
    width = Image.open(first).width
    assert oddities(found.facts) == [
        "1 of 4 images are JPEG or WebP, whose compression changes every figure",
        f"1 of 4 images are not of 64 x {width} pixels as most are",
        "1 of 4 images are copies of others",
    ]
    strict = Files(files, strict=True)
    assert strict[1][0].shape == (3, 64, width)
    with pytest.raises(UserError, match=r"c.png: found JPEG, expected images as they were made"):
        strict[2]
    with pytest.raises(UserError, match=rf"d.png: found 50 x 64 pixels, expected {width} x 64"):
        strict[3]


def test_a_damaged_file_is_an_error_and_no_gap(picture_folders, random_extractor, tmp_path):
    shutil.copy(next(picture_folders[0].iterdir()), tmp_path / "a.png")
    Path(tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    with pytest.raises(UserError, match=r"b.png: not a readable picture"):
        extract(Files(sorted(tmp_path.iterdir())), random_extractor, ALONE, Loading(), "images")


def test_a_fact_tells_pixels_and_sizes_apart():
    black = torch.zeros(3, 4, 6, dtype=torch.uint8)
    one = black.clone()
    one[0, 0, 0] = 1
    digests = {int(fact(p)[0]) for p in (black, black.clone(), one, black.mT)}
    assert len(digests) == 3
    assert fact(black, lossy=True)[1:].tolist() == [4, 6, 1]
