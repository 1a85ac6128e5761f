"""Image-caption pairs from any source, as the model wants them."""

import hashlib
import io
import random
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, Literal

import datasets
import torch
from datasets import DatasetDict, load_dataset
from PIL import Image
from torch.utils.data import Dataset
from transformers import ProcessorMixin

from triptych.processing.pictures import to_rgb
from triptych.training.openmoji import load_openmoji_captions


class CorruptImageError(ValueError):
    """An image of the data set cannot be read."""


def picture_ids(data: datasets.Dataset, image_column: str) -> list[str]:
    """What tells the pictures of rows apart: a digest of their file, so that copies under another name are one picture."""

    def digest(row: dict[str, Any]) -> dict[str, str]:
        image = row[image_column] or {}
        content = image.get("bytes")
        if content is None:
            path = Path(image.get("path") or "")
            content = path.read_bytes() if path.is_file() else str(path).encode()
        return {"picture_id": hashlib.sha1(content, usedforsecurity=False).hexdigest()}

    images = data.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
    return list(images.map(digest, remove_columns=[image_column], desc="pictures")["picture_id"])


def hold_out(data: datasets.Dataset, groups: Sequence[Hashable], fraction: float, seed: int) -> DatasetDict:
    """Split off rows to evaluate on; rows of one group stay together.

    Args:
        data (`datasets.Dataset`): Rows.
        groups (`Sequence`): Of every row, e.g. its picture: what is asked of it in the test must not be known from training.
        fraction (`float`): Share of the groups that is held out; at least one.
        seed (`int`): Of the choice.

    Raises:
        ValueError: If there are fewer than two groups.
    """
    distinct = sorted(set(groups), key=str)
    if len(distinct) < 2:
        raise ValueError(
            f"The training split has {len(distinct)} picture; to hold some out, there must be at least two."
        )
    count = min(max(1, round(fraction * len(distinct))), len(distinct) - 1)
    chosen = set(random.Random(seed).sample(distinct, count))
    rows: dict[bool, list[int]] = {False: [], True: []}
    for row, group in enumerate(groups):
        rows[group in chosen].append(row)
    return DatasetDict(train=data.select(rows[False]), test=data.select(rows[True]))


def load_pairs(
    name: str,
    config_name: str | None = None,
    image_column: str = "image",
    caption_column: str = "caption",
    image_size: int = 96,
    eval_split: str = "test",
    eval_fraction: float = 0.05,
    seed: int = 0,
) -> DatasetDict:
    """Load image-caption pairs with the splits `train` and `test`.

    Args:
        name (`str`):
            `"openmoji"` (built from installed packages), a folder of images with `metadata.csv` or `metadata.jsonl`, a
            folder of parquet files or a single one, or a data set on the Hub.
        config_name (`str`, *optional*): Configuration of a Hub data set.
        image_column, caption_column (`str`): Columns to read. A caption may be a list of captions.
        image_size (`int`): Size at which OpenMoji is rendered, in pixels.
        eval_split (`str`): Split to evaluate on. If the data set has none of this name, a fixed share of the training
            split's pictures is held out, with all rows that show them.
        eval_fraction (`float`): That share.
        seed (`int`): Seed of that split.

    Raises:
        ValueError: If the data set has no training split or lacks a column.
    """
    if name == "openmoji":
        data = load_openmoji_captions(image_size)
    else:
        path = Path(name)
        if path.is_file() and path.suffix != ".parquet":
            raise ValueError(f"`name` {name!r} is a file of an unknown kind, expected .parquet or a folder.")
        if path.is_file():
            data = load_dataset("parquet", data_files=str(path))
        elif path.is_dir() and any(path.rglob("*.parquet")):
            data = load_dataset("parquet", data_dir=str(path))
        elif path.is_dir():
            data = load_dataset("imagefolder", data_dir=str(path))
        else:
            data = load_dataset(name, config_name)
    if "train" not in data:
        raise ValueError(f"Data set {name!r} has no split 'train', only {sorted(data)}.")
    for argument, column in (("image_column", image_column), ("caption_column", caption_column)):
        if column not in data["train"].column_names:
            raise ValueError(
                f"`{argument}={column!r}` is not a column of {name!r}; it has {', '.join(data['train'].column_names)}."
            )
    if eval_split not in data:
        return hold_out(data["train"], picture_ids(data["train"], image_column), eval_fraction, seed)
    return DatasetDict(train=data["train"], test=data[eval_split])


def decode_image(image: dict[str, Any] | None, row: int) -> Image.Image:
    """An image of a `datasets` row that was not decoded yet (`datasets.Image(decode=False)`), upright, as RGB.

    Raises:
        CorruptImageError: If it cannot be read; names the file and the row.
    """
    try:
        source = image["path"] if image["bytes"] is None else io.BytesIO(image["bytes"])  # type: ignore[index]
        with Image.open(source) as opened:
            return to_rgb(opened)
    except Exception as error:  # Pillow's plugins raise what they like, decompression bombs included
        name = (image or {}).get("path") or "without a file name"
        raise CorruptImageError(f"Image {name} (row {row}) cannot be read: {error}") from error


class ImageCaptionDataset(Dataset):
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

    def _crop(self, image: Image.Image, index: int) -> Image.Image:
        rng = random.Random(f"{self.seed}-{self.epoch}-{index}")
        side = rng.uniform(self.crop_scale, 1.0) ** 0.5
        width, height = max(1, round(side * image.width)), max(1, round(side * image.height))
        left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
        return image.crop((left, top, left + width, top + height))

    def __getitem__(self, index: int) -> dict[str, Any]:
        num_skipped = 0
        while True:
            row, position = self.pairs[(index + num_skipped) % len(self.pairs)]
            item = self.data[row]
            try:
                image = decode_image(item[self.image_column], row)
                break
            except CorruptImageError:
                num_skipped += 1
                if self.on_corrupt_image == "error" or num_skipped == len(self.pairs):
                    raise
        if self.crop_scale < 1.0:
            image = self._crop(image, index)
        caption = item[self.caption_column]
        caption = caption if isinstance(caption, str) else caption[position]
        return {"image": image, "caption": caption, "num_skipped": num_skipped}


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


__all__ = [
    "CorruptImageError",
    "ImageCaptionDataset",
    "PairCollator",
    "decode_image",
    "hold_out",
    "load_pairs",
    "picture_ids",
]
