"""Image-caption pairs from any source, as the model wants them."""

from collections.abc import Sequence
from typing import Any, Literal

import datasets
import torch
from datasets import DatasetDict
from transformers import ProcessorMixin

from triptych.data.openmoji import load_openmoji_captions
from triptych.data.picture_sets import PICTURE_SETS, load_picture_set
from triptych.data.pictures import CorruptImageError, PictureRows, decode_image, random_crop
from triptych.data.rows import text_or_texts
from triptych.data.splits import load_splits


def load_pairs(
    name: str,
    config_name: str | None = None,
    image_column: str = "image",
    caption_column: str = "caption",
    image_size: int = 96,
    eval_split: str = "test",
    others: Sequence[str] = (),
    **options: Any,
) -> DatasetDict:
    """Load image-caption pairs with the splits `train`, `test`, and others by their names.

    Args:
        name (`str`): `"openmoji"` (built from installed packages), one of `PICTURE_SETS` (from packages that are fetched), or what
            [`load_splits`] reads.
        image_column, caption_column (`str`): Columns to read. A caption may be a list of captions.
        image_size (`int`): Size at which drawings are rendered, in pixels.
        eval_split (`str`): Split that becomes `test`.
        others (`Sequence[str]`): More splits to evaluate, of a package's data set.
        config_name, options: Of [`load_splits`].

    Raises:
        ValueError: If there is no such split to evaluate, or an argument has no meaning for a package's data set.
    """
    if name == "openmoji" or name in PICTURE_SETS:
        given = {"config_name": config_name, "image_column": image_column, "caption_column": caption_column, **options}
        fixed = {
            "image_column": "image",
            "caption_column": "caption",
            "on_bad_row": "error",
            "seed": options.get("seed"),
        }
        for key, value in given.items():
            if value != fixed.get(key):
                raise ValueError(f"`{key}={value!r}` is for data of your own; {name!r} has one form.")
        data = load_openmoji_captions(image_size) if name == "openmoji" else load_picture_set(name, image_size)
        splits = {**dict(zip(others, others, strict=True)), "train": "train", "test": eval_split}
        if len(splits) < len(others) + 2 or eval_split in others:
            raise ValueError(
                f"`eval_split`, `validation_split` and `also_evaluate` must differ, got {', '.join([eval_split, *others])}."
            )
        for split in (eval_split, *others):
            if split not in data or split == "train":
                known = ", ".join(each for each in data if each != "train")
                raise ValueError(f"{name!r} can be evaluated on {known}, not on {split!r}.")
        return DatasetDict({key: data[split] for key, split in splits.items()})
    if others:
        raise ValueError(
            f"`validation_split` and `also_evaluate` are for data sets of packages, got {', '.join(others)}; {name!r} is evaluated on "
            "`eval_split` alone."
        )
    texts = {"caption_column": (caption_column, text_or_texts)}
    return load_splits(name, config_name, texts, image_column, eval_split, **options)


class ImageCaptionDataset(PictureRows):
    """Rows of a `datasets` data set as (RGB image, caption), decoded one by one so that a bad file can be named.

    Args:
        data (`datasets.Dataset`): With an image and a caption column.
        image_column, caption_column (`str`): Their names.
        all_captions (`bool`): Where a caption is a list: one pair per caption (training), or the first (evaluation).
        crop_scale (`float`): Smallest share of the area that a random training crop keeps; 1.0 crops nothing.
        on_corrupt_image (`"error"` or `"skip"`):
            Stop with the image's name, or take the next pair instead (`num_skipped` tells) so that batches stay full.
        seed (`int`): Seed of the crops, which depend on seed, epoch and row only.
    """

    def __init__(
        self,
        data: datasets.Dataset,
        image_column: str = "image",
        caption_column: str = "caption",
        all_captions: bool = False,
        crop_scale: float = 1.0,
        on_corrupt_image: Literal["error", "skip"] = "error",
        seed: int = 0,
    ):
        self.data = data.select_columns([image_column, caption_column]).cast_column(
            image_column, datasets.Image(decode=False)
        )
        self.image_column, self.caption_column = image_column, caption_column
        self.crop_scale, self.on_corrupt_image, self.seed, self.epoch = crop_scale, on_corrupt_image, seed, 0
        captions = data[caption_column]
        for row, caption in enumerate(captions):
            if not caption:
                raise ValueError(
                    f"`{caption_column}` of row {row} is {caption!r}, expected a caption or a list of them."
                )
        self.pairs = [
            (row, position)
            for row, caption in enumerate(captions)
            for position in range(len(caption) if all_captions and not isinstance(caption, str) else 1)
        ]

    def __len__(self) -> int:
        return len(self.pairs)

    def set_epoch(self, epoch: int) -> None:
        """Change the random crops; call it before iterating."""
        self.epoch = epoch

    def captions(self) -> list[str]:
        """The caption of every pair; no image is looked at."""
        return [each[position] for each, (_, position) in zip(self.references(), self.pairs, strict=True)]

    def references(self) -> list[list[str]]:
        """All captions of the image of every pair."""
        captions = list(self.data[self.caption_column])
        return [[captions[row]] if isinstance(captions[row], str) else captions[row] for row, _ in self.pairs]

    def __getitem__(self, index: int) -> dict[str, Any]:
        num_skipped = 0
        while True:
            row, position = self.pairs[(index + num_skipped) % len(self.pairs)]
            item = self.data[row]
            try:
                image = decode_image(item[self.image_column], row, self.decode_size)
                break
            except CorruptImageError:
                num_skipped += 1
                if self.on_corrupt_image == "error" or num_skipped == len(self.pairs):
                    raise
        image = random_crop(image, self.crop_scale, f"{self.seed}-{self.epoch}-{index}")
        caption = item[self.caption_column]
        caption = caption if isinstance(caption, str) else caption[position]
        return {"image": image, "caption": caption, "num_skipped": num_skipped}


class CaptionRequests(ImageCaptionDataset):
    """Pairs as questions, for models that chat: what is asked for a caption, and the caption as the answer."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = super().__getitem__(index)
        return {"image": pair["image"], "question": "What is this?", "answer": pair["caption"]}


class PairCollator:
    """Batch pairs through the processor; `labels` are the token ids with padding replaced by -100.

    Args:
        processor (`ProcessorMixin`): Of the model.
        truncation (`bool`): Cut captions longer than the context instead of stopping at them.
    """

    def __init__(self, processor: ProcessorMixin, truncation: bool = False):
        self.processor = processor
        self.truncation = truncation

    def __call__(self, pairs: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = self.processor(
            images=[pair["image"] for pair in pairs],
            text=[pair["caption"] for pair in pairs],
            padding="longest",
            truncation=self.truncation,
            return_tensors="pt",
        )
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        num_skipped = torch.tensor(sum(pair["num_skipped"] for pair in pairs))
        return {**batch, "labels": labels, "num_skipped": num_skipped}


__all__ = ["CaptionRequests", "ImageCaptionDataset", "PairCollator", "load_pairs"]
