"""BLEU-1 to BLEU-4 and CIDEr-D of captions against several true ones, as the COCO caption evaluation computes them.

BLEU (Papineni et al. 2002) of the whole corpus, with the length of the closest true caption, and CIDEr-D (Vedantam et al. 2015,
arXiv 1411.5726, section 6): the mean over n = 1..4 of the cosine between TF-IDF vectors of n-grams, clipped, with a Gaussian
penalty for lengths that differ (sigma = 6), times 10. Document frequencies come from the true captions of this call, one document per
image: compare CIDEr-D of the same images only.

Captions become lower-case words without punctuation; every emoji is a word. The COCO script uses Stanford's PTB tokenizer (Java), which
splits a few words more ("don't" into "do n't"); give it tokenised texts to reproduce its numbers exactly. Chinese, Japanese and Thai
have no spaces: a whole phrase counts as one word, unless the texts come with spaces between words. CIDEr-D needs several images:
n-grams that all of them share weigh nothing, so of one image it is 0.
"""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from triptych.evaluation.described_metric import DescribedMetric


def words_of(caption: str) -> list[str]:
    """Lower-case words with their vowel signs and accents; marks inside a word ("t-shirt", "man's") stay. A symbol is a word."""
    text = unicodedata.normalize("NFC", caption).lower().replace("\u2019", "'")
    kinds = {"L": "w", "N": "w", "M": "m", "So": "s"}  # letters and numbers, what belongs to the one before, emoji
    joiners = {"_": "w", "-": "-", "'": "'", "\u200c": "m", "\u200d": "m"}
    categories = [(sign, unicodedata.category(sign)) for sign in text]
    shape = "".join(joiners.get(sign) or kinds.get(kind) or kinds.get(kind[0], " ") for sign, kind in categories)
    return [text[slice(*word.span())] for word in re.finditer(r"w[wm]*(?:[-']w[wm]*)*|s", shape)]


def score_texts(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[str, float], np.ndarray]:
    """As [`CaptionScores`], and CIDEr-D of every image.

    Raises:
        ImportError: If `pycocoevalcap` is not installed.
        ValueError: If an image has no true caption, or none of them holds a word.
    """
    try:
        from pycocoevalcap.bleu.bleu_scorer import BleuScorer
        from pycocoevalcap.cider.cider_scorer import CiderScorer
    except ImportError as error:
        raise ImportError("BLEU and CIDEr-D need pycocoevalcap: pip install 'triptych[train]'.") from error
    for index, true in enumerate(references):
        if not true:
            raise ValueError(f"`references` holds no caption for image {index}.")
    if not any(words_of(text) for true in references for text in true):
        raise ValueError(f"`references` hold no word (of {len(references)} images); expected captions.")
    bleu, cider = BleuScorer(n=4), CiderScorer()
    for prediction, true in zip(predictions, references, strict=True):
        pair = " ".join(words_of(prediction)), [" ".join(words_of(text)) for text in true]
        bleu += pair
        cider += pair
    precisions, (mean, by_image) = bleu.compute_score(option="closest")[0], cider.compute_score()
    scores = {f"bleu_{order}": score for order, score in enumerate(precisions, start=1)}
    return {**scores, "cider_d": float(mean)}, np.asarray(by_image)


class CaptionScores(DescribedMetric):
    """See the module."""

    source = "https://github.com/tylin/coco-caption"

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        """
        Args:
            predictions (`list[str]`): One caption per image.
            references (`list[list[str]]`): The true captions of every image, at least one.

        Returns:
            `bleu_1` to `bleu_4`, between 0 and 1, and `cider_d`, between 0 and 10.
        """
        return score_texts(predictions, references)[0]
