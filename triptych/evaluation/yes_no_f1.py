"""Accuracy, precision, recall and F1 of yes/no answers, as the POPE benchmark of object hallucination reads them.

POPE (Li et al. 2023, arXiv 2305.10355): free answers count as "no" if their first sentence holds the word "no" or "not", as "yes"
otherwise; "yes" is the positive class.
"""

import re
from typing import ClassVar

import datasets

from triptych.evaluation.described_metric import DescribedMetric


def means_yes(answer: str) -> bool:
    """How POPE reads an answer."""
    words = re.findall(r"\w+", answer.lower().partition(".")[0])
    return "no" not in words and "not" not in words


class YesNoF1(DescribedMetric):
    """See the module."""

    columns: ClassVar = {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
    source = "https://github.com/AoiDragon/POPE"

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        """
        Args:
            predictions (`list[str]`): Answers in free words.
            references (`list[str]`): "yes" or "no".

        Returns:
            `accuracy`, `precision`, `recall`, `f1` and `yes_ratio` (the share of answers read as "yes"), between 0 and 1.
        """
        wanted = []
        for index, reference in enumerate(references):
            if reference.strip().lower() not in ("yes", "no"):
                raise ValueError(f'`references` must be "yes" or "no", got {reference!r} at {index}.')
            wanted.append(reference.strip().lower() == "yes")
        found = [means_yes(answer) for answer in predictions]
        hits = sum(a and b for a, b in zip(found, wanted, strict=True))
        precision, recall = hits / max(sum(found), 1), hits / max(sum(wanted), 1)
        return {
            "accuracy": sum(a == b for a, b in zip(found, wanted, strict=True)) / len(found),
            "precision": precision,
            "recall": recall,
            "f1": 2 * precision * recall / max(precision + recall, 1e-12),
            "yes_ratio": sum(found) / len(found),
        }
