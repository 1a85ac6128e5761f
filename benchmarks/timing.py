"""Times to compare within one run; alone they say more about the moment than about the code."""

import time
from collections.abc import Callable


def median_seconds(functions: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median time of each function, taken in turns so that a busy moment meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()  # warm-up
    for _ in range(repeats):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - started)
    return {name: sorted(values)[len(values) // 2] for name, values in times.items()}
