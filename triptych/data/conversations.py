"""Conversations with images, in LLaVA's JSON layout or as `messages`, for the training of VW-LMM."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset

from triptych.data.pictures import decode_image
from triptych.data.questions import most_common_answer
from triptych.data.splits import load_splits
from triptych.processing.pictures import to_rgb
from triptych.processing.processing_vw_lmm import VwLmmProcessor


_IMAGE_LENGTH = 100_000
_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


def _messages_of(row: dict[str, Any], index: int) -> list[dict[str, Any]]:
    if row.get("messages"):
        return row["messages"]
    if not row.get("conversations"):
        raise ValueError(f"Row {index} has neither `messages` nor `conversations`, only {', '.join(sorted(row))}.")
    try:
        return [{"role": _ROLES[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]
    except KeyError as error:
        raise ValueError(
            f"Row {index}: a turn needs `from` (human, gpt or system) and `value`; {error} is wrong."
        ) from error


def _decode(image: Any, index: int) -> Image.Image:
    if isinstance(image, Image.Image):
        return to_rgb(image, f"image of row {index}")
    return decode_image({"path": str(image), "bytes": None} if isinstance(image, Path) else image, index)


class ConversationDataset(Dataset):
    """Rows with `messages` or LLaVA's `conversations`, and `image` or `images`: paths, or what `datasets` decodes.

    Args:
        rows (`Sequence[dict]`): As above. In the texts every image stands as `<image>`.
        image_folder (`str`, *optional*): Where relative paths start.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], image_folder: str | None = None):
        self.rows = rows
        self.image_folder = Path(image_folder or ".")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        images = row.get("images") or ([row["image"]] if row.get("image") else [])
        images = [self._path(image, index) if isinstance(image, str) else image for image in images]
        return {"messages": _messages_of(row, index), "images": [_decode(image, index) for image in images]}

    def _path(self, name: str, index: int) -> Path:
        path = self.image_folder / name
        if not path.resolve().is_relative_to(self.image_folder.resolve()):
            raise ValueError(
                f"Row {index} names the image {name!r}, which is not in `image_folder` {self.image_folder}; name a folder above it."
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
        for index, row in enumerate(rows):
            contents = [message["content"] for message in _messages_of(row, index)]
            images = sum(
                content.count("<image>")
                if isinstance(content, str)
                else sum(block.get("type") == "image" for block in content)
                for content in contents
            )
            lengths.append(sum(len(str(content)) for content in contents) + _IMAGE_LENGTH * images)
        return lengths


def load_conversations(name: str, image_folder: str | None = None) -> ConversationDataset:
    """Load conversations from a JSON or JSON Lines file, or the training split of a data set.

    Args:
        name (`str`): A file in LLaVA's layout (a list of `{"image": path, "conversations": [...]}`) or with `messages`, or what
            [`load_splits`] reads, with a column of one of these names.
        image_folder (`str`, *optional*): Where the paths of a file's images start. Default: its own folder.

    Raises:
        ValueError: If the file is no list of rows.
    """
    path = Path(name)
    if path.suffix not in (".json", ".jsonl"):
        if image_folder is not None:
            raise ValueError(f"`image_folder` is for JSON files; {name!r} brings its images.")
        return ConversationDataset(load_splits(name, image_column=None, eval_split="train")["train"])
    text = path.read_text(encoding="utf-8")
    rows = (
        [json.loads(line) for line in text.splitlines() if line.strip()]
        if path.suffix == ".jsonl"
        else json.loads(text)
    )
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{name} must hold a list of conversations, got {type(rows).__name__}.")
    return ConversationDataset(rows, image_folder or str(path.parent))


def dialogue(turns: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Questions about a picture and their answers as one conversation; the image stands before the first."""
    messages: list[dict[str, str]] = []
    for question, answer in turns:
        question = question if messages else f"<image>\n{question}"
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


class QuestionConversations(Dataset):
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
        return {"messages": dialogue(turns), "images": [decode_image(rows[0]["image"], self.groups[index][0])]}

    def lengths(self) -> list[int]:
        """Length of every conversation: the characters of its questions, near enough."""
        questions = list(self.data["question"])
        return [sum(len(questions[row]) for row in rows) for rows in self.groups]


class ConversationMixture(ConcatDataset):
    """Several data sets of conversations as one."""

    def lengths(self) -> list[int]:
        """Length of every conversation, in characters."""
        return [length for dataset in self.datasets for length in dataset.lengths()]  # type: ignore[attr-defined]


class ConversationCollator:
    """Batch conversations through the processor; only answers are supervised.

    Args:
        processor (`VwLmmProcessor`): Of the model.
    """

    def __init__(self, processor: VwLmmProcessor):
        self.processor = processor

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return self.processor.encode_conversations(
            [item["messages"] for item in items],
            images=[item["images"] for item in items],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )


__all__ = [
    "ConversationCollator", "ConversationDataset", "ConversationMixture", "QuestionConversations", "dialogue",
    "load_conversations",
]  # fmt: skip
