"""Recall@k of retrieval with any number of right candidates per query, such as the five captions of an image.

Recall@k as image-text retrieval reports it (Karpathy & Fei-Fei 2015, arXiv 1412.2306): the share of queries with a right candidate
among the k of highest score, and the median rank of the first right one. Equal scores count against the right candidate, so a constant
score is not a perfect one.
"""

from collections.abc import Sequence
from typing import ClassVar

import datasets
import numpy as np

from triptych.evaluation.described_metric import DescribedMetric


def ranks_of_first(scores: Sequence[np.ndarray] | np.ndarray, right: Sequence[Sequence[int]]) -> np.ndarray:
    """Rank (0 = first) of the first right candidate of every query; equal scores count against it, and NaN comes last.

    Args:
        scores (`Sequence[np.ndarray]` or `np.ndarray`): Of all candidates of every query; the highest is the best.
        right (`Sequence[Sequence[int]]`): Indices of the right candidates of every query.

    Returns:
        `np.ndarray` of shape `(num_queries,)`.

    Raises:
        ValueError: If a query has no right candidate among those that there are.
    """
    ranks = []
    for query, (row, answers) in enumerate(zip(scores, right, strict=True)):
        if not len(answers) or min(answers) < 0 or max(answers) >= len(row):
            raise ValueError(
                f"`references` of query {query} must name at least one of its {len(row)} candidates, got {list(answers)}."
            )
        others = np.delete(row, answers)
        ranks.append(len(others) - int((others < row[answers].max()).sum()))  # NaN is below nothing
    return np.array(ranks)


def recalls(ranks: np.ndarray, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """`recall@k` for every k, and `median_rank`, from 1, of ranks that begin with 0."""
    return {f"recall@{k}": float((ranks < k).mean()) for k in ks} | {"median_rank": float(np.median(ranks)) + 1}


class RetrievalRecall(DescribedMetric):
    """See the module."""

    columns: ClassVar = {
        "predictions": datasets.Sequence(datasets.Value("float32")),
        "references": datasets.Sequence(datasets.Value("int64")),
    }
    source = "https://arxiv.org/abs/1412.2306"

    def _compute(
        self, predictions: list[list[float]], references: list[list[int]], ks: tuple[int, ...] = (1, 5, 10)
    ) -> dict[str, float]:
        """
        Args:
            predictions (`list[list[float]]`): Scores of all candidates, one row per query.
            references (`list[list[int]]`): Indices of the right candidates of every query, at least one.
            ks (`list[int]`): Numbers of candidates to look at.

        Returns:
            `recall@k` for every k, between 0 and 1, and `median_rank`, from 1.
        """
        return recalls(ranks_of_first([np.asarray(row) for row in predictions], references), ks)
