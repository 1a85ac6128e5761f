"""Accuracy of open-ended visual question answering, with the answer normalisation of the VQA challenge.

Accuracy of open-ended answers (Antol et al. 2015, arXiv 1505.00468, section 5): an answer counts min(matches / 3, 1) against
the human answers, averaged over all sets that leave one human out. With fewer than four reference answers, one match is enough.
Answers are normalised first: case, punctuation, articles, number words, missing apostrophes.
"""

import itertools
import re
from collections import defaultdict

from triptych.evaluation.described_metric import DescribedMetric


_DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_DIGITS)}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd
how'll how's I'd've I'm I've isn't it'd it'd've it'll let's ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's
where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've
you'd you'd've you'll you're you've
"""


def _without_apostrophes(word: str) -> set[str]:
    """Every spelling of a contraction that misses one or more apostrophes."""
    choices = [("'", "") if letter == "'" else (letter,) for letter in word]
    return {"".join(letters) for letters in itertools.product(*choices)} - {word}


_CONTRACTIONS = {
    spelling: word for word in _CONTRACTED.lower().split() for spelling in sorted(_without_apostrophes(word))
}


def normalize_answer(answer: str) -> str:
    """An answer as the VQA challenge compares it; true answers are treated alike.

    The official script (GT-Vision-Lab/VQA) leaves capitals, number words and articles of true answers as they are, and
    unanimous true answers wholly raw, so that "t-shirt" never matches ten times "t-shirt". Here it does.

    Punctuation between digits or at a word's edge disappears, elsewhere it parts words; periods stay in decimal numbers only;
    number words become digits; articles go; contractions get their apostrophes back.
    """
    text = re.sub(r"\s+", " ", answer).strip()
    has_digit_comma = re.search(r"\d,\d", text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        at_edge = f"{mark} " in text or f" {mark}" in text or has_digit_comma
        cleaned = cleaned.replace(mark, "" if at_edge else " ")
    cleaned = re.sub(r"\.(?!\d)", "", cleaned).lower()
    words = [_NUMBERS.get(word, word) for word in cleaned.split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def answer_accuracy(prediction: str, references: list[str]) -> float:
    """Accuracy of one answer against the true ones, between 0 and 1.

    Raises:
        ValueError: If there is no true answer.
    """
    if not references:
        raise ValueError("`references` holds a question without an answer.")
    found, wanted = normalize_answer(prediction), [normalize_answer(reference) for reference in references]
    matches = wanted.count(found)
    if len(wanted) < 4:
        return float(matches > 0)
    # Leaving out one of the matching humans leaves matches - 1 others.
    left_out = [matches - (reference == found) for reference in wanted]
    return sum(min(count / 3, 1.0) for count in left_out) / len(wanted)


class VqaAccuracy(DescribedMetric):
    """See the module."""

    source = "https://visualqa.org/evaluation.html"

    def _compute(
        self, predictions: list[str], references: list[list[str]], answer_types: list[str] | None = None
    ) -> dict[str, float]:
        """
        Args:
            predictions (`list[str]`): One answer per question.
            references (`list[list[str]]`): The true answers of every question; ten in VQAv2, one in most others.
            answer_types (`list[str]`, *optional*): A kind per question ("yes/no", "number", "other"): adds an accuracy per kind.

        Returns:
            `vqa_accuracy`, and `vqa_accuracy_<type>` for every type: means between 0 and 1.
        """
        scores = [answer_accuracy(found, wanted) for found, wanted in zip(predictions, references, strict=True)]
        results = {"vqa_accuracy": sum(scores) / len(scores)}
        by_type = defaultdict(list)
        for kind, score in zip(answer_types or [], scores, strict=answer_types is not None):
            by_type[kind].append(score)
        return results | {f"vqa_accuracy_{kind}": sum(by_type[kind]) / len(by_type[kind]) for kind in sorted(by_type)}
