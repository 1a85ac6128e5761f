"""Plots and the page of a study."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from triptych.evaluation.comparisons import METRICS, Difference, latex, markdown
from triptych.visual_words import data_url, write_page


def plot_curves(axes: Axes, logs: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], name: str) -> None:
    """A held-out number during training: the mean over seeds of every variant, and a band from the lowest to the highest.

    Args:
        axes: To draw on.
        logs (`Mapping`): Training logs of every variant, one per seed.
        name (`str`): Of a number in them, e.g. `"eval_contrastive_loss"`.
    """
    for variant, runs in logs.items():
        steps = [row["step"] for row in runs[0] if name in row]
        values = np.array([[row[name] for row in run if name in row] for run in runs])  # (seeds, evaluations)
        (line,) = axes.plot(steps, values.mean(axis=0), "o-", markersize=3, label=variant)
        axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.2)
    axes.set(xlabel="optimiser step", title=name.removeprefix("eval_").replace("_", " ") + ", held out")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)


def plot_pairs(
    axes: Axes, first: Sequence[float], second: Sequence[float], names: tuple[str, str], title: str
) -> None:
    """A number of two variants, the runs of a seed joined by a line."""
    for values in zip(second, first, strict=True):
        axes.plot([0, 1], values, "o-", color="tab:grey", alpha=0.7)
    axes.plot([0, 1], [np.mean(second), np.mean(first)], "_-", color="black", linewidth=2, markersize=18)
    axes.set(xticks=[0, 1], xlim=(-0.4, 1.4), title=title)
    axes.set_xticklabels([names[1], names[0]], fontsize="x-small")
    axes.grid(alpha=0.3, axis="y")


def plot_differences(axes: Axes, differences: Mapping[str, Difference], title: str) -> None:
    """Relative differences with their intervals and the seeds behind them, one below the other."""
    for row, difference in enumerate(differences.values()):
        low, high = difference.interval
        axes.plot([100 * low, 100 * high], [row, row], color="tab:blue", linewidth=3, alpha=0.5)
        axes.plot(100 * difference.by_seed, np.full(len(difference.by_seed), row), "|", color="black", markersize=8)
        axes.plot(100 * difference.mean, row, "o", color="tab:blue")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(yticks=range(len(differences)), xlabel="difference in %", title=title)
    axes.set_yticklabels([METRICS[name].title if name in METRICS else name for name in differences])
    axes.invert_yaxis()
    axes.grid(alpha=0.3, axis="x")


def plot_by_size(axes: Axes, differences: Mapping[int, Difference], title: str) -> None:
    """A relative difference over the number of training pairs, with its interval and the seeds behind it."""
    sizes = sorted(differences)
    intervals = np.array([differences[size].interval for size in sizes])
    axes.plot(sizes, [100 * differences[size].mean for size in sizes], "o-")
    axes.fill_between(sizes, *(100 * intervals.T), alpha=0.2)
    for size in sizes:
        axes.plot([size] * len(differences[size].by_seed), 100 * differences[size].by_seed, "_", color="black")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xscale="log", xticks=sizes, xlabel="training pairs", ylabel="difference in %", title=title)
    axes.set_xticklabels([f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def write_report(path: Path, title: str, sections: Sequence[tuple[str, str, Sequence[pd.DataFrame | Figure]]]) -> None:
    """One page with everything in it.

    Args:
        path (`Path`): Of the page.
        title (`str`): Of the study.
        sections (`Sequence`): Heading, a sentence or two, tables and figures.
    """

    def part(each: pd.DataFrame | Figure) -> dict[str, Any]:
        if isinstance(each, Figure):
            return {"figure": data_url(partial(each.savefig, dpi=110))}
        return {"header": list(each.columns), "rows": each.to_numpy().tolist()}

    values = {
        "title": title,
        "sections": [(heading, text, [part(each) for each in parts]) for heading, text, parts in sections],
    }
    write_page(path, Path(__file__).with_suffix(".html.jinja"), values)


def write_tables(folder: Path, sections: Sequence[tuple[str, str, Sequence[pd.DataFrame | Figure]]]) -> str:
    """The tables of the sections of [`write_report`] as `tables.md` and `tables.tex`; returns the former."""
    texts: dict[str, list[str]] = {"md": [], "tex": []}
    for heading, text, parts in sections:
        texts["md"] += [f"## {heading}", text]
        texts["tex"].append(f"% {heading}: {text}")
        for each in parts:
            if isinstance(each, pd.DataFrame):
                texts["md"].append(markdown(each))
                texts["tex"].append(latex(each))
    for suffix, lines in texts.items():
        (folder / f"tables.{suffix}").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return "\n\n".join(texts["md"])


__all__ = ["plot_by_size", "plot_curves", "plot_differences", "plot_pairs", "write_report", "write_tables"]
