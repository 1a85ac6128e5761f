"""Several evaluations side by side: tables with intervals, paired differences, and a plot."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from triptych.study_report import write_report, write_tables


NUM_RESAMPLES = 2000
_SETTING = ("task", "dataset", "split", "limit")


class Evaluation:
    """What [`run_task`] left in a folder.

    Args:
        folder (`Path`): With `results.json` and `values.json`.

    Raises:
        ValueError: If there are none.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            self.results: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
            values = json.loads((folder / "values.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder} holds no finished evaluation: {error}") from error
        self.values = {name: np.array(each, dtype=float) for name, each in values.items()}
        self.metrics = {name: value for name, value in self.results["metrics"].items() if isinstance(value, float)}

    @property
    def setting(self) -> tuple:
        """What must be equal for numbers to be compared."""
        return tuple(str(self.results.get(name)) for name in _SETTING)

    def interval(self, name: str) -> tuple[float, float] | None:
        """Of 95 %, of a number that is a mean."""
        return _interval(self.values[name]) if name in self.values else None


def _interval(values: np.ndarray) -> tuple[float, float]:
    """A percentile bootstrap over samples."""
    from scipy.stats import bootstrap

    if len(values) < 2 or np.ptp(values) == 0:
        return float(values.mean()), float(values.mean())
    drawn = bootstrap((values,), np.mean, n_resamples=NUM_RESAMPLES, method="percentile", rng=0, batch=100)
    low, high = drawn.confidence_interval
    return float(low), float(high)


def names_of(evaluations: Sequence[Evaluation]) -> list[str]:
    """The models, or the folders where a model was evaluated twice."""
    models = [Path(evaluation.results["model"]).name for evaluation in evaluations]
    return [
        model if models.count(model) == 1 else str(evaluation.folder)
        for model, evaluation in zip(models, evaluations, strict=True)
    ]


def number_table(evaluations: Sequence[Evaluation]) -> pd.DataFrame:
    """A row per model, a column per number that all of them have, with its interval where it is a mean over samples."""

    def cell(evaluation: Evaluation, name: str) -> str:
        interval = evaluation.interval(name)
        text = f"{evaluation.metrics[name]:.4f}"
        return text if interval is None else f"{text} ({interval[0]:.4f} to {interval[1]:.4f})"

    shared = [name for name in evaluations[0].metrics if all(name in each.metrics for each in evaluations)]
    return pd.DataFrame(
        [
            {
                "model": model,
                **{name: cell(evaluation, name) for name in shared},
                "rows": evaluation.results["num_samples"],
            }
            for model, evaluation in zip(names_of(evaluations), evaluations, strict=True)
        ]
    )


def difference_table(evaluations: Sequence[Evaluation]) -> pd.DataFrame:
    """Differences of all models to the first, sample by sample, with intervals."""
    first, names = evaluations[0], names_of(evaluations)
    rows = []
    for model, evaluation in zip(names[1:], evaluations[1:], strict=True):
        row = {f"minus {names[0]}": model}
        for name in first.values:
            if len(first.values[name]) != len(evaluation.values.get(name, ())):
                raise ValueError(
                    f"{evaluation.folder} has {len(evaluation.values.get(name, ()))} values of `{name}`, {first.folder} has "
                    f"{len(first.values[name])}: not the same samples."
                )
            difference = evaluation.values[name] - first.values[name]
            low, high = _interval(difference)
            row[name] = f"{difference.mean():+.4f} ({low:+.4f} to {high:+.4f})"
        rows.append(row)
    return pd.DataFrame(rows)


def bars(evaluations: Sequence[Evaluation], title: str) -> Figure:
    """Bars of the numbers that are means over samples, with their intervals; of all others where there is none."""
    names = list(evaluations[0].values) or list(evaluations[0].metrics)[:6]
    figure = Figure(figsize=(1.5 + 2.6 * len(names), 1.4 + 0.4 * len(evaluations)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(names), sharey=True))
    for each, name in zip(axes, names, strict=True):
        for row, evaluation in enumerate(evaluations):
            value, interval = evaluation.metrics[name], evaluation.interval(name)
            error = None if interval is None else [[max(0, value - interval[0])], [max(0, interval[1] - value)]]
            each.barh(row, value, xerr=error, color=f"C{row}", capsize=3)
        each.set(title=name, yticks=range(len(evaluations)))
        each.set_yticklabels(names_of(evaluations))
        each.invert_yaxis()
        each.grid(alpha=0.3, axis="x")
    figure.suptitle(title)
    return figure


def compare_evaluations(folders: Sequence[Path], output: Path) -> str:
    """Write `report.html`, `tables.md`, `tables.tex` and a PNG for every benchmark.

    Args:
        folders (`Sequence[Path]`): Of evaluations; those of one benchmark are compared with the first of them.
        output (`Path`): Folder of the report.

    Returns:
        `str`: The tables as Markdown.

    Raises:
        ValueError: If a folder holds no finished evaluation, or samples differ.
    """
    groups: dict[tuple, list[Evaluation]] = {}
    for folder in folders:
        evaluation = Evaluation(folder)
        groups.setdefault(evaluation.setting, []).append(evaluation)
    sections: list[Any] = []
    figures: dict[str, Figure] = {}
    for number, ((task, dataset, split, limit), evaluations) in enumerate(groups.items()):
        title = f"{task}: {dataset}, {'test' if split == 'None' else split}"
        title += "" if limit == "None" else f", the first {limit} rows"
        figure = bars(evaluations, title)
        figures[f"{number}-{task}.png"] = figure
        tables = [number_table(evaluations)]
        tables += [difference_table(evaluations)] if len(evaluations) > 1 and evaluations[0].values else []
        text = "Intervals of 95 %, by a bootstrap over samples, of numbers that are means over them."
        sections.append((title, text, [*tables, figure]))
    output.mkdir(parents=True, exist_ok=True)  # when all is compared
    for name, figure in figures.items():
        figure.savefig(output / name, dpi=110)
    write_report(output / "report.html", "Evaluations", sections)
    return write_tables(output, sections)


__all__ = ["Evaluation", "bars", "compare_evaluations", "difference_table", "number_table"]
