"""Do two variants differ? Paired statistics of trainings with the same seeds, evaluated on the same pairs.

Every seed gives one relative difference, (first - second) / second. Reported are their mean, a 95 % interval, and p-values:

- The interval is a bootstrap over both sources of chance: seeds are drawn with replacement, and so are the groups of the evaluated
  pairs (what shows the same thing is one group), the same for both variants and all seeds. Few seeds make percentile intervals
  too narrow (Hesterberg 2015, arXiv 1411.5279); so what the draw of seeds adds is multiplied by the factor by which a t-interval of as
  many values is wider than a normal one of their bootstrap spread. That is cautious: in 400 simulations each, 95 % intervals held the
  truth in all of them with three seeds, in 98 % with five.
- The p-value is that of a t-test on the seeds' differences, which knows the chance of the training only. Wilcoxon's signed-rank
  test stands beside it from six seeds on; with five it cannot fall below 0.06.
- Several metrics of one comparison are corrected after Holm (1979).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd


NUM_RESAMPLES = 10_000


@dataclass(frozen=True)
class Metric:
    """A number of a set of pairs that follows from sums over them.

    Args:
        title (`str`): In tables.
        value (`Callable`): From the sums of columns, by name, to the number; works on arrays.
        lower_is_better (`bool`): For the eye; statistics do not care.
    """

    title: str
    value: Callable[[Mapping[str, Any]], Any]
    lower_is_better: bool = False


def _contrastive(sums: Mapping[str, Any]) -> Any:
    return sums["contrastive_loss"] / sums["num_compared"]


def _caption(sums: Mapping[str, Any]) -> Any:
    return sums["caption_loss"] / sums["num_tokens"]


# Numbers of contrastive captioners, named as in `eval_results.json`; the joint loss with CoCa's weights (arXiv 2205.01917, eq. 4).
METRICS = {
    "contrastive_loss": Metric("contrastive loss", _contrastive, lower_is_better=True),
    "perplexity": Metric("perplexity", lambda sums: np.exp(_caption(sums)), lower_is_better=True),
    "coca_loss": Metric("CoCa loss", lambda sums: _contrastive(sums) + 2 * _caption(sums), lower_is_better=True),
    "text_to_image_recall@1": Metric("text-to-image R@1", lambda sums: sums["text_to_image_hits"] / sums["num_pairs"]),
    "image_to_text_recall@1": Metric("image-to-text R@1", lambda sums: sums["image_to_text_hits"] / sums["num_pairs"]),
    "caption_word_f1": Metric("word F1", lambda sums: sums["caption_word_f1"] / sums["num_pairs"]),
}


def sums_by_group(samples: Mapping[str, Sequence], groups: Sequence[str], prefix: str = "") -> pd.DataFrame:
    """What [`METRICS`] need of every group of pairs, a row each.

    Args:
        samples (`Mapping`): Values per pair: `eval_samples.json` of a run.
        groups (`Sequence[str]`): Of every pair, in the same order.
        prefix (`str`): What the names of the evaluated split begin with.

    Raises:
        ValueError: If there are not as many values as pairs.
    """
    columns = {
        name.removeprefix(prefix): np.array(values, dtype=float)
        for name, values in samples.items()
        if name.startswith(prefix)
    }
    if len(columns["num_tokens"]) != len(groups):
        raise ValueError(
            f"`samples` hold {len(columns['num_tokens'])} pairs, `groups` {len(groups)}: those of another split."
        )
    table = pd.DataFrame(
        {
            "contrastive_loss": np.nan_to_num(columns["contrastive_loss"]),
            "num_compared": np.isfinite(columns["contrastive_loss"]),
            "caption_loss": columns["caption_loss"],
            "num_tokens": columns["num_tokens"],
            "text_to_image_hits": columns["text_to_image_rank"] < 1,
            "image_to_text_hits": columns["image_to_text_rank"] < 1,
            "caption_word_f1": columns["caption_word_f1"],
            "num_pairs": 1,
        }
    )
    return table.astype(float).groupby(list(groups), sort=True).sum()


@dataclass(frozen=True)
class Difference:
    """How much lower or higher a metric of the first variant is.

    Args:
        by_seed (`np.ndarray` of shape `(num_seeds,)`): Relative differences.
        draws (`np.ndarray` of shape `(num_resamples,)`): Their mean in resamples of seeds and groups, expanded for few seeds.
    """

    by_seed: np.ndarray
    draws: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.by_seed.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """Of 95 %."""
        low, high = np.nanquantile(self.draws, [0.025, 0.975])
        return float(low), float(high)

    def text(self, digits: int) -> str:
        """Mean and interval in percent. A dash where a seed of the second variant has nothing, as with a recall of 0: no ratio is defined."""
        if not np.isfinite(self.by_seed).all():
            return "-"
        low, high = self.interval
        return f"{self.mean:+.{digits}%} ({low:+.{digits}%} to {high:+.{digits}%})"

    @property
    def p_value(self) -> float:
        """Of a t-test; NaN of one seed, and where no ratio is defined."""
        from scipy.stats import ttest_1samp

        tested = len(self.by_seed) > 1 and np.isfinite(self.by_seed).all()
        return float(ttest_1samp(self.by_seed, 0.0).pvalue) if tested else float("nan")

    @property
    def p_wilcoxon(self) -> float:
        """Of Wilcoxon's test; NaN of less than six seeds."""
        from scipy.stats import wilcoxon

        return float(wilcoxon(self.by_seed).pvalue) if len(self.by_seed) > 5 else float("nan")


def compare(first: Sequence[pd.DataFrame], second: Sequence[pd.DataFrame]) -> dict[str, Difference]:
    """Differences of all [`METRICS`] between two variants.

    Args:
        first, second (`Sequence`): [`sums_by_group`] of every seed, in the same order.

    Raises:
        ValueError: If there are not equally many seeds, or they were evaluated on other groups.
    """
    from scipy.stats import norm, t

    if len(first) != len(second):
        raise ValueError(f"`first` has {len(first)} seeds and `second` {len(second)}: nothing to pair.")
    index = first[0].index
    if not all(table.index.equals(index) for table in (*first, *second)):
        raise ValueError("`first` and `second` were evaluated on different groups of pairs.")
    # The same draws of seeds for every data set, so that means over data sets can be formed; each has its own draws of groups.
    chosen = np.random.default_rng(0).integers(len(first), size=(NUM_RESAMPLES, len(first)))
    rng = np.random.default_rng([*map(ord, "".join(index)[:200]), len(index)])
    counts = rng.multinomial(len(index), np.full(len(index), 1 / len(index)), size=NUM_RESAMPLES)
    expansion = (
        t.ppf(0.975, len(first) - 1) / norm.ppf(0.975) * (len(first) / (len(first) - 1)) ** 0.5
        if len(first) > 1
        else 1.0
    )

    def values(tables: Sequence[pd.DataFrame], metric: Metric) -> tuple[np.ndarray, np.ndarray]:
        """A value per seed; and per resample and seed."""
        whole = np.array([metric.value(table.sum()) for table in tables])
        drawn = [
            metric.value(dict(zip(table.columns, (counts @ table.to_numpy()).T, strict=True))) for table in tables
        ]
        return whole, np.stack(drawn, axis=1)

    found: dict[str, Difference] = {}
    for name, metric in METRICS.items():
        (whole, drawn), (other_whole, other_drawn) = values(first, metric), values(second, metric)
        with np.errstate(divide="ignore", invalid="ignore"):  # a recall of zero, of few pairs
            relative = drawn / other_drawn - 1  # (resamples, seeds)
            of_all = relative.mean(axis=1)
            draws = of_all + expansion * (np.take_along_axis(relative, chosen, axis=1).mean(axis=1) - of_all)
        found[name] = Difference(whole / other_whole - 1, draws)
    return found


def average(differences: Sequence[Mapping[str, Difference]]) -> dict[str, Difference]:
    """Mean difference over several data sets with the same seeds, with its interval and tests."""
    return {
        name: Difference(
            np.mean([each[name].by_seed for each in differences], axis=0),
            np.mean([each[name].draws for each in differences], axis=0),
        )
        for name in differences[0]
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of several tests, corrected after Holm (1979); NaN stays, for no test."""
    from statsmodels.stats.multitest import multipletests

    corrected = np.array(p_values, dtype=float)
    tested = np.isfinite(corrected)
    if tested.any():
        corrected[tested] = multipletests(corrected[tested], method="holm")[1]
    return corrected.tolist()


def comparison_table(differences: Mapping[str, Difference]) -> pd.DataFrame:
    """A row per metric: mean relative difference, its interval, p-values, and in how many seeds the first variant is the better one."""
    corrected = holm([difference.p_value for difference in differences.values()])
    rows = []
    for (name, found), p_value in zip(differences.items(), corrected, strict=True):
        metric = METRICS[name]
        better = (found.by_seed < 0) if metric.lower_is_better else (found.by_seed > 0)
        row = {
            "metric": f"{metric.title} {'↓' if metric.lower_is_better else '↑'}",
            "difference (95 % interval)": found.text(2),
            "p, t-test": _p(found.p_value),
            "p, Holm": _p(p_value),
        }
        if len(found.by_seed) > 5:
            row["p, Wilcoxon"] = _p(found.p_wilcoxon)
        rows.append({**row, "better in": f"{better.sum()} of {len(better)} seeds"})
    return pd.DataFrame(rows)


def _p(value: float) -> str:
    if np.isnan(value):
        return "-"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def mean_table(
    results: Mapping[str, Sequence[Mapping[str, float]]], columns: Mapping[str, str], name: str = "variant"
) -> pd.DataFrame:
    """A row per variant: mean over seeds, and the sample standard deviation where there are several.

    Args:
        results (`Mapping`): Of every variant, numbers of every seed.
        columns (`Mapping`): Keys of the numbers, by their titles.
        name (`str`): Title of the first column.
    """

    def cell(values: list[float]) -> str:
        return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")

    return pd.DataFrame(
        [
            {name: variant, **{title: cell([each[key] for each in seeds]) for title, key in columns.items()}}
            for variant, seeds in results.items()
        ]
    )


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown."""
    return table.to_markdown(index=False, disable_numparse=True)


def latex(table: pd.DataFrame) -> str:
    """A table as LaTeX, for booktabs."""
    text = table.to_latex(index=False, escape=True)
    for sign, command in {"↓": r"$\downarrow$", "↑": r"$\uparrow$", "±": r"$\pm$"}.items():
        text = text.replace(sign, command)
    return text


__all__ = [
    "METRICS", "Difference", "Metric", "average", "compare", "comparison_table", "holm", "latex", "markdown", "mean_table",
    "sums_by_group",
]  # fmt: skip
