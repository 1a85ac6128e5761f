"""Recall@k of retrieval with any number of right candidates per query, such as the five captions of an image."""

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """\
Recall@k as image-text retrieval reports it (Karpathy & Fei-Fei 2015, arXiv 1412.2306): the share of queries with a right candidate
among the k of highest score, and the median rank of the first right one. Equal scores count against the right candidate, so a constant
score is not a perfect one.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list[list[float]]`): Scores of all candidates, one row per query.
    references (`list[list[int]]`): Indices of the right candidates of every query, at least one.
    ks (`list[int]`): Numbers of candidates to look at.

Returns:
    `recall@k` for every k, between 0 and 1, and `median_rank`, from 1.
"""

_CITATION = """@inproceedings{karpathy2015, title={Deep Visual-Semantic Alignments for Generating Image Descriptions},
booktitle={CVPR}, year={2015}, author={Karpathy, Andrej and Fei-Fei, Li}}"""


class RetrievalRecall(evaluate.Metric):
    """See the description of the module."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Sequence(datasets.Value("int64")),
                }
            ),
            reference_urls=["https://arxiv.org/abs/1412.2306"],
        )

    def _compute(
        self, predictions: list[list[float]], references: list[list[int]], ks: tuple[int, ...] = (1, 5, 10)
    ) -> dict[str, float]:
        ranks = []
        for query, (row, right) in enumerate(zip(predictions, references, strict=True)):
            scores = np.asarray(row)
            if not len(right) or min(right) < 0 or max(right) >= len(scores):
                raise ValueError(
                    f"`references` of query {query} must name at least one of its {len(scores)} candidates, got {list(right)}."
                )
            best = scores[right].max()
            # NaN is below nothing, so a query with a NaN for an answer comes last.
            others = np.delete(scores, right)
            ranks.append(len(others) - int((others < best).sum()))
        found = np.array(ranks)
        results = {f"recall@{k}": float((found < k).mean()) for k in ks}
        return results | {"median_rank": float(np.median(found)) + 1}
