"""Times to compare within one run; alone they say more about the moment than about the code."""

import time
from collections.abc import Callable
from typing import Any

import torch


def median_seconds(functions: dict[str, Callable[[], Any]], repeats: int, device: str = "cpu") -> dict[str, float]:
    """Median time of each function, taken in turns so that a busy moment meets all of them."""
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
    return {name: sorted(values)[len(values) // 2] for name, values in times.items()}


def peak_gib(function: Callable[[], Any]) -> float:
    """Most memory of the CUDA device that a call holds beside what is there already."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**30
