"""Questions with several answers to choose from: ScienceQA, MMBench, SEED-Bench, and tables like theirs."""

import csv
import re
import sys
from base64 import b64decode
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from triptych.data.media_folder import MediaFolder
from triptych.data.rows import several_texts
from triptych.data.splits import read_split
from triptych.evaluation.generator import Generator
from triptych.tasks.layouts import (
    IMAGE_COLUMNS,
    VisualRows,
    field,
    find_column,
    find_file,
    read_json,
    refuse_columns,
    stored_image,
)


LETTERS = "ABCDEFGH"
_ASKED = "Answer with the option's letter from the given choices directly."  # as LLaVA-1.5 is asked (arXiv 2310.03744)


def _science_rows(folder: Path, problems: Path, split: str) -> Iterator[dict[str, Any]]:
    """ScienceQA: the questions that have a picture, `<split>/<number>/image.png`."""
    content, splits = read_json(problems), find_file(folder, ["pid_splits.json"])
    if splits is None:
        raise ValueError(f"There is no pid_splits.json below {folder}, beside {problems.name}.")
    for number in read_json(splits, [split])[split]:
        problem = content[number]
        if not problem.get("image"):
            continue
        places = [each / number / problem["image"] for each in (folder / split, folder / "images" / split)]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise ValueError(f"There is no picture {places[0]} of question {number}.")
        yield {
            "image": stored_image(found),
            "question": problem["question"],
            "hint": problem.get("hint"),
            "choices": list(problem["choices"]),
            "answer": int(problem["answer"]),
            "category": problem.get("subject"),
        }


def _mmbench_rows(path: Path) -> Iterator[dict[str, Any]]:
    """MMBench: a table with pictures in base64; a number above a million is a turned copy of the question below it."""
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    images = {row["index"]: row["image"] for row in rows}
    for row in rows:
        stored = images.get(row["image"], row["image"])  # some hold the number of the row with their picture
        choices = [row[letter] for letter in LETTERS if row.get(letter) and row[letter] != "nan"]
        if not row.get("answer") or row["answer"] not in LETTERS[: len(choices)]:
            raise ValueError(
                f"{path}, question {row['index']}: `answer` is {row.get('answer')!r}; its test split has none."
            )
        yield {
            "image": {"path": None, "bytes": b64decode(stored)},
            "question": row["question"],
            "hint": row.get("hint") if row.get("hint") != "nan" else None,
            "choices": choices,
            "answer": LETTERS.index(row["answer"]),
            "category": row.get("category"),
            "group": int(row["index"]) % 1_000_000,
        }


def _seed_rows(path: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """SEED-Bench: its questions about pictures."""
    content = read_json(path, ["questions"])
    names = {number: name for name, number in content.get("question_type", {}).items()}
    pictures = MediaFolder(folder)
    for question in content["questions"]:
        if question.get("data_type", "image") != "image":
            continue
        yield {
            "image": stored_image(pictures.find(field(question, "data_id", path))),
            "question": field(question, "question", path),
            "choices": [question[f"choice_{letter}"] for letter in "abcd"],
            "answer": LETTERS.index(field(question, "answer", path)),
            "category": names.get(question.get("question_type_id")),
        }


def _table_row(row: dict[str, Any], place: int) -> dict[str, Any]:
    """`choices`, or a column per choice; the answer as a letter or a number from 0."""
    if row.get("choices") is not None:
        choices = list(row["choices"])
    else:
        named = [row.get(f"choice_{letter.lower()}", row.get(letter)) for letter in LETTERS]
        choices = [choice for choice in named if choice not in (None, "", "nan")]
    answer = row.get("answer")
    if isinstance(answer, str):
        answer = LETTERS.find(answer.strip().upper()) if len(answer.strip()) == 1 else -1
    if len(choices) < 2 or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise ValueError(
            f"Row {place} has {len(choices)} choices and the answer {row.get('answer')!r}; expected at least two and the letter or number of one."
        )
    kept = {name: row[name] for name in ("hint", "category") if row.get(name)}
    return {
        "image": row["image"],
        "question": row["question"],
        "choices": several_texts(choices),
        "answer": answer,
        **kept,
    }


class _TableRows(VisualRows):
    """Rows of a table, whose form differs from one benchmark to the next; those without a picture are left out, as in ScienceQA."""

    def __init__(self, data: Any, image_column: str):
        super().__init__(data if image_column == "image" else data.rename_column(image_column, "image"))
        self.stored = self.stored.filter(bool, input_columns=["image"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _table_row(super().__getitem__(index), index)


def chosen_letter(answer: str, choices: list[str]) -> int:
    """Which choice an answer in words names: by its letter, in front or alone, else by its text; -1 if by neither."""
    words = answer.strip()
    letters = LETTERS[: len(choices)]
    if found := re.match(rf"\(?([{letters}])(?:[).:,\s]|$)", words) or re.search(
        rf"\b(?:answer|option)\b\W+(?:is\W+)?\(?([{letters}])\b", words
    ):
        return letters.index(found.group(1))
    return next(
        (number for number, choice in enumerate(choices) if choice.strip().lower() == words.lower().rstrip(".")), -1
    )


class Choices:
    """The task. A model that chats is shown the choices with letters and names one; of others the likeliest answer counts.

    Args:
        source (`str`): A folder of ScienceQA (`problems.json`, `pid_splits.json`; the questions with a picture), MMBench
            (`MMBench_DEV_EN.tsv`, the split "dev") or SEED-Bench (`SEED-Bench.json`), with the pictures anywhere below; or what
            [`read_data_set`] reads, with `question`, `choices` (or `A`, `B`, ..., or `choice_a`, ...) and `answer`.
        split (`str`): To evaluate.
        image_column (`str`, *optional*): Of tables. Default: the usual one.

    Raises:
        ValueError: If a file, picture, split or column is missing, or an answer is none of the choices.
    """

    name = "choices"

    def __init__(self, source: str, split: str = "test", image_column: str | None = None):
        folder = Path(source)
        rows: list[dict[str, Any]] | None = None
        if folder.is_dir():
            if path := find_file(folder, ["problems.json"]):
                rows = list(_science_rows(folder, path, split))
            elif path := find_file(folder, [f"*{split.upper()}*.tsv", f"*{split}*.tsv"]):
                rows = list(_mmbench_rows(path))
            elif path := find_file(folder, ["SEED-Bench*.json"]):
                if split != "test":
                    raise ValueError(f"{path} has no splits; `split` {split!r} means nothing.")
                rows = list(_seed_rows(path, folder))
            elif tables := sorted(path.name for path in folder.rglob("*.tsv")):
                raise ValueError(f"{folder} has no table of `split` {split!r}, only {', '.join(tables[:5])}.")
        if rows is not None:
            refuse_columns(folder, image_column=image_column)
            self.rows = VisualRows(rows)
        else:
            data = read_split(source, split)
            find_column(None, ("question",), data.column_names, "question", source)
            self.rows = _TableRows(
                data, find_column(image_column, IMAGE_COLUMNS, data.column_names, "image_column", source)
            )

    def predict(self, generator: Generator, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Of every question which choice was taken, and which is right."""
        if generator.chats:
            written = generator.answers([{**row, "question": _lettered(row)} for row in rows], max_new_tokens=8)
            taken = [chosen_letter(answer, row["choices"]) for answer, row in zip(written, rows, strict=True)]
        else:
            said = [(row, choice) for row in rows for choice in row["choices"]]
            asked = [{"image": row["image"], "question": row["question"], "answer": choice} for row, choice in said]
            found = iter([value for value, _ in generator.log_likelihoods(asked)])
            taken = [int(np.argmax([next(found) for _ in row["choices"]])) for row in rows]
        return [
            {
                "taken": number,
                "answer": row["answer"],
                **{key: row[key] for key in ("category", "group") if row.get(key) is not None},
            }
            for number, row in zip(taken, rows, strict=True)
        ]

    def score(self, samples: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """`accuracy`, also of every category; `circular_accuracy` where questions come turned: those right in every turn (MMBench)."""
        right = np.array([sample["taken"] == sample["answer"] for sample in samples], float)
        found: dict[str, Any] = {"accuracy": float(right.mean())}
        categories: dict[str, list[float]] = defaultdict(list)
        turns: dict[int, list[float]] = defaultdict(list)
        for sample, value in zip(samples, right.tolist(), strict=True):
            if "category" in sample:
                categories[sample["category"]].append(value)
            if "group" in sample:
                turns[sample["group"]].append(value)
        if len(turns) < len(samples) and turns:
            found["circular_accuracy"] = float(np.mean([min(each) for each in turns.values()]))
        found |= {f"accuracy_{name}": float(np.mean(values)) for name, values in sorted(categories.items())}
        found["unread"] = float(np.mean([sample["taken"] < 0 for sample in samples]))
        return found, {"accuracy": right}


def _lettered(row: dict[str, Any]) -> str:
    hint = [row["hint"]] if row.get("hint") else []
    options = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, row["choices"], strict=False)]
    return "\n".join([*hint, row["question"], *options, _ASKED])


__all__ = ["LETTERS", "Choices", "chosen_letter"]
