"""Retrieval of pictures by captions and of captions by pictures, with any number of captions each (Karpathy & Fei-Fei 2015)."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from triptych.evaluation.retrieval_recall import ranks_of_first, recalls
from triptych.tasks.captions import read_captions
from triptych.tasks.encoders import Encoder


_CAPTIONS_OF_KARPATHY = 5  # some pictures of COCO have more, which papers leave out
_FOLD = 1000


def _packed(vectors: Any) -> list[str]:
    return [base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode() for vector in vectors]


def _unpacked(texts: Sequence[str]) -> np.ndarray:
    return np.stack([np.frombuffer(base64.b64decode(text), "<f4") for text in texts])


class Retrieval:
    """The task. A sample is the vectors of a picture and its captions, in base64, so that a stopped evaluation goes on with them.

    Args:
        source, split, image_column, caption_column: As of [`read_captions`]; of Karpathy's files the first five captions count.
        fold (`int`): Of twice as many pictures, recalls among so many at a time are reported too: COCO's "1K" beside its "5K".
    """

    name = "retrieval"

    def __init__(
        self,
        source: str,
        split: str = "test",
        image_column: str | None = None,
        caption_column: str | None = None,
        fold: int = _FOLD,
    ):
        self.rows = read_captions(source, split, image_column, caption_column, most=_CAPTIONS_OF_KARPATHY)
        self.fold = fold

    def predict(self, encoder: Encoder, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Vectors of every picture and of its captions."""
        if "image" not in rows[0]:
            raise ValueError("Retrieval compares pictures; these rows hold clips.")
        images = _packed(encoder.images([row["image"] for row in rows]))
        texts = iter(_packed(encoder.texts([caption for row in rows for caption in row["captions"]])))
        return [
            {"image": image, "captions": [next(texts) for _ in row["captions"]]}
            for image, row in zip(images, rows, strict=True)
        ]

    def score(self, samples: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Recall@1, 5 and 10 and median ranks both ways, and the number of captions; with `1k_` before them the means of folds."""
        images = _unpacked([sample["image"] for sample in samples])
        texts = _unpacked([text for sample in samples for text in sample["captions"]])
        owner = np.repeat(np.arange(len(samples)), [len(sample["captions"]) for sample in samples])
        ranks = _ranks(images, texts, owner)
        found: dict[str, Any] = {**_recalls(ranks), "num_captions": len(texts)}
        folds = len(samples) // self.fold
        if folds > 1:
            each = []
            for start in range(0, folds * self.fold, self.fold):
                inside = (owner >= start) & (owner < start + self.fold)
                part = _ranks(images[start : start + self.fold], texts[inside], owner[inside] - start)
                each.append(_recalls(part))
            name = f"{self.fold // 1000}k" if self.fold % 1000 == 0 else f"{self.fold}"
            found |= {f"{name}_{key}": float(np.mean([fold[key] for fold in each])) for key in each[0]}
        text_hits = np.bincount(owner, ranks["text_to_image"] < 1) / np.bincount(owner)
        values = {"image_to_text_recall@1": (ranks["image_to_text"] < 1).astype(float)}
        if len({*np.bincount(owner)}) == 1:  # else the mean of pictures is not that of captions
            values["text_to_image_recall@1"] = text_hits
        return found, values


def _ranks(images: np.ndarray, texts: np.ndarray, owner: np.ndarray) -> dict[str, np.ndarray]:
    similarity = texts @ images.T  # (texts, images)
    return {
        "text_to_image": ranks_of_first(similarity, owner[:, None].tolist()),
        "image_to_text": ranks_of_first(
            similarity.T, [np.flatnonzero(owner == image).tolist() for image in range(len(images))]
        ),
    }


def _recalls(ranks: dict[str, np.ndarray]) -> dict[str, float]:
    return {f"{way}_{name}": value for way, each in ranks.items() for name, value in recalls(each).items()}


__all__ = ["Retrieval"]
