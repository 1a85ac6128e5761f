"""Benchmarks that a training evaluates beside its own held-out numbers."""

from functools import partial
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from torch.utils.data import Subset

from triptych.evaluation.sharing import evaluating, map_rows, shares_weights
from triptych.tasks.catalog import KINDS, make_task


class Benchmarks:
    """Tasks by their names, each with its data, of a YAML file:

    ```yaml
    icons: {task: classification, dataset: data/icons, limit: 500}
    flickr: {task: retrieval, dataset: data/flickr30k, split: test}
    ```

    What a task takes beside `task`, `dataset` and `limit` (rows, the first ones) are its options in `triptych evaluate`.

    Args:
        path (`Path`): Of the file.

    Raises:
        ValueError: If the file cannot be read, or its data do not fit.
    """

    def __init__(self, path: Path):
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"`eval_tasks` {path} cannot be read: {error}") from error
        if not isinstance(content, dict) or not content:
            raise ValueError(f"`eval_tasks` {path} must name tasks, as in `icons: {{task: ..., dataset: ...}}`.")
        self.tasks: dict[str, tuple[str, Any, Any]] = {}
        for name, entry in content.items():
            if not isinstance(entry, dict) or not {"task", "dataset"} <= entry.keys():
                raise ValueError(f"`eval_tasks` {path}: {name} needs `task` and `dataset`, got {entry!r}.")
            options = {key: value for key, value in entry.items() if key not in ("task", "dataset", "limit")}
            limit = entry.get("limit")
            if limit is not None and not (isinstance(limit, int) and limit > 0):
                raise ValueError(f"`eval_tasks` {path}: `limit` of {name} must be a number of rows, got {limit!r}.")
            try:
                task = make_task(entry["task"], str(entry["dataset"]), options)
            except (OSError, ValueError) as error:
                raise ValueError(f"`eval_tasks` {path}, {name}: {error}") from error
            count = len(task.rows)  # type: ignore[arg-type]
            self.tasks[str(name)] = entry["task"], task, range(min(limit or count, count))

    def check(self, model: Any, processor: Any, accelerator: Accelerator) -> None:
        """See that the model can do all of them, before a training begins.

        Raises:
            ValueError: If it cannot, or processes share its weights out.
        """
        if shares_weights(accelerator):
            raise ValueError("`eval_tasks` are not for weights that processes share out (FSDP, DeepSpeed ZeRO-3).")
        for name, (kind, _, _) in self.tasks.items():
            try:
                KINDS[kind].adapt(model, processor)
            except ValueError as error:
                raise ValueError(f"`eval_tasks`, {name}: {error}") from error

    def evaluate(self, model: Any, processor: Any, accelerator: Accelerator, batch_size: int) -> dict[str, float]:
        """Numbers of all tasks, `<name>_<number>`; processes share the rows.

        Args:
            model: As it is trained.
            processor: Of the model.
            accelerator, batch_size: As of [`map_rows`].
        """
        found: dict[str, float] = {}
        model = accelerator.unwrap_model(model)
        for name, (kind, task, chosen) in self.tasks.items():
            with evaluating(model), accelerator.autocast():
                do = partial(task.predict, KINDS[kind].adapt(model, processor))
                samples = map_rows(do, Subset(task.rows, chosen), accelerator, batch_size, description=name)
            numbers, _ = task.score(samples)
            found |= {f"{name}_{key}": value for key, value in numbers.items() if isinstance(value, float)}
        return found


__all__ = ["Benchmarks"]
