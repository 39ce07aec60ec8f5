import json
import multiprocessing
import os
import socket
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from common import distributed
from common.errors import UserError


def test_the_device_that_is_chosen(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    for name, chosen in (("auto", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")):
        with distributed.launch(name) as process:
            assert process.device == torch.device(chosen)
    with pytest.raises(UserError, match="GPU number 2"), distributed.launch("cuda:2"):
        pass


def one_of_two(rank, port, folder):
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    numbers["MASTER_PORT"] = port
    os.environ.update({name: str(n) for name, n in numbers.items()}, MASTER_ADDR="localhost")
    with distributed.launch("cpu") as process:
        x = torch.tensor([1.0 + process.rank, 10.0])
        layer = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(layer.weight, 3.0 + rank)
        distributed.broadcast_module(layer)
        layer.weight.grad, layer.bias.grad = torch.full((1, 1), 2.0 * rank), torch.ones(1)
        distributed.average_gradients(list(layer.parameters()))
        found = {
            "process": [process.rank, process.world, process.is_main],
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


def worker(pipe):
    distributed._end_with_parent()
    pipe.send(os.getpid())
    time.sleep(60)


def torchrun(pipe):
    multiprocessing.get_context("fork").Process(target=worker, args=(pipe,)).start()
    time.sleep(0.2)
    os._exit(0)


def test_a_worker_ends_when_torchrun_is_gone():
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    context.Process(target=torchrun, args=(there,)).start()
    status = Path(f"/proc/{here.recv()}/stat")
    for _ in range(100):
        if not status.exists() or status.read_text().split()[2] == "Z":
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
            "process": [rank, 2, rank == 0],
            "total": [3.0, 20.0],
            "mean": [1.5, 10.0],
            "x": [1.0 + rank, 10.0],
            "weight": 3.0,
            "gradients": [1.0, 1.0],
            "agreed": "from 0",
            "gathered": None if rank else [[7.0, 7.0], [7.0, 7.0]],
            "still connected": False,
        }
