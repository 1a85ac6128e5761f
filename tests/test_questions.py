"""Questions and answers: the metric, data sets of any layout, and the scripts that fine-tune on them."""

import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import datasets
import evaluate
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.conftest import run_card_snippet, tiny_config, tiny_mammut, tiny_mammut_processor
from triptych.data.easy_vqa import load_easy_vqa
from triptych.data.moving_emoji import (
    DIRECTIONS,
    EMOJIS,
    MovingEmojiDataset,
    held_out_direction,
    load_moving_emoji,
)
from triptych.data.orders import GroupedSampler
from triptych.data.questions import QuestionCollator, QuestionDataset, load_questions
from triptych.data.video_questions import load_video_questions
from triptych.evaluation import vqa_accuracy
from triptych.evaluation.answers import answer_questions
from triptych.evaluation.vqa_accuracy import answer_accuracy, normalize_answer
from triptych.training.captioners import ModelArguments, config_of, load_or_build


ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("answer", "normalised"),
    [
        ("Two dogs.", "2 dogs"),
        ("A  red\napple!", "red apple"),
        ("dont know", "don't know"),
        ("1,000", "1000"),
        ("3.5 miles", "3.5 miles"),
        ("black/white", "black white"),
        ("yes, it is", "yes it is"),
        ("the", ""),
        ("couldntve", "couldn't've"),
    ],
)
def test_answers_are_normalised_as_the_challenge_does(answer, normalised):
    assert normalize_answer(answer) == normalised


def test_accuracy_of_ten_humans_is_the_mean_over_nine():
    assert answer_accuracy("red", ["red"] * 10) == 1
    assert answer_accuracy("red", ["red"] * 4 + ["blue"] * 6) == 1
    # Three agree: leaving one of them out leaves 2 of 3, leaving another out leaves 3.
    assert answer_accuracy("red", ["red"] * 3 + ["blue"] * 7) == pytest.approx((3 * 2 / 3 + 7) / 10)
    assert answer_accuracy("red", ["red"] + ["blue"] * 9) == pytest.approx(0.3)
    assert answer_accuracy("green", ["red"] * 10) == 0
    assert answer_accuracy("A red", ["red"]) == 1


def test_the_metric_is_an_evaluate_module(tmp_path):
    metric = evaluate.load(vqa_accuracy.__file__, cache_dir=str(tmp_path))
    results = metric.compute(
        predictions=["yes", "2", "cat"],
        references=[["yes"], ["two"], ["dog"]],
        answer_types=["yes/no", "number", "other"],
    )
    assert results == {
        "vqa_accuracy": pytest.approx(2 / 3),
        "vqa_accuracy_number": 1.0,
        "vqa_accuracy_other": 0.0,
        "vqa_accuracy_yes/no": 1.0,
    }


def test_easy_vqa_is_the_published_one():
    data = load_easy_vqa()
    assert (len(data["train"]), len(data["test"])) == (38_575, 9_673)
    assert data["train"].cast_column("image", datasets.Image(decode=False))[0]["question"] == "what is the blue shape?"
    assert {kind: data["test"]["answer_type"].count(kind) for kind in ("yes/no", "shape", "color")} == {
        "yes/no": 7136,
        "shape": 450 + 416 + 391,
        "color": 9673 - 7136 - 1257,
    }


def write_vqa(folder: Path, count: int = 24) -> Path:
    """Eight squares of one colour with three questions each, as VQAv2 stores them, in a parquet file."""
    rng = random.Random(0)
    rows = []
    for index in range(count):
        shade = index // 3 * 4
        name, colour = [("red", (220, 30, shade)), ("blue", (30, shade, 220))][shade % 8 // 4]
        path = folder / f"{index}.png"
        Image.new("RGB", (16, 16), colour).save(path)
        rows.append(
            {
                "image": {"bytes": path.read_bytes(), "path": f"{index}.png"},
                "query": rng.choice(["what colour?", "is it red?"]),
                "humans": [{"answer": name, "answer_id": 1}] * 3 + [{"answer": "grey", "answer_id": 2}],
            }
        )
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "query": datasets.Value("string"),
            "humans": [{"answer": datasets.Value("string"), "answer_id": datasets.Value("int64")}],
        }
    )
    (folder / "data").mkdir()
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "data" / "train.parquet")
    return folder / "data"


def test_data_sets_in_vqav2s_layout(tmp_path):
    folder = write_vqa(tmp_path)
    data = load_questions(str(folder), question_column="query", answer_column="humans", eval_fraction=0.25)
    assert (len(data["train"]), len(data["test"])) == (18, 6)
    item = QuestionDataset(data["train"])[0]
    assert item["answer"] in ("red", "blue")
    assert len(item["answers"]) == 4
    assert item["answer_type"] == "other"
    assert item["image"].mode == "RGB"
    # The same pixels are the same image, and no image has questions on both sides.
    train, test = (set(QuestionDataset(data[split]).groups()) for split in ("train", "test"))
    assert (len(train), len(test)) == (6, 2)
    assert not train & test
    with pytest.raises(ValueError, match="`question_column='question'` is not a column"):
        load_questions(str(folder))


def test_msrvtt_and_msvd_layouts(tmp_path):
    for name, file_name, mapping in (("msrvtt", "video7", None), ("msvd", "abc_1_9", "abc_1_9 vid7\n")):
        folder = tmp_path / name
        (folder / "video").mkdir(parents=True)
        (folder / "video" / f"{file_name}.avi").write_bytes(b"")
        if mapping:
            (folder / "youtube_mapping.txt").write_text(mapping)
        entry = {"id": 0, "video_id": 7, "question": "who runs?", "answer": "man"}
        for split in ("train", "test"):
            (folder / f"{split}_qa.json").write_text(json.dumps([entry]))
        row = load_video_questions(str(folder))["test"][0]
        assert Path(row["video"]).stem == file_name
        assert (row["question"], row["answers"], row["answer_type"]) == ("who runs?", ["man"], "who")
    (folder / "video" / "abc_1_9.avi").unlink()
    with pytest.raises(ValueError, match="no video video7 or vid7"):
        load_video_questions(str(folder))
    with pytest.raises(ValueError, match="must be 'moving-emoji' or a folder"):
        load_video_questions("nowhere")


def test_moving_emoji_holds_combinations_out():
    data = load_moving_emoji(num_train=300, num_test=60)
    pairs = {}
    for name in ("train", "test"):
        rows = data[name].to_list()
        objects = [row["answers"][0] for row in rows if row["answer_type"] == "object"]
        directions = [row["answers"][0] for row in rows if row["answer_type"] == "direction"]
        pairs[name] = set(zip(objects, directions, strict=True))
        assert len(rows) == 3 * len(objects)
    assert not pairs["train"] & pairs["test"]
    assert all(held_out_direction(emoji) == direction for emoji, direction in pairs["test"])
    assert [[held_out_direction(emoji) for emoji in EMOJIS].count(direction) for direction in DIRECTIONS] == [6] * 4


def test_moving_emoji_clips_show_what_their_answers_say():
    dataset = MovingEmojiDataset(load_moving_emoji(num_train=20, num_test=1)["train"], image_size=48)
    for index in range(0, len(dataset), 3):
        items = [dataset[index + offset] for offset in range(3)]
        assert items[0]["video"] is items[2]["video"]  # the collator encodes it once
        clip = torch.stack([torch.tensor(list(frame.getdata()), dtype=torch.float) for frame in items[0]["video"]])
        clip = clip.reshape(32, 48, 48, 3)
        # At the start only the mover is there: its centre moves in the direction of the answer.
        changed = (clip - clip[0, 0, 0]).abs().sum(-1) > 30
        rows, columns = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
        first, second = ([(axis * m).sum() / m.sum() for axis in (columns, rows)] for m in (changed[0], changed[1]))
        dx, dy = DIRECTIONS[items[1]["answer"]]
        moved = (second[0] - first[0]) * dx + (second[1] - first[1]) * dy
        assert moved >= 0
        assert abs((second[0] - first[0]) * dy) + abs((second[1] - first[1]) * dx) < 0.5


def test_rows_of_one_group_follow_one_another_and_every_row_comes_once():
    sampler = GroupedSampler(["a", "b", "a", "c", "b", "a"], group_size=3)
    first = list(sampler)
    assert sorted(first) == list(range(6))
    groups = ["abacba"[row] for row in first]
    assert sum(left != right for left, right in itertools.pairwise(groups)) == 2
    assert list(sampler) == first
    orders = set()
    for epoch in range(10):
        sampler.set_epoch(epoch)
        orders.add(tuple(sampler))
    assert len(orders) > 3
    pairs = list(GroupedSampler([row // 4 for row in range(400)], group_size=2))
    assert sorted(pairs) == list(range(400))
    groups = [row // 4 for row in pairs]
    assert groups[::2] == groups[1::2]  # two of a group stay together ...
    assert sum(left != right for left, right in itertools.pairwise(groups[::2])) > 150  # ... the other two come later
    with pytest.raises(ValueError, match="`group_size` must be positive, got 0"):
        GroupedSampler(["a"], group_size=0)


def test_questions_about_one_picture_share_it():
    processor = tiny_mammut_processor()
    red, blue = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
    items = [{"image": image, "question": "what is it?", "answer": "red"} for image in (red, blue, red)]
    batch = QuestionCollator(processor)(items)
    assert batch["pixel_values"].shape[0] == 2
    assert batch["image_index"].tolist() == [0, 1, 0]


def test_answers_do_not_depend_on_the_batch():
    processor = tiny_mammut_processor()
    model = tiny_mammut(text_config={"vocab_size": len(processor.tokenizer), "max_position_embeddings": 40})
    with torch.no_grad():
        model.model.vision_to_text_projection.weight.mul_(10)  # so that pictures and questions change the answer
        model.model.text_model.embed_tokens.weight.mul_(10)
    rows = [
        {"image": Image.new("RGB", (16, 16), (40 * index, 0, 99)), "question": question, "answer": "red"}
        for index, question in enumerate(["what is it?", "is it a heart?", "which colour is it, red or blue?"])
    ]
    accelerator = Accelerator(cpu=True)
    one, three = (answer_questions(model, rows, processor, accelerator, size, max_new_tokens=5) for size in (1, 3))
    assert one == three
    assert len(set(one)) > 1


def test_a_checkpoint_takes_no_misspelt_override(tmp_path):
    processor = tiny_mammut_processor()
    tiny_mammut(text_config={"vocab_size": len(processor.tokenizer)}).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    args = ModelArguments(str(tmp_path), config_overrides='{"text_config": {"bidirectional_prefx": true}}')
    with pytest.raises(ValueError, match="`bidirectional_prefx` is not a field of MammutTextConfig"):
        config_of("mammut", args)
    args.config_overrides = '{"text_config": {"bidirectional_prefix": true}}'
    model, _ = load_or_build("mammut", args, config_of("mammut", args), [])
    assert model.config.text_config.bidirectional_prefix
    assert model.config.text_config.hidden_size == 32


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"`model_name_or_path` must be a Mammut checkpoint, .* is 'grr_coca'"):
        config_of("mammut", ModelArguments(str(tmp_path)))


def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


TINY = {
    "vision_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2},
    "text_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2},
}


def test_the_vqa_script_trains_reports_and_leaves_a_repository(tmp_path, monkeypatch, capsys):
    folder, output = write_vqa(tmp_path), tmp_path / "run"
    result = run(
        "finetune_vqa.py", "--output_dir", str(output), "--dataset", str(folder), "--question_column", "query",
        "--answer_column", "humans", "--config_overrides", json.dumps(TINY), "--num_epochs", "2",
        "--batch_size", "4", "--vocab_size", "300", "--num_workers", "0", "--mixed_precision", "no",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    results = json.loads((output / "eval_results.json").read_text())
    assert set(results) == {"vqa_accuracy", "vqa_accuracy_other", "num_questions"}
    rows = [json.loads(line) for line in (output / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == results["num_questions"] == 3
    assert "| all | other |" in result.stdout
    assert "| vqa_accuracy |" in (output / "README.md").read_text()
    run_card_snippet(output, tmp_path, monkeypatch)
    assert capsys.readouterr().out.startswith("['")
    assert not (output / "checkpoints").exists()
    model = AutoModelForImageTextToText.from_pretrained(output)
    processor = AutoProcessor.from_pretrained(output)
    assert model.config.contrastive_loss_weight == 0
    # Another round starts from it, with an option of the decoder changed.
    more = run(
        "finetune_vqa.py", "--output_dir", str(tmp_path / "more"), "--dataset", str(folder), "--question_column",
        "query", "--answer_column", "humans", "--model_name_or_path", str(output), "--max_steps", "2",
        "--config_overrides", '{"text_config": {"bidirectional_prefix": true}}', "--mixed_precision", "no",
        "--batch_size", "4", "--num_workers", "0",
    )  # fmt: skip
    assert more.returncode == 0, more.stderr
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "more")
    assert again.config.text_config.bidirectional_prefix
    assert len(processor.tokenizer) == again.config.text_config.vocab_size


def test_the_video_script_trains_on_clips_and_on_one_frame(tmp_path, monkeypatch, capsys):
    tiny = {**TINY, "vision_config": {**TINY["vision_config"], "image_size": 48}}
    tubes = [[[8, 16, 16], [8, 16, 16], [0, 0, 0]]]
    arguments = [
        "--num_clips", "8", "--num_test_clips", "2", "--config_overrides", json.dumps(tiny), "--tubes",
        json.dumps(tubes), "--max_steps", "2", "--batch_size", "6", "--num_workers", "0", "--mixed_precision", "no",
    ]  # fmt: skip
    for name, extra, num_frames in (("run", [], 16), ("one", ["--one_frame"], 1)):
        result = run("finetune_video_qa.py", "--output_dir", str(tmp_path / name), *arguments, *extra)
        assert result.returncode == 0, result.stderr
        assert "| all | direction |" in result.stdout
        model = AutoModelForImageTextToText.from_pretrained(tmp_path / name)
        assert model.config.vision_config.use_tubes == (name == "run")
        assert AutoProcessor.from_pretrained(tmp_path / name).num_frames == num_frames
        assert json.loads((tmp_path / name / "eval_results.json").read_text())["num_questions"] == 6
    run_card_snippet(tmp_path / "run", tmp_path, monkeypatch)
    assert capsys.readouterr().out.startswith("['")


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("vqa", ["--config_overrides", "{"], "`config_overrides` is not JSON"),
        ("vqa", ["--preset", "mammut-huge"], "Unknown preset 'mammut-huge'"),
        ("vqa", ["--config_overrides", '{"text_config": {"widht": 3}}'], "`widht` is not a field of MammutTextConfig"),
        ("vqa", ["--eval_split", "val"], "`eval_split` of 'easy-vqa' must be one of test, got 'val'"),
        ("vqa", ["--num_epochs", "0"], "`num_epochs` must be positive, got 0"),
        ("video_qa", ["--eval_split", "val"], "`eval_split='val'` says nothing about `dataset` 'moving-emoji'"),
        ("video_qa", ["--tubes", "[["], "`tubes` is not JSON"),
        ("video_qa", ["--num_frames", "0"], "`num_frames` must be at least 1, got 0"),
    ],
)
def test_bad_requests_end_with_one_clear_line(script, arguments, message, tmp_path):
    result = run(f"finetune_{script}.py", "--output_dir", str(tmp_path / "bad"), *arguments)
    assert result.returncode != 0
    assert message in result.stderr.splitlines()[-1]
