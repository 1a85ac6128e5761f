"""Processes for tests: a function in several that know one another, and a training script that is killed on its way."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing as mp


def _work(function: Callable, rank: int, world_size: int, port: int, queue, arguments: tuple) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size
    )
    result = function(rank, world_size, *arguments)
    if rank == 0:
        queue.put(result)
        queue.join()
    torch.distributed.barrier()
    # Everything is done. torch's communication threads now and then abort an interpreter that goes down beside them.
    os._exit(0)


def run_in_processes(function: Callable, world_size: int, *arguments: Any) -> Any:
    """What `function(rank, world_size, *arguments)` returns on rank 0; NumPy arrays, not tensors."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.JoinableQueue()
    processes = [
        context.Process(target=_work, args=(function, rank, world_size, port, queue, arguments))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + 300
    while True:
        try:
            result = queue.get(timeout=1)
            break
        except Empty:
            ended = [process.exitcode for process in processes]
            assert not any(ended), f"A process ended early, with {ended}; its traceback is above."
            assert time.monotonic() < deadline
    queue.task_done()
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    return result


def logged_losses(output_dir: Path) -> list[float]:
    """Of the steps in a training log; complete lines only, for the run may be writing."""
    path = output_dir / "training_log.jsonl"
    text = path.read_text() if path.exists() else ""
    rows = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def kill_after(command: list, output_dir: Path, num_steps: int, environment: dict[str, str]) -> None:
    """Start a training script that writes to `output_dir`, and kill it once it has logged that many steps."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while len(logged_losses(output_dir)) < num_steps:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
