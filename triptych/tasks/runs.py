"""A model at a task: chunk after chunk, each written down, so that a stopped evaluation goes on where it was."""

import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from accelerate import Accelerator
from torch.utils.data import Dataset, Subset
from tqdm.auto import tqdm

from triptych.evaluation.sharing import map_rows
from triptych.files import write_whole


_BATCHES_PER_CHUNK = 16


class Task(Protocol):
    """What is evaluated: rows, what a model makes of them, and what is counted."""

    name: str

    @property
    def rows(self) -> Dataset:
        """What is evaluated, by index."""

    def predict(self, model: Any, rows: list[Any]) -> list[dict[str, Any]]:
        """A sample of every row, as JSON."""

    def score(self, samples: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Numbers of all samples; and of those that are means, the value of every sample."""


def _written(path: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The samples that an earlier, stopped evaluation wrote, without a line that it did not end.

    Raises:
        ValueError: If it was another evaluation.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    first, *lines = text[: text.rfind("\n") + 1].splitlines() or [json.dumps(facts)]
    known = json.loads(first)
    for key in sorted({*known, *facts}):
        if known.get(key) != facts.get(key):
            raise ValueError(
                f"`output` {path.parent} holds an evaluation with `{key}` {known.get(key)!r}, now it is {facts.get(key)!r}."
            )
    return [json.loads(line) for line in lines]


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def run_task(
    task: Task,
    model: Any,
    facts: dict[str, Any],
    output: Path,
    accelerator: Accelerator,
    batch_size: int = 32,
    num_workers: int = 0,
    limit: int | None = None,
) -> dict[str, Any]:
    """Evaluate, or go on with an evaluation.

    Writes `samples.jsonl`, line by line, then `values.json` (of numbers that are means, the value of every sample) and `results.json`.

    Args:
        task ([`Task`]): What to do.
        model: What `task.predict` takes.
        facts (`dict`): What the results depend on: model, data and options. A folder is gone on with only by the same ones.
        output (`Path`): Folder of the results.
        accelerator (`Accelerator`): Its processes share the work.
        batch_size (`int`): Rows at a time.
        num_workers (`int`): Processes that read rows.
        limit (`int`, *optional*): Only so many rows, the first ones.

    Returns:
        `dict`: What `results.json` holds: the facts, `metrics` and `num_samples`.

    Raises:
        ValueError: If the folder holds another evaluation, or there are no rows.
    """
    facts = {"task": task.name, **facts, "limit": limit}
    num_rows = len(task.rows) if limit is None else min(limit, len(task.rows))  # type: ignore[arg-type]
    if not num_rows:
        raise ValueError("There are no rows to evaluate.")
    path = output / "samples.jsonl"
    samples = _written(path, facts)
    accelerator.wait_for_everyone()  # all have read before one writes
    if accelerator.is_main_process:
        write_whole(path, _lines([facts, *samples]))
    chunk = batch_size * accelerator.num_processes * _BATCHES_PER_CHUNK
    with tqdm(
        total=num_rows, initial=len(samples), desc=task.name, unit="row", disable=not accelerator.is_main_process
    ) as progress:
        for start in range(len(samples), num_rows, chunk):
            rows = Subset(task.rows, range(start, min(start + chunk, num_rows)))
            found = map_rows(lambda rows: task.predict(model, rows), rows, accelerator, batch_size, num_workers)
            if accelerator.is_main_process:
                with path.open("a", encoding="utf-8") as file:
                    file.write(_lines(found))
            samples += found
            progress.update(len(found))
    numbers, values = task.score(samples)
    # No JSON knows NaN: what there is nothing of, such as small objects, is null.
    metrics = {name: None if value != value else value for name, value in numbers.items()}
    results = {**facts, "metrics": metrics, "num_samples": len(samples)}
    if accelerator.is_main_process:
        write_whole(output / "values.json", json.dumps({name: each.tolist() for name, each in values.items()}) + "\n")
        write_whole(output / "results.json", json.dumps(results, indent=2) + "\n")
    return results


__all__ = ["Task", "run_task"]
