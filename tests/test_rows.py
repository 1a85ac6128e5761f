"""Dirty rows: read where they have one meaning, else refused with their place, or left out and counted."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from PIL import Image

from triptych.data.pairs import load_pairs
from triptych.data.questions import load_questions
from triptych.data.rows import one_text, several_texts, text_or_texts


ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("value", "expected"), [("a cat", "a cat"), (3, "3"), (2.5, "2.5"), (1e20, "1e+20"), ("  a ", "  a "), (0, "0")]
)
def test_texts_and_numbers_have_one_meaning(value, expected):
    assert one_text(value) == expected
    assert several_texts(value) == [expected]
    assert text_or_texts([value, "b"]) == [expected, "b"]


@pytest.mark.parametrize("value", [None, "", "  \n", True, float("nan"), float("inf"), {"raw": "a"}, b"a", object()])
def test_what_is_no_text_is_refused(value):
    for read in (one_text, several_texts, text_or_texts):
        with pytest.raises(ValueError, match="expected a text that is not blank"):
            read(value)
    with pytest.raises(ValueError, match="expected a text"):
        several_texts(["a", value])


def test_no_text_at_all_is_refused():
    with pytest.raises(ValueError, match="expected at least one text"):
        several_texts([])
    assert several_texts([{"answer": "yes", "answer_id": 1}, {"answer": 2}]) == ["yes", "2"]


def picture_folder(folder: Path, captions: list, kind: str) -> Path:
    folder.mkdir()
    rows = [{"file_name": f"{9 - index}.png", "caption": caption} for index, caption in enumerate(captions)]
    for index, row in enumerate(rows):
        Image.new("RGB", (8, 8), (20 * index, 0, 0)).save(folder / row["file_name"])
    if kind == "csv":  # a text over two lines, so that lines and rows differ, and a byte order mark
        rows[0]["caption"] = '"two\nlines"'
        lines = ["\ufefffile_name,caption", *(f"{row['file_name']},{row['caption'] or ''}" for row in rows)]
    else:
        lines = list(map(json.dumps, rows))
    (folder / f"metadata.{kind}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize(("kind", "line"), [("csv", 6), ("jsonl", 4)])
@pytest.mark.parametrize("caption", [None, "   "])
def test_a_bad_caption_is_named_as_its_file_numbers_it(tmp_path, kind, line, caption):
    folder = picture_folder(tmp_path / "data", ["a", "b", "c", caption, "e"], kind)
    with pytest.raises(ValueError, match=rf"metadata\.{kind}, line {line}: `caption` is .*, expected a text"):
        load_pairs(str(folder))
    data = load_pairs(str(folder), on_bad_row="skip")
    texts = [text for rows in data.values() for text in rows["caption"]]
    assert sorted(texts) == sorted(["two\nlines" if kind == "csv" else "a", "b", "c", "e"])


def table(folder: Path, **columns) -> str:
    """A parquet file of pictures and columns."""
    folder.mkdir(exist_ok=True)
    count = len(next(iter(columns.values())))
    images = [Image.new("RGB", (8, 8), (20 * index, 0, 0)) for index in range(count)]
    data = datasets.Dataset.from_dict({"image": images, **columns}).cast_column("image", datasets.Image())
    data.to_parquet(folder / "rows.parquet")
    return str(folder / "rows.parquet")


@pytest.mark.parametrize(
    ("captions", "expected"),
    [([1, 2, 3], ["1", "2", "3"]), ([1.5, 2.0, 3.0], ["1.5", "2", "3"]), ([["a", "b"], ["c"]], [["a", "b"], ["c"]])],
)
def test_captions_of_every_type(tmp_path, captions, expected):
    data = load_pairs(table(tmp_path, caption=captions), eval_fraction=0.5)
    assert sorted([*data["train"]["caption"], *data["test"]["caption"]]) == expected


@pytest.mark.parametrize(
    ("captions", "bad"),
    [([["a"], ["b", None]], 1), ([["a"], ["b", ""]], 1), ([["a"], []], 1), ([[{"raw": "a"}], [{"raw": "b"}]], 0)],
)
def test_captions_that_are_none_are_named(tmp_path, captions, bad):
    with pytest.raises(ValueError, match=rf"rows\.parquet, row {bad}: `caption` is"):
        load_pairs(table(tmp_path, caption=captions))


@pytest.mark.parametrize(
    ("columns", "column"),
    [
        ({"question": ["a?", None, "c?"], "answers": ["x", "y", "z"]}, "question"),
        ({"question": ["a?", "b?", "c?"], "answers": ["x", None, "z"]}, "answers"),
        ({"question": ["a?", "b?", "c?"], "answers": [["x"], [], ["z"]]}, "answers"),
    ],
)
def test_questions_and_answers_that_are_none_are_named(tmp_path, columns, column):
    name = table(tmp_path, **columns)
    with pytest.raises(ValueError, match=rf"rows\.parquet, row 1: `{column}` is"):
        load_questions(name)
    data = load_questions(name, on_bad_row="skip", eval_fraction=0.5)
    assert sorted([*data["train"]["question"], *data["test"]["question"]]) == ["a?", "c?"]


def test_numbers_are_answers_and_yes_or_no_is_not_guessed(tmp_path):
    data = load_questions(table(tmp_path, question=["how many?"] * 3, answers=[1, 2, 3]), eval_fraction=0.4)
    assert sorted([*data["train"]["answers"], *data["test"]["answers"]]) == [["1"], ["2"], ["3"]]
    with pytest.raises(ValueError, match="row 0: `answers` is True"):
        load_questions(table(tmp_path, question=["is it?"] * 2, answers=[True, False]))


def test_nothing_but_bad_rows_is_said(tmp_path):
    with pytest.raises(ValueError, match="holds no row that can be read"):
        load_pairs(table(tmp_path, caption=["", " "]), on_bad_row="skip")


def test_a_script_names_the_row_before_it_trains_a_tokenizer(tmp_path):
    folder = picture_folder(tmp_path / "data", ["a", "b", None, "d"], "csv")
    command = [sys.executable, str(ROOT / "examples" / "pretrain.py"), "--dataset", str(folder), "--output_dir", "out"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert "metadata.csv, line 5: `caption` is None" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out" / "training_log.jsonl").exists()
