"""Questions and answers about images: any VQA data set, as the models want it."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import datasets
import torch
from datasets import DatasetDict
from torch.utils.data import Dataset
from transformers import ProcessorMixin

from triptych.data.easy_vqa import load_easy_vqa
from triptych.data.pictures import PictureRows, decode_image, picture_ids
from triptych.data.rows import one_text, several_texts
from triptych.data.splits import load_splits


def answer_type_of(answer: str) -> str:
    """The VQA challenge's kinds of answers: "yes/no", "number" or "other"."""
    text = answer.strip().lower()
    if text in ("yes", "no"):
        return "yes/no"
    return "number" if text.replace(".", "", 1).isdigit() else "other"


def most_common_answer(answers: Sequence[str]) -> str:
    """The answer to train on: the most frequent one, the first of several."""
    return Counter(answers).most_common(1)[0][0]


def load_questions(
    name: str,
    config_name: str | None = None,
    image_column: str = "image",
    question_column: str = "question",
    answer_column: str = "answers",
    answer_type_column: str = "answer_type",
    **options: Any,
) -> DatasetDict:
    """Load questions with the splits `train` and `test` and the columns `image`, `image_id`, `question`, `answers`, `answer_type`.

    Args:
        name (`str`): `"easy-vqa"` (from the installed package), or what [`load_splits`] reads.
        image_column, question_column, answer_column (`str`): Columns to read. An answer is a string, a list of strings or
            VQAv2's list of dicts.
        answer_type_column (`str`): Column with the kind of answer; guessed as the VQA challenge does if it is missing.
        config_name, options: Of [`load_splits`].
    """
    if name == "easy-vqa":
        return load_easy_vqa()
    wanted = {"question_column": (question_column, one_text), "answer_column": (answer_column, several_texts)}
    data = load_splits(name, config_name, wanted, image_column, **options)

    splits = {}
    for split, rows in data.items():
        images = rows.select_columns(image_column).cast_column(image_column, datasets.Image(decode=False))
        images = images if image_column == "image" else images.rename_column(image_column, "image")
        answers = rows[answer_column][:]
        has_kinds = answer_type_column in rows.column_names
        given = rows[answer_type_column][:] if has_kinds else [None] * len(rows)
        kinds = [kind or answer_type_of(most_common_answer(each)) for kind, each in zip(given, answers, strict=True)]
        columns = {"image_id": picture_ids(images, "image"), "question": rows[question_column][:], "answers": answers}
        for name, values in {**columns, "answer_type": kinds}.items():
            images = images.add_column(name, values)
        splits[split] = images
    return DatasetDict(splits)


class QuestionRows(Dataset):
    """Rows of a split with questions, several of which may be about one image or clip."""

    group_column: str  # tells images or clips apart

    def __init__(self, data: datasets.Dataset):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def groups(self) -> list[str]:
        """The image or clip of every row, for [`GroupedSampler`]."""
        return list(self.data[self.group_column])


class QuestionDataset(QuestionRows, PictureRows):
    """Rows of [`load_questions`] with the image decoded and one answer chosen to train on.

    Successive questions about one image get the same picture object, by which the collator knows it again.
    """

    group_column = "image_id"

    def __init__(self, data: datasets.Dataset):
        super().__init__(data.cast_column("image", datasets.Image(decode=False)))
        self._last: tuple[str, Any] = ("", None)

    def references(self) -> list[list[str]]:
        """All answers to every question."""
        return list(self.data["answers"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.data[index]
        if item["image_id"] != self._last[0]:
            self._last = (item["image_id"], decode_image(item["image"], index, self.decode_size))
        return {**item, "image": self._last[1], "answer": most_common_answer(item["answers"])}


class QuestionCollator:
    """Batch questions through the processor; questions about the same picture object share one, where the model can.

    Args:
        processor (`ProcessorMixin`): Of MaMMUT, or of a model that chats.
        with_answers (`bool`): Supervise the answers (training), or end where they begin (generation).

    Raises:
        ValueError: If the processor knows no questions.
    """

    def __init__(self, processor: ProcessorMixin, with_answers: bool = True):
        self.processor, self.with_answers = processor, with_answers
        self.chats = getattr(processor, "chat_template", None) is not None
        if not self.chats and not hasattr(processor, "question_template"):
            raise ValueError(
                f"`processor` is a {type(processor).__name__}, which knows no questions: take a MaMMUT or a VW-LMM checkpoint."
            )

    def __call__(self, items: Sequence[dict[str, Any]]) -> Any:
        if self.chats:
            return self._conversations(items)
        kind = "video" if "video" in items[0] else "image"
        visuals = list({id(item[kind]): item[kind] for item in items}.values())  # the same object: the same picture
        position = {id(visual): index for index, visual in enumerate(visuals)}
        batch = self.processor(
            **{f"{kind}s": visuals},
            questions=[item["question"] for item in items],
            answers=[item["answer"] for item in items] if self.with_answers else None,
            return_tensors="pt",
        )
        batch["image_index"] = torch.tensor([position[id(item[kind])] for item in items])
        return batch

    def _conversations(self, items: Sequence[dict[str, Any]]) -> Any:
        """A question without an image is asked of the language model alone; several images stand before it."""
        processor: Any = self.processor
        images = [self._pictures(item) for item in items]
        turns: list[list[dict[str, Any]]] = [
            [
                {
                    "role": "user",
                    "content": [{"type": "image"}] * len(pictures) + [{"type": "text", "text": item["question"]}],
                }
            ]
            for item, pictures in zip(items, images, strict=True)
        ]
        padding = {"padding": True, "return_tensors": "pt"}
        if self.with_answers:
            for turn, item in zip(turns, items, strict=True):
                turn.append({"role": "assistant", "content": [{"type": "text", "text": item["answer"]}]})
            return processor.encode_conversations(turns, images, padding_side="right", **padding)
        prompts = [processor.apply_chat_template(turn, add_generation_prompt=True) for turn in turns]
        return processor(images=images if any(images) else None, text=prompts, padding_side="left", **padding)

    @staticmethod
    def _pictures(item: dict[str, Any]) -> list[Any]:
        if "video" in item:
            raise ValueError("A model that chats sees pictures, no clips; got a `video`.")
        pictures = item.get("image")
        if pictures is None:
            return []
        return list(pictures) if isinstance(pictures, (list, tuple)) else [pictures]


__all__ = [
    "QuestionCollator", "QuestionDataset", "QuestionRows", "answer_type_of", "load_questions", "most_common_answer",
]  # fmt: skip
