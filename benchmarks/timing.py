"""Times and memory to compare within one run; alone, times say more about the moment than about the code."""

import multiprocessing
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import torch


def seconds_in_turns(
    functions: dict[str, Callable[[], Any]], repeats: int, device: str = "cpu"
) -> dict[str, list[float]]:
    """Times of each function, taken in turns so that a busy moment meets all of them."""
    synchronize = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        for _ in range(3 if device == "cuda" else 1):  # warm-up; compiled graphs are recorded in several calls
            function()
    for _ in range(repeats):
        for name, function in functions.items():
            synchronize()
            started = time.perf_counter()
            function()
            synchronize()
            times[name].append(time.perf_counter() - started)
    return times


def median_seconds(functions: dict[str, Callable[[], Any]], repeats: int, device: str = "cpu") -> dict[str, float]:
    """Medians of [`seconds_in_turns`]."""
    return {name: median(times) for name, times in seconds_in_turns(functions, repeats, device).items()}


def peak_gib(function: Callable[[], Any]) -> float:
    """Most memory of the CUDA device that a call holds beside what is there already."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def peak_mib() -> float:
    """Peak memory of this process (Linux). `ru_maxrss` would be the parent's where that was larger."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+)", status).group(1)) / 1024


def in_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns in a process of its own, whose memory nothing else has touched."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()
