import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from common import distributed


def launcher(rank, port):
    """The environment that torchrun gives to one of two processes of a machine."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    numbers["MASTER_PORT"] = port
    return {"MASTER_ADDR": "localhost", **{name: str(n) for name, n in numbers.items()}}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in launcher(0, 0):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def gpus(monkeypatch):
    def set_count(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)

    return set_count


@pytest.mark.parametrize(
    ("count", "device", "chosen"),
    [
        (0, "auto", "cpu"),
        (2, "auto", "cuda:0"),
        (2, "cuda", "cuda:0"),
        (2, "cuda:1", "cuda:1"),
        (2, "cpu", "cpu"),
    ],
)
def test_the_device_that_is_chosen(gpus, count, device, chosen):
    gpus(count)
    with distributed.launch(device) as process:
        assert process.device == torch.device(chosen)


def one_of_two(rank, port, folder):
    os.environ.update(launcher(rank, port))
    with distributed.launch("cpu") as process:
        x = torch.tensor([1.0 + process.rank, 10.0])
        layer = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(layer.weight, 3.0 + rank)
        distributed.broadcast_module(layer)
        layer.weight.grad, layer.bias.grad = torch.full((1, 1), 2.0 * rank), torch.ones(1)
        distributed.average_gradients(list(layer.parameters()))
        found = {
            "process": [process.rank, process.world, process.local_world, process.is_main],
            "total": distributed.all_reduce_sum(x).tolist(),
            "mean": distributed.all_reduce_mean(x).tolist(),
            "x": x.tolist(),
            "weight": layer.weight.item(),
            "gradients": [p.grad.item() for p in layer.parameters()],
            "agreed": distributed.broadcast_object(f"from {rank}"),
        }
        rows = distributed.gather(torch.full((2 * rank, 2), 7.0))  # none on the first process
        found["gathered"] = None if rows is None else rows.tolist()
        distributed.barrier()
    found["still connected"] = dist.is_initialized()
    (folder / f"{rank}.json").write_text(json.dumps(found))


ORPHAN = """
import os, subprocess, sys
worker = '''
import os, threading, time
from common import distributed
distributed.PARENT_SECONDS = 0.1
threading.Thread(target=distributed._end_with_parent, args=(os.getppid(),), daemon=True).start()
print("up", flush=True)
time.sleep(60)
'''
child = subprocess.Popen([sys.executable, "-c", worker], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
"""


def test_a_worker_ends_when_torchrun_is_gone():
    command = [sys.executable, "-c", ORPHAN]
    worker = int(subprocess.run(command, capture_output=True, check=True).stdout)
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{worker}/stat").read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the worker lives on")


def test_two_processes_work_together(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    # Forked, because a fresh interpreter would spend seconds on importing torch.
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=one_of_two, args=(r, port, tmp_path)) for r in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == {
            "process": [rank, 2, 2, rank == 0],
            "total": [3.0, 20.0],
            "mean": [1.5, 10.0],
            "x": [1.0 + rank, 10.0],
            "weight": 3.0,
            "gradients": [1.0, 1.0],
            "agreed": "from 0",
            "gathered": None if rank else [[7.0, 7.0], [7.0, 7.0]],
            "still connected": False,
        }
