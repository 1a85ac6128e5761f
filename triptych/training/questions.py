"""Questions and answers about images: any VQA data set, as the model wants it, and accuracy on it."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import DatasetDict, load_dataset
from torch.utils.data import DataLoader, Dataset, Sampler, Subset
from tqdm.auto import tqdm
from transformers import ProcessorMixin

from triptych.metrics.vqa_accuracy import VqaAccuracy
from triptych.training.data import decode_image, hold_out, picture_ids
from triptych.training.easy_vqa import load_easy_vqa


def answer_type_of(answer: str) -> str:
    """The VQA challenge's kinds of answers: "yes/no", "number" or "other"."""
    text = answer.strip().lower()
    if text in ("yes", "no"):
        return "yes/no"
    return "number" if text.replace(".", "", 1).isdigit() else "other"


def most_common_answer(answers: Sequence[str]) -> str:
    """The answer to train on: the most frequent one, the first of several."""
    return Counter(answers).most_common(1)[0][0]


def _answers_of(value: Any) -> list[str]:
    """A column's answers as strings: one string, a list of strings, or VQAv2's list of `{"answer": ...}`."""
    if isinstance(value, str):
        return [value]
    return [item["answer"] if isinstance(item, dict) else item for item in value]


def load_questions(
    name: str,
    config_name: str | None = None,
    image_column: str = "image",
    question_column: str = "question",
    answer_column: str = "answers",
    answer_type_column: str = "answer_type",
    eval_split: str = "test",
    eval_fraction: float = 0.05,
    seed: int = 0,
) -> DatasetDict:
    """Load questions with the splits `train` and `test` and the columns `image`, `image_id`, `question`, `answers`, `answer_type`.

    Args:
        name (`str`): `"easy-vqa"` (from the installed package), a folder of parquet or image files, or a Hub data set.
        config_name (`str`, *optional*): Configuration of a Hub data set.
        image_column, question_column, answer_column (`str`): Columns to read. An answer is a string, a list of strings or
            VQAv2's list of dicts.
        answer_type_column (`str`): Column with the kind of answer; guessed as the VQA challenge does if it is missing.
        eval_split (`str`): Split to evaluate on. If there is none of this name, a fixed share of the images is held out.
        eval_fraction (`float`): That share.
        seed (`int`): Seed of that split.

    Raises:
        ValueError: If the data set has no training split or lacks a column.
    """
    if name == "easy-vqa":
        return load_easy_vqa()
    path = Path(name)
    if path.is_dir():
        kind = "parquet" if any(path.rglob("*.parquet")) else "imagefolder"
        data = load_dataset(kind, data_dir=str(path))
    else:
        data = load_dataset(name, config_name)
    if "train" not in data:
        raise ValueError(f"Data set {name!r} has no split 'train', only {sorted(data)}.")
    for argument, column in (
        ("image_column", image_column),
        ("question_column", question_column),
        ("answer_column", answer_column),
    ):
        if column not in data["train"].column_names:
            raise ValueError(
                f"`{argument}={column!r}` is not a column of {name!r}; it has {', '.join(data['train'].column_names)}."
            )

    def columns(row: dict[str, Any]) -> dict[str, Any]:
        answers = _answers_of(row[answer_column])
        kind = row.get(answer_type_column) or answer_type_of(most_common_answer(answers))
        return {"question": row[question_column], "answers": answers, "answer_type": kind}

    splits = {}
    for target, source in (("train", "train"), ("test", eval_split)):
        if source not in data:
            continue
        split = data[source].cast_column(image_column, datasets.Image(decode=False))
        split = split.rename_column(image_column, "image") if image_column != "image" else split
        ids = datasets.Dataset.from_dict({"image_id": picture_ids(split, "image")})
        texts = split.map(columns, remove_columns=split.column_names, desc=f"{target} questions")
        splits[target] = datasets.concatenate_datasets([split.select_columns("image"), ids, texts], axis=1)
    if "test" not in splits:
        return hold_out(splits["train"], splits["train"]["image_id"], eval_fraction, seed)
    return DatasetDict(splits)


class GroupedSampler(Sampler[int]):
    """A random order in which a few rows of one group follow one another, so that a batch encodes their picture once.

    Args:
        groups (`Sequence`): Group of every row: its image or clip.
        group_size (`int`): Most rows of a group that stay together; the others come at another place of the epoch.
        seed (`int`): Seed of the order, which differs from epoch to epoch.

    Raises:
        ValueError: If `group_size` is not positive.
    """

    def __init__(self, groups: Sequence, group_size: int, seed: int = 0):
        if group_size < 1:
            raise ValueError(f"`group_size` must be positive, got {group_size}.")
        rows: dict[Any, list[int]] = {}
        for row, group in enumerate(groups):
            rows.setdefault(group, []).append(row)
        self.rows = list(rows.values())
        self.group_size = group_size
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return sum(len(rows) for rows in self.rows)

    def set_epoch(self, epoch: int) -> None:
        """Change the order; call it before iterating."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self.seed}-{self.epoch}")
        parts = []
        for rows in self.rows:
            shuffled = rng.sample(rows, len(rows))
            parts += [shuffled[start : start + self.group_size] for start in range(0, len(rows), self.group_size)]
        rng.shuffle(parts)
        for part in parts:
            yield from part


class QuestionDataset(Dataset):
    """Rows of [`load_questions`] with the image decoded and one answer chosen to train on.

    Successive questions about one image get the same picture object, by which the collator knows it again.
    """

    def __init__(self, data: datasets.Dataset):
        self.data = data.cast_column("image", datasets.Image(decode=False))
        self._last: tuple[str, Any] = ("", None)

    def __len__(self) -> int:
        return len(self.data)

    def groups(self) -> list[str]:
        """The image of every row, for [`GroupedSampler`]."""
        return list(self.data["image_id"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.data[index]
        if item["image_id"] != self._last[0]:
            self._last = (item["image_id"], decode_image(item["image"], index))
        return {**item, "image": self._last[1], "answer": most_common_answer(item["answers"])}


class QuestionCollator:
    """Batch questions through the processor; questions about the same picture object share one.

    Args:
        processor (`ProcessorMixin`): Of the model.
        with_answers (`bool`): Supervise the answers (training), or end where they begin (generation).
    """

    def __init__(self, processor: ProcessorMixin, with_answers: bool = True):
        self.processor = processor
        self.with_answers = with_answers

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
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


@torch.no_grad()
def answer_questions(
    model: torch.nn.Module,
    dataset: Dataset,
    processor: ProcessorMixin,
    batch_size: int,
    accelerator: Accelerator,
    max_new_tokens: int = 10,
    num_workers: int = 0,
) -> list[str]:
    """Answer every question of a data set greedily; processes share the work.

    Returns:
        `list[str]`: One answer per row, in order, on every process.
    """
    answerer = accelerator.unwrap_model(model)
    was_training = answerer.training
    answerer.eval()
    answers: list[str] = []
    with accelerator.split_between_processes(list(range(len(dataset)))) as indices:  # type: ignore[arg-type]
        loader = DataLoader(
            Subset(dataset, indices),
            batch_size=batch_size,
            collate_fn=QuestionCollator(processor, with_answers=False),
            num_workers=num_workers,
        )
        for batch in tqdm(
            loader, desc="answer", unit="batch", leave=False, disable=not accelerator.is_local_main_process
        ):
            batch = batch.to(answerer.device)
            ids = answerer.generate(**batch, max_new_tokens=max_new_tokens, num_beams=1, do_sample=False)
            new = ids[:, batch["input_ids"].shape[1] :]
            answers.extend(text.strip() for text in processor.batch_decode(new, skip_special_tokens=True))
    answerer.train(was_training)
    return gather_object(answers)


def evaluate_answers(answers: list[str], data: datasets.Dataset) -> dict[str, float]:
    """VQA accuracy of answers to the rows of `data`, in all and per answer type, and the number of questions."""
    results = VqaAccuracy().compute(
        predictions=answers, references=list(data["answers"]), answer_types=list(data["answer_type"])
    )
    return {**results, "num_questions": len(answers)}


__all__ = [
    "GroupedSampler",
    "QuestionCollator",
    "QuestionDataset",
    "answer_questions",
    "answer_type_of",
    "evaluate_answers",
    "load_questions",
    "most_common_answer",
]
