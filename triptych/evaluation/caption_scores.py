"""BLEU-1 to BLEU-4 and CIDEr-D of captions against several true ones, as the COCO caption evaluation computes them."""

import math
import re
from collections import Counter

import datasets
import evaluate


_DESCRIPTION = """\
BLEU (Papineni et al. 2002) of the whole corpus, with the length of the closest true caption, and CIDEr-D (Vedantam et al. 2015,
arXiv 1411.5726, section 6): the mean over n = 1..4 of the cosine between TF-IDF vectors of n-grams, clipped, with a Gaussian
penalty for lengths that differ (sigma = 6), times 10. Document frequencies come from the true captions of this call, one document per
image: compare CIDEr-D of the same images only.

Captions become lower-case words without punctuation. The COCO script uses Stanford's PTB tokenizer (Java), which splits a few
words more ("don't" into "do n't"); give it tokenised texts to reproduce its numbers exactly.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list[str]`): One caption per image.
    references (`list[list[str]]`): The true captions of every image, at least one.

Returns:
    `bleu_1` to `bleu_4`, between 0 and 1, and `cider_d`, between 0 and 10.
"""

_CITATION = """@inproceedings{cider, title={{CIDEr}: Consensus-based Image Description Evaluation}, booktitle={CVPR}, year={2015},
author={Vedantam, Ramakrishna and Zitnick, C. Lawrence and Parikh, Devi}}"""

_ORDERS = range(1, 5)
_SIGMA = 6.0


def words_of(caption: str) -> list[str]:
    """Lower-case words; marks inside a word ("t-shirt", "man's") stay."""
    return re.findall(r"\w+(?:[-']\w+)*", caption.lower())


def _ngrams(words: list[str], order: int) -> Counter:
    return Counter(tuple(words[start : start + order]) for start in range(len(words) - order + 1))


def bleu(predictions: list[list[str]], references: list[list[list[str]]]) -> list[float]:
    """Corpus BLEU of orders 1 to 4.

    Args:
        predictions (`list[list[str]]`): Words of one caption per image.
        references (`list[list[list[str]]]`): Words of the true captions of every image.
    """
    matches, candidates = Counter[int](), Counter[int]()
    length, true_length = 0, 0
    for words, true in zip(predictions, references, strict=True):
        length += len(words)
        true_length += min((abs(len(other) - len(words)), len(other)) for other in true)[1]
        for order in _ORDERS:
            found = _ngrams(words, order)
            most = Counter[tuple]()
            for other in true:
                most |= _ngrams(other, order)
            matches[order] += (found & most).total()
            candidates[order] += found.total()
    if not matches[1]:
        return [0.0] * len(_ORDERS)
    penalty = min(1.0, math.exp(1 - true_length / length))
    scores, product = [], 1.0
    for order in _ORDERS:
        product *= matches[order] / max(candidates[order], 1)
        scores.append(penalty * product ** (1 / order))
    return scores


def cider_d(predictions: list[list[str]], references: list[list[list[str]]]) -> float:
    """Mean CIDEr-D; arguments as of [`bleu`]."""
    documents = Counter[tuple]()
    for true in references:
        documents.update({ngram for words in true for order in _ORDERS for ngram in _ngrams(words, order)})
    log_images = math.log(len(references))

    def vector(words: list[str], order: int) -> tuple[dict[tuple, float], float]:
        weights = {
            ngram: count * (log_images - math.log(max(1, documents[ngram])))
            for ngram, count in _ngrams(words, order).items()
        }
        return weights, math.sqrt(sum(weight**2 for weight in weights.values()))

    total = 0.0
    for words, true in zip(predictions, references, strict=True):
        score = 0.0
        for order in _ORDERS:
            found, norm = vector(words, order)
            for other in true:
                wanted, other_norm = vector(other, order)
                if not norm or not other_norm:
                    continue
                product = sum(
                    min(weight, wanted.get(ngram, 0.0)) * wanted.get(ngram, 0.0) for ngram, weight in found.items()
                )
                # Lengths are counted in bigrams: a caption of one word is as long as an empty one.
                gap = max(len(words) - 1, 0) - max(len(other) - 1, 0)
                score += product / (norm * other_norm) * math.exp(-(gap**2) / (2 * _SIGMA**2)) / len(true)
        total += 10 * score / len(_ORDERS)
    return total / len(predictions)


class CaptionScores(evaluate.Metric):
    """See the description of the module."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
            ),
            reference_urls=["https://github.com/tylin/coco-caption"],
        )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        for index, true in enumerate(references):
            if not true:
                raise ValueError(f"`references` holds no caption for image {index}.")
        found = [words_of(text) for text in predictions]
        wanted = [[words_of(text) for text in true] for true in references]
        scores = {f"bleu_{order}": score for order, score in zip(_ORDERS, bleu(found, wanted), strict=True)}
        return scores | {"cider_d": cider_d(found, wanted)}
