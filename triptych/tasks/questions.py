"""Open-ended questions about pictures and clips, and those of POPE that ask for yes or no."""

import json
import string
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from triptych.data.media_folder import MediaFolder
from triptych.data.questions import answer_type_of, most_common_answer
from triptych.data.rows import one_text, several_texts
from triptych.data.splits import read_split
from triptych.data.video_questions import read_video_questions
from triptych.evaluation.generator import Generator
from triptych.evaluation.vqa_accuracy import answer_accuracy
from triptych.evaluation.yes_no_f1 import YesNoF1, means_yes
from triptych.tasks.layouts import (
    IMAGE_COLUMNS,
    VisualRows,
    field,
    find_column,
    find_file,
    read_json,
    read_texts,
    refuse_columns,
    stored_image,
)


def _vqa_rows(questions: Path, annotations: Path, split: str, folder: Path) -> Iterator[dict[str, Any]]:
    """VQAv2 and OK-VQA: questions in one file, answers in another, pictures called after COCO's numbers."""
    answers = {
        field(each, "question_id", annotations): each
        for each in read_json(annotations, ["annotations"])["annotations"]
    }
    pictures = MediaFolder(folder)
    for question in read_json(questions, ["questions"])["questions"]:
        number, image = field(question, "question_id", questions), int(field(question, "image_id", questions))
        if number not in answers:
            raise ValueError(f"{annotations} has no answer to question {number} of {questions.name}.")
        yield {
            "image": stored_image(pictures.find(f"COCO_{split}2014_{image:012d}", f"{image:012d}", str(image))),
            "question": field(question, "question", questions),
            "answers": several_texts(field(answers[number], "answers", annotations)),
            "answer_type": answers[number].get("answer_type"),
        }


def _gqa_rows(path: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """GQA: one file, by the questions' numbers."""
    pictures = MediaFolder(folder)
    for question in read_json(path).values():
        types = question.get("types", {})
        yield {
            "image": stored_image(pictures.find(str(field(question, "imageId", path)))),
            "question": field(question, "question", path),
            "answers": [field(question, "answer", path)],
            "answer_type": types.get("structural"),
        }


def _list_rows(path: Path, entries: Sequence[dict[str, Any]], folder: Path) -> Iterator[dict[str, Any]]:
    """TextVQA and VizWiz: one list of questions with ten answers each."""
    pictures = MediaFolder(folder)
    for entry in entries:
        image = entry.get("image") or field(entry, "image_id", path)
        yield {
            "image": stored_image(pictures.find(str(image))),
            "question": field(entry, "question", path),
            "answers": several_texts(field(entry, "answers", path)),
            "answer_type": entry.get("answer_type"),
        }


def _folder_rows(folder: Path, split: str) -> list[dict[str, Any]] | None:
    """The rows of a folder in a benchmark's own layout, or nothing if it is in none."""
    if (folder / f"{split}_qa.json").is_file():
        return list(read_video_questions(folder, split))
    if questions := find_file(folder, [f"*OpenEnded_mscoco_{split}*_questions.json"]):
        annotations = find_file(folder, [f"*mscoco_{split}*_annotations.json"])
        if annotations is None:
            raise ValueError(
                f"There is no *mscoco_{split}*_annotations.json below {folder}, which answers {questions.name}."
            )
        return list(_vqa_rows(questions, annotations, split, folder))
    if path := find_file(folder, [f"{split}_balanced_questions.json", f"{split}_all_questions.json"]):
        return list(_gqa_rows(path, folder))
    if path := find_file(folder, [f"TextVQA_*_{split}.json"]):
        return list(_list_rows(path, read_json(path, ["data"])["data"], folder))
    if path := find_file(folder, [f"{split}.json"]):
        return list(_list_rows(path, read_json(path), folder))
    for pattern in ("*_qa.json", "*_questions.json", "TextVQA_*.json"):
        if found := sorted(path.name for path in folder.rglob(pattern)):
            raise ValueError(f"{folder} has no questions of `split` {split!r}, only {', '.join(found[:5])}.")
    return None


def _table_rows(
    source: str, split: str, image_column: str | None, question_column: str | None, answer_column: str | None
) -> Any:
    data = read_split(source, split)
    columns = data.column_names
    image_column = find_column(image_column, IMAGE_COLUMNS, columns, "image_column", source)
    question_column = find_column(question_column, ("question",), columns, "question_column", source)
    answer_column = find_column(answer_column, ("answers", "answer", "label"), columns, "answer_column", source)
    questions = read_texts(data[question_column], one_text, question_column)
    answers = read_texts(data[answer_column], several_texts, answer_column)
    kinds = [data[name] for name in ("answer_type", "category") if name in columns]
    rows = data.select_columns([image_column])
    rows = rows if image_column == "image" else rows.rename_column(image_column, "image")
    rows = rows.add_column("question", questions).add_column("answers", answers)
    return rows.add_column("answer_type", [str(kind) for kind in kinds[0]]) if kinds else rows


class Questions:
    """The task.

    Args:
        source (`str`): A folder of VQAv2 or OK-VQA (`*OpenEnded_mscoco_val2014_questions.json` and `*mscoco_val2014_annotations.json`), GQA
            (`testdev_balanced_questions.json`), TextVQA (`TextVQA_0.5.1_val.json`), VizWiz (`val.json`), MSRVTT-QA or MSVD-QA
            (`test_qa.json`), with the pictures or clips anywhere below; or what [`read_data_set`] reads, with the columns below.
        split (`str`): To evaluate.
        image_column, question_column, answer_column (`str`, *optional*): Of tables. Default: the usual ones.
        prompt (`str`, *optional*): What the model is asked, with `{}` for the question. Default: the question.
        max_new_tokens (`int`): Of an answer.

    Raises:
        ValueError: If a file, picture, answer, split or column is missing.
    """

    name = "questions"

    def __init__(
        self,
        source: str,
        split: str = "test",
        image_column: str | None = None,
        question_column: str | None = None,
        answer_column: str | None = None,
        prompt: str | None = None,
        max_new_tokens: int = 16,
    ):
        if prompt is not None and prompt.count("{}") != 1:
            raise ValueError(f"`prompt` is {prompt!r}; expected one {{}} for the question.")
        folder = Path(source)
        rows: Any = self._folder_rows(folder, split) if folder.is_dir() else None
        if rows is None:
            rows = _table_rows(source, split, image_column, question_column, answer_column)
        else:
            columns = {
                "image_column": image_column,
                "question_column": question_column,
                "answer_column": answer_column,
            }
            refuse_columns(folder, **columns)
        self.rows = VisualRows(rows)
        self.prompt, self.max_new_tokens = prompt or "{}", max_new_tokens

    def _folder_rows(self, folder: Path, split: str) -> list[dict[str, Any]] | None:
        return _folder_rows(folder, split)

    def predict(self, generator: Generator, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Of every question the answer, the true ones, and its kind."""
        asked = [{**row, "question": self.prompt.replace("{}", row["question"])} for row in rows]
        written = generator.answers(asked, max_new_tokens=self.max_new_tokens)
        return [
            {
                "answer": answer,
                "references": row["answers"],
                "kind": row.get("answer_type") or answer_type_of(most_common_answer(row["answers"])),
            }
            for answer, row in zip(written, rows, strict=True)
        ]

    def score(self, samples: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """`vqa_accuracy`, also of every kind; and `exact_match` where every question has one answer, as GQA and MSRVTT-QA count."""
        values = {"vqa_accuracy": np.array([answer_accuracy(each["answer"], each["references"]) for each in samples])}
        if all(len(each["references"]) == 1 for each in samples):
            values["exact_match"] = np.array([_same(each["answer"], each["references"][0]) for each in samples], float)
        found = {name: float(each.mean()) for name, each in values.items()}
        return found | _by_kind("vqa_accuracy", values["vqa_accuracy"], [each["kind"] for each in samples]), values


def _by_kind(name: str, values: np.ndarray, kinds: list[str]) -> dict[str, float]:
    groups: dict[str, list[float]] = defaultdict(list)
    for value, kind in zip(values.tolist(), kinds, strict=True):
        groups[kind].append(value)
    return {f"{name}_{kind}": float(np.mean(groups[kind])) for kind in sorted(groups)} if len(groups) > 1 else {}


def _same(answer: str, reference: str) -> bool:
    """Whether two answers are equal but for capitals and punctuation, as lmms-eval's `exact_match` of GQA has it."""
    plain = str.maketrans("", "", string.punctuation)
    return answer.lower().translate(plain) == reference.lower().translate(plain)


def _pope_rows(path: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """POPE's `coco_pope_random.json`: a JSON object per line."""
    pictures = MediaFolder(folder)
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, is no JSON: {error}") from error
        text = entry.get("text") or field(entry, "question", path)
        yield {
            "image": stored_image(pictures.find(field(entry, "image", path))),
            "question": text,
            "answers": [field(entry, "label", path)],
        }


class YesNo(Questions):
    """POPE (Li et al. 2023, arXiv 2305.10355). Arguments are those of [`Questions`].

    `source` may also be a folder with `coco_pope_random.json` (the split "random") and the pictures; a table's kinds of questions are in its column
    `category`.
    """

    name = "yes-no"

    def __init__(self, source: str, split: str = "test", **options: Any):
        super().__init__(source, split, **options)
        for row, answers in enumerate(self.rows.column("answers")):
            if [answer.strip().lower() for answer in answers] not in (["yes"], ["no"]):
                raise ValueError(f"The answer of row {row} is {answers}; expected yes or no.")

    def _folder_rows(self, folder: Path, split: str) -> list[dict[str, Any]] | None:
        path = find_file(folder, [f"*pope_{split}.json", f"*pope_{split}.jsonl"])
        return super()._folder_rows(folder, split) if path is None else list(_pope_rows(path, folder))

    def score(self, samples: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """`accuracy`, `precision`, `recall`, `f1` and `yes_ratio`, and F1 of every kind."""
        metric = YesNoF1()

        def numbers(some: list[dict[str, Any]]) -> dict[str, float]:
            return metric.compute(
                predictions=[each["answer"] for each in some], references=[each["references"][0] for each in some]
            )

        kinds = sorted({each["kind"] for each in samples} - {"yes/no"})
        found = numbers(samples)
        for kind in kinds if len(kinds) > 1 else []:
            found[f"f1_{kind}"] = numbers([each for each in samples if each["kind"] == kind])["f1"]
        right = [means_yes(each["answer"]) == (each["references"][0].strip().lower() == "yes") for each in samples]
        return found, {"accuracy": np.array(right, float)}


__all__ = ["Questions", "YesNo"]
