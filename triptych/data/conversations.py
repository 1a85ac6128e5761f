"""Conversations with images, in LLaVA's JSON layout or as `messages`, for the training of VW-LMM."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import datasets
import torch
from PIL import Image
from torch.utils.data import ConcatDataset
from transformers.utils import logging

from triptych.data.packing import pack_rows
from triptych.data.pictures import PictureRows, decode_image
from triptych.data.questions import most_common_answer
from triptych.data.rows import one_text
from triptych.data.splits import load_splits
from triptych.processing.pictures import to_rgb
from triptych.processing.processing_vw_lmm import VwLmmProcessor


logger = logging.get_logger(__name__)
_IMAGE_LENGTH = 100_000
_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


def _messages_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Messages of a row, with texts for contents.

    Raises:
        ValueError: If they are no conversation that a user begins.
    """
    messages = row.get("messages")
    if not messages:
        if not row.get("conversations"):
            raise ValueError(f"it has neither `messages` nor `conversations`, only {', '.join(sorted(row))}")
        try:
            messages = [{"role": _ROLES[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]
        except KeyError as error:
            raise ValueError(f"a turn needs `from` (human, gpt or system) and `value`; {error} is wrong") from error
    found = []
    for position, message in enumerate(messages):
        content = message.get("content")
        if not isinstance(content, list):  # blocks are the processor's
            try:
                content = one_text(content)
            except ValueError as error:
                raise ValueError(f"what is said in turn {position} is {content!r}, {error}") from None
        found.append({**message, "content": content})
    if next((message["role"] for message in found if message.get("role") != "system"), None) != "user":
        raise ValueError("the first turn must be a user's")
    return found


def _images_of(row: dict[str, Any]) -> list[Any]:
    """The images of a row, not read yet; LLaVA's `image` may be one or a list of them."""
    images = row.get("images") or row.get("image") or []
    return list(images) if isinstance(images, (list, tuple)) else [images]


def _count_placeholders(messages: list[dict[str, Any]]) -> int:
    contents = [message["content"] for message in messages]
    return sum(
        content.count("<image>")
        if isinstance(content, str)
        else sum(block.get("type") == "image" for block in content)
        for content in contents
    )


def _decode(image: Any, index: int, decode_size: float | None) -> Image.Image:
    if isinstance(image, Image.Image):
        return to_rgb(image, f"image of row {index}")
    stored = {"path": str(image), "bytes": None} if isinstance(image, Path) else image
    return decode_image(stored, index, decode_size)


def _undecoded(rows: Any) -> Any:
    """Rows of `datasets` with pictures as they are stored, so that a bad one can be named; others as they are."""
    features = rows.features if isinstance(rows, datasets.Dataset) else {}
    for name in features.keys() & {"image", "images"}:
        if isinstance(features[name], datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
        elif isinstance(getattr(features[name], "feature", None), datasets.Image):
            rows = rows.cast_column(name, datasets.List(datasets.Image(decode=False)))
    return rows


class ConversationDataset(PictureRows):
    """Rows with `messages` or LLaVA's `conversations`, and `image` or `images`: paths, or what `datasets` decodes.

    Args:
        rows (`Sequence[dict]`): As above. In the texts every image stands as `<image>`.
        image_folder (`str`, *optional*): Where relative paths start.
        places (`Sequence[str]`, *optional*): Where every row stands, for errors.
    """

    def __init__(
        self, rows: Sequence[dict[str, Any]], image_folder: str | None = None, places: Sequence[str] | None = None
    ):
        self.rows, self.places = _undecoded(rows), places
        self.image_folder = Path(image_folder or ".")

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> tuple[list[dict[str, Any]], list[Any]]:
        """Messages and images of a row, none of which is decoded.

        Raises:
            ValueError: If they are no conversation, with the row's place.
        """
        row = self.rows[index]
        try:
            messages, images = _messages_of(row), _images_of(row)
            if (count := _count_placeholders(messages)) != len(images):
                raise ValueError(f"its texts hold {count} `<image>`, but it has {len(images)} images")
            return messages, [self._path(image) if isinstance(image, str) else image for image in images]
        except ValueError as error:
            place = f"Row {index}" if self.places is None else self.places[index]
            raise ValueError(f"{place} cannot be read: {error}.") from error

    def __getitem__(self, index: int) -> dict[str, Any]:
        messages, images = self.read(index)
        return {"messages": messages, "images": [_decode(image, index, self.decode_size) for image in images]}

    def _path(self, name: str) -> Path:
        path = self.image_folder / name
        if not path.resolve().is_relative_to(self.image_folder.resolve()):
            raise ValueError(
                f"the image {name!r} is not in `image_folder` {self.image_folder}; name a folder above it"
            )
        return path

    def lengths(self) -> list[int]:
        """Length of every conversation, for batches of similar ones: its characters, and as many again as no text has per image.

        No image is looked at: they are counted in the texts.
        """
        rows: Any = self.rows
        if isinstance(rows, datasets.Dataset):
            rows = rows.select_columns([name for name in ("messages", "conversations") if name in rows.column_names])
        lengths = []
        for messages in map(_messages_of, rows):
            length = sum(len(str(message["content"])) for message in messages)
            lengths.append(length + _IMAGE_LENGTH * _count_placeholders(messages))
        return lengths


def load_conversations(
    name: str, image_folder: str | None = None, on_bad_row: Literal["error", "skip"] = "error"
) -> ConversationDataset:
    """Load conversations from a JSON or JSON Lines file, or the training split of a data set.

    Args:
        name (`str`): A file in LLaVA's layout (a list of `{"image": path, "conversations": [...]}`) or with `messages`, or what
            [`load_splits`] reads, with a column of one of these names.
        image_folder (`str`, *optional*): Where the paths of a file's images start. Default: its own folder.
        on_bad_row (`"error"` or `"skip"`): Stop at the first row of a file that is no conversation, or leave such rows out and say
            how many.

    Raises:
        ValueError: If the file is no list of rows, or a row is no conversation.
    """
    path = Path(name)
    if path.suffix not in (".json", ".jsonl"):
        if image_folder is not None:
            raise ValueError(f"`image_folder` is for JSON files; {name!r} brings its images.")
        if on_bad_row != "error":
            raise ValueError(f"`on_bad_row` is for JSON files; the rows of {name!r} are read one by one.")
        return ConversationDataset(load_splits(name, image_column=None, eval_split="train")["train"])
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".jsonl":
        lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        rows, places = [json.loads(line) for _, line in lines], [f"{name}, line {number}," for number, _ in lines]
    else:
        rows = json.loads(text)
        if not isinstance(rows, list):
            raise ValueError(f"{name} must hold a list of conversations, got {type(rows).__name__}.")
        places = [f"{name}, row {number}," for number in range(len(rows))]
    data = ConversationDataset(rows, image_folder or str(path.parent), places)
    kept, first = [], "It is empty."
    for index in range(len(rows)):
        try:
            data.read(index)
            kept.append(index)
        except ValueError as error:
            if on_bad_row == "error":
                raise
            first = str(error) if len(kept) == index else first
    if not kept:
        raise ValueError(f"{name} holds no conversation. {first}")
    if len(kept) < len(rows):
        logger.warning(f"{len(rows) - len(kept)} of {len(rows)} rows were left out. The first: {first}")
    return ConversationDataset([rows[i] for i in kept], str(data.image_folder), [places[i] for i in kept])


def dialogue(turns: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Questions about a picture and their answers as one conversation; the image stands before the first."""
    messages: list[dict[str, str]] = []
    for question, answer in turns:
        question = question if messages else f"<image>\n{question}"
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


class QuestionConversations(PictureRows):
    """Questions about images (`triptych.data.questions.load_questions`), several of an image as one conversation.

    Args:
        data (`datasets.Dataset`): Rows with `image`, `image_id`, `question`, `answers`.
        questions_per_image (`int`): Most questions of a conversation; more make another one.
    """

    def __init__(self, data: datasets.Dataset, questions_per_image: int = 5):
        self.data = data.cast_column("image", datasets.Image(decode=False))
        groups: dict[str, list[int]] = {}
        for row, image_id in enumerate(data["image_id"]):
            groups.setdefault(image_id, []).append(row)
        self.groups = [
            rows[start : start + questions_per_image]
            for rows in groups.values()
            for start in range(0, len(rows), questions_per_image)
        ]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> dict[str, Any]:
        rows = [self.data[row] for row in self.groups[index]]
        turns = [(row["question"], most_common_answer(row["answers"])) for row in rows]
        image = decode_image(rows[0]["image"], self.groups[index][0], self.decode_size)
        return {"messages": dialogue(turns), "images": [image]}

    def lengths(self) -> list[int]:
        """Length of every conversation: the characters of its questions, near enough."""
        questions = list(self.data["question"])
        return [sum(len(questions[row]) for row in rows) for rows in self.groups]


class ConversationMixture(ConcatDataset):
    """Several data sets of conversations as one."""

    def set_decode_size(self, size: float) -> None:
        """As of [`PictureRows`]."""
        for dataset in self.datasets:
            if isinstance(dataset, PictureRows):
                dataset.set_decode_size(size)

    def lengths(self) -> list[int]:
        """Length of every conversation, in characters."""
        return [length for dataset in self.datasets for length in dataset.lengths()]  # type: ignore[attr-defined]


class ConversationCollator:
    """Batch conversations through the processor; only answers are supervised.

    Args:
        processor (`VwLmmProcessor`): Of the model.
        packing (`bool`): Put short conversations behind one another into one row, as of [`pack_rows`].
    """

    def __init__(self, processor: VwLmmProcessor, packing: bool = False):
        self.processor = processor
        self.packing = packing

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = self.processor.encode_conversations(
            [item["messages"] for item in items],
            images=[item["images"] for item in items],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        if not self.packing:
            return batch
        return pack_rows(batch, [len(item["images"]) for item in items], self.processor.tokenizer.pad_token_id)


__all__ = [
    "ConversationCollator", "ConversationDataset", "ConversationMixture", "QuestionConversations", "dialogue",
    "load_conversations",
]  # fmt: skip
