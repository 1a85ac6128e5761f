"""Dirty rows: read where they have one meaning, else refused with their place, or left out and counted."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import datasets
import pytest
from PIL import Image

from triptych.data.conversations import load_conversations
from triptych.data.detection import DetectionDataset, load_detection
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


# Conversations

TURNS = [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a cat"}]


def conversation_file(folder: Path, rows: list, suffix: str = "json") -> str:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8), "red").save(folder / name)
    text = json.dumps(rows) if suffix == "json" else "\n" + "\n".join(map(json.dumps, rows))
    (folder / f"data.{suffix}").write_text("\ufeff" + text, encoding="utf-8")
    return str(folder / f"data.{suffix}")


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_conversations_that_have_one_meaning(tmp_path, suffix):
    two = [{"from": "human", "value": "<image><image>\nhow many?"}, {"from": "gpt", "value": 2}]
    rows = [{"image": "a.png", "conversations": TURNS}, {"image": ["a.png", "b.png"], "conversations": two}]
    data = load_conversations(conversation_file(tmp_path, rows, suffix))
    assert [len(data[index]["images"]) for index in range(2)] == [1, 2]
    assert data[1]["messages"][1] == {"role": "assistant", "content": "2"}
    assert data.lengths()[1] > data.lengths()[0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "a.png", "conversations": []}, "neither `messages` nor `conversations`"),
        ({"image": "a.png", "conversations": TURNS[1:]}, "the first turn must be a user's"),
        ({"conversations": [TURNS[1], TURNS[0]]}, "the first turn must be a user's"),
        ({"messages": [{"role": "system", "content": "Be short."}]}, "the first turn must be a user's"),
        ({"image": "a.png", "conversations": [TURNS[0], {"from": "gpt", "value": None}]}, "turn 1 is None, expected"),
        ({"image": "a.png", "conversations": [TURNS[0], {"from": "gpt", "value": " "}]}, "turn 1 is ' ', expected"),
        ({"image": "a.png", "conversations": [TURNS[0], {"from": "gpt"}]}, "'value' is wrong"),
        ({"conversations": TURNS}, "hold 1 `<image>`, but it has 0 images"),
        ({"image": ["a.png", "b.png"], "conversations": TURNS}, "hold 1 `<image>`, but it has 2 images"),
    ],
)
def test_conversations_that_are_none_are_named_or_left_out(tmp_path, row, message):
    good = {"image": "a.png", "conversations": TURNS}
    name = conversation_file(tmp_path, [good, row, good], "jsonl")
    with pytest.raises(ValueError, match=rf"data\.jsonl, line 3, cannot be read: .*{message}"):
        load_conversations(name)
    data = load_conversations(name, on_bad_row="skip")
    assert [len(item["images"]) for item in data] == [1, 1]


def test_a_file_without_conversations_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"holds no conversation\. It is empty"):
        load_conversations(conversation_file(tmp_path, []))


# Boxes


def coco(folder: Path, entries: list, **image) -> dict[str, str]:
    picture = Image.new("RGB", (64, 48))
    exif = Image.Exif()
    exif[274] = 6
    picture.save(folder / "turned.jpg", exif=exif)
    described = {"id": 1, "file_name": "turned.jpg", "width": 64, "height": 48, **image}
    content = {"images": [described], "annotations": entries, "categories": [{"id": 3, "name": "bus"}]}
    (folder / "boxes.json").write_text("\ufeff" + json.dumps(content), encoding="utf-8")
    return {"train_annotations": str(folder / "boxes.json"), "eval_annotations": str(folder / "boxes.json")}


BOX = {"id": 9, "image_id": 1, "category_id": 3, "bbox": [40, 5, 20, 10]}


def test_boxes_turn_with_their_picture(tmp_path):
    data = load_detection(str(tmp_path), **coco(tmp_path, [BOX]))
    row = DetectionDataset(data.splits["test"], data.categories)[0]
    assert row["image"].size == (48, 64)
    assert row["annotations"][0]["bbox"] == [33, 40, 10, 20]  # 48 - 5 - 10 from the left
    data = load_detection(str(tmp_path), **coco(tmp_path, [BOX], width=48, height=64))  # of the upright picture
    assert DetectionDataset(data.splits["test"], data.categories)[0]["annotations"][0]["bbox"] == [40, 5, 20, 10]
    data = load_detection(str(tmp_path), **coco(tmp_path, [BOX], width=100))
    with pytest.raises(ValueError, match=r"turned\.jpg is 48 x 64 pixels, but its `width` and `height` are 100 x 48"):
        DetectionDataset(data.splits["test"], data.categories)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 77}, "`image_id` 77 is no image of the file"),
        ({"category_id": 4}, "`category_id` 4 is no category"),
        ({"bbox": []}, "`bbox` must be left, top, width and height, got \\[\\]"),
        ({"bbox": None}, "`bbox` must be left, top, width and height, got None"),
        ({"bbox": [1, 2, 3, float("nan")]}, "`bbox` must hold finite numbers"),
    ],
)
def test_annotations_that_say_nothing_are_named(tmp_path, change, message):
    files = coco(tmp_path, [BOX, {**BOX, "id": 10, **change}])
    with pytest.raises(ValueError, match=rf"boxes\.json, annotation 10: {message}"):
        load_detection(str(tmp_path), **files)
    data = load_detection(str(tmp_path), **files, on_bad_row="skip")
    assert len(data.splits["train"][0]["objects"]["bbox"]) == 1


def test_classes_of_a_file_with_a_byte_order_mark(tmp_path):
    (tmp_path / "novel.txt").write_text("\ufeffbus\n", encoding="utf-8")
    with pytest.raises(ValueError, match="nothing is left to train on"):  # the name was read right
        load_detection(str(tmp_path), **coco(tmp_path, [BOX]), novel_classes=str(tmp_path / "novel.txt"))


def test_tars_of_webdataset_are_read_by_the_ends_of_their_files(tmp_path):
    for index in range(4):
        Image.new("RGB", (9, 9), (60 * index, 0, 0)).save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_text(f"caption {index}")
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "0000.tar", "w") as shard:
        for path in sorted(tmp_path.glob("*.*")):
            shard.add(path, path.name)
    data = load_pairs(str(tmp_path / "shards"), image_column="png", caption_column="txt")
    rows = [row for split in data.values() for row in split]
    assert sorted(row["txt"] for row in rows) == [f"caption {index}" for index in range(4)]
    assert all(row["png"].getpixel((0, 0))[0] == 60 * int(row["txt"][-1]) for row in rows)
    with pytest.raises(
        ValueError, match=r"`image_column='image'` is not a column of .* it has png, txt, __key__, __url__"
    ):
        load_pairs(str(tmp_path / "shards"))
