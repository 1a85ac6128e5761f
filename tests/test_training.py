"""The training script end to end on a few pictures, exact resume, and what evaluation reports."""

import csv
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from tests.conftest import load_example, tiny_mammut, tiny_mammut_processor, tiny_model, tiny_processor
from tests.processes import kill_after, logged_losses
from tests.test_hub import CARD
from triptych import hub
from triptych.data.emoji_scenes import EmojiPictures
from triptych.data.pairs import ImageCaptionDataset, PairCollator, load_pairs
from triptych.evaluation.captioner import evaluate_pairs, retrieval_ranks, score_pairs, word_f1
from triptych.evaluation.retrieval_recall import ranks_of_first
from triptych.training.optimization import TrainingState, weight_decay_groups
from triptych.training.training_log import TrainingLog


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Forty squares of four colours in an imagefolder with captions."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = random.Random(0)
    colours = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "grey": (128, 128, 128)}
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "caption"])
        for index in range(40):
            name, colour = rng.choice(list(colours.items()))
            shade = tuple(min(255, max(0, value + rng.randint(-20, 20))) for value in colour)
            Image.new("RGB", (32, 32), shade).save(folder / f"{index:02}.png")
            writer.writerow([f"{index:02}.png", f"a {name} $$"])
    return folder


def command(pictures: Path, output_dir: Path, *extra: str) -> list[str]:
    options = {
        "output_dir": output_dir,
        "dataset": pictures,
        "num_epochs": 4,
        "batch_size": 4,
        "gradient_accumulation_steps": 2,
        "vocab_size": 300,
        "dropout": 0.1,
        "ema_decay": 0.9,
        "eval_epochs": 100,
        "eval_batch_size": 2,
        "checkpoint_steps": 3,
        "num_workers": 0,
        "mixed_precision": "no",
    }
    flags = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    return [sys.executable, str(ROOT / "examples" / "pretrain.py"), *flags, *extra]


def run(arguments: list[str], **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def finished(pictures, tmp_path_factory) -> Path:
    output_dir = tmp_path_factory.mktemp("runs") / "whole"
    result = run(command(pictures, output_dir))
    assert result.returncode == 0, result.stderr
    return output_dir


def test_the_script_writes_a_complete_repository(finished, pictures):
    files = {path.name for path in finished.iterdir()}
    assert {"config.json", "model.safetensors", "generation_config.json", "tokenizer.json", "README.md"} <= files
    assert {"eval_results.json", "training_log.jsonl", "modeling_grr_coca.py"} <= files
    for name in ("README.md", "training_arguments.json", "training_log.jsonl", "config.json"):
        assert str(finished.parent) not in (finished / name).read_text()
    arguments = json.loads((finished / "training_arguments.json").read_text())
    assert (arguments["output_dir"], arguments["dataset"]) == (finished.name, pictures.name)
    assert not (finished / "checkpoints").exists()
    results = json.loads((finished / "eval_results.json").read_text())
    assert results["num_eval_images"] == 2
    assert results["perplexity"] == pytest.approx(math.exp(results["caption_loss"]))
    assert len(logged_losses(finished)) == 4 * 5  # 38 pairs, 9 batches of 4, two to a step
    assert logged_losses(finished)[-1] < logged_losses(finished)[0]


def test_a_killed_run_resumes_to_the_same_losses(finished, pictures, tmp_path):
    output_dir = tmp_path / "killed"
    arguments = command(pictures, output_dir)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    # Killed after the second checkpoint (mid-epoch, with accumulation), some steps later.
    kill_after(arguments, output_dir, 8, environment)
    assert not (output_dir / "config.json").exists()
    result = run([*arguments, "--resume", "True"])
    assert result.returncode == 0, result.stderr
    assert "at step" in result.stdout
    assert logged_losses(output_dir) == logged_losses(finished)
    assert (output_dir / "eval_results.json").read_text() == (finished / "eval_results.json").read_text()


def test_the_report_shows_the_split_that_training_held_out(finished, pictures):
    result = run(
        [
            sys.executable,
            str(ROOT / "examples" / "report.py"),
            str(finished),
            "--num_queries",
            "2",
            "--dataset",
            str(pictures),
        ]
    )
    assert result.returncode == 0, result.stderr
    recalls = [float(text) for text in re.findall(r"(?:reloaded model|after training): ([\d.]+)", result.stdout)]
    assert recalls[0] == recalls[1]
    assert recalls[2] == recalls[3]
    html = (finished / "report.html").read_text()
    assert "(2 pairs)" in html
    assert html.count('class="card') == 2
    assert (finished / "report.png").stat().st_size > 10_000


def test_the_report_shows_scenes_where_a_training_saw_some(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "scenes")
    path = tmp_path / "scenes" / "training_arguments.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dataset": "openmoji-scenes"}))
    script = [sys.executable, str(ROOT / "examples" / "report.py"), str(tmp_path / "scenes")]
    result = run([*script, "--num_captions", "3", "--num_queries", "2"])
    assert result.returncode == 0, result.stderr
    html = (tmp_path / "scenes" / "report.html").read_text()
    assert f"({len(EmojiPictures('test', 16, pair_share=0.0, thing_repeats=1))} pairs)" in html
    assert html.count('class="card') == 3


def test_the_report_shows_answers_of_a_second_repository(finished, pictures, tmp_path):
    processor = tiny_mammut_processor(max_length=80)
    model = tiny_mammut(text_config={"vocab_size": len(processor.tokenizer), "max_position_embeddings": 80})
    arguments = {
        "dataset": "easy-vqa", "dataset_config": None, "image_column": "image", "question_column": "question",
        "answer_column": "answers", "answer_type_column": "answer_type", "eval_split": "test", "max_answer_tokens": 4,
        "group_column": None, "on_bad_row": "error", "seed": 0,
    }  # fmt: skip
    results = {"vqa_accuracy": 0.5, "vqa_accuracy_shape": 0.25, "num_questions": 9673}
    extra_files = {"training_arguments.json": arguments, "eval_results.json": results}
    hub.save_repository(tmp_path / "questions", model, processor, CARD, extra_files)
    script = [sys.executable, str(ROOT / "examples" / "report.py"), str(finished), "--num_captions", "2"]
    script += ["--dataset", str(pictures)]
    result = run([*script, "--questions", str(tmp_path / "questions"), "--num_questions", "5"])
    assert result.returncode == 0, result.stderr
    html = (finished / "report.html").read_text()
    assert html.count('class="card') == 2 + 5
    assert html.count("?</div>") == 5
    assert "<td>shape</td><td>0.2500</td>" in html


def test_the_script_runs_on_two_processes(pictures, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = command(pictures, tmp_path / "two", "--batch_size", "2", "--num_epochs", "2")
    result = run([*launch, *arguments[1:]], ACCELERATE_USE_CPU="true")
    assert result.returncode == 0, result.stderr
    # 38 pairs, two processes times two pairs, two batches to a step, and one evaluation of the whole split
    assert len(logged_losses(tmp_path / "two")) == 2 * 5
    assert json.loads((tmp_path / "two" / "eval_results.json").read_text())["num_eval_images"] == 2


def test_a_run_from_scratch_refuses_the_checkpoints_of_an_earlier_one(pictures, tmp_path):
    (tmp_path / "run" / "checkpoints" / "step-00000500").mkdir(parents=True)
    result = run(command(pictures, tmp_path / "run"))
    assert result.returncode != 0
    assert "is a checkpoint of an earlier run" in result.stderr.splitlines()[-1]


def test_training_goes_on_from_a_finished_repository(finished, pictures, tmp_path):
    arguments = command(pictures, tmp_path / "more", "--model_name_or_path", str(finished))
    result = run([*arguments, "--num_epochs", "1", "--vocab_size", "2048"])  # the default: it brings its tokenizer
    assert result.returncode == 0, result.stderr
    assert logged_losses(tmp_path / "more")[0] < logged_losses(finished)[0]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--preset", "grr-coca-huge"], "Unknown preset 'grr-coca-huge'"),
        (["--resume", "True"], "There is no checkpoint to resume from"),
        (["--caption_column", "text"], "is not a column"),
        (["--batch_size", "64"], "needs at least 64 training rows, the data set has 38"),
    ],
)
def test_bad_requests_end_with_one_clear_line(pictures, tmp_path, extra, message):
    result = run(command(pictures, tmp_path / "bad", *extra))
    assert result.returncode != 0
    assert message in result.stderr.splitlines()[-1]
    assert not (tmp_path / "bad" / "config.json").exists()


def test_a_corrupt_picture_is_named(pictures, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in pictures.iterdir():
        (broken / path.name).write_bytes(path.read_bytes()[:70] if path.name == "07.png" else path.read_bytes())
    result = run(command(broken, tmp_path / "stopped"))
    assert result.returncode != 0
    assert "07.png" in result.stderr
    result = run(command(broken, tmp_path / "skipped", "--on_corrupt_image", "skip", "--num_epochs", "1"))
    assert result.returncode == 0, result.stderr
    card = (tmp_path / "skipped" / "README.md").read_text()
    assert "corrupt images skipped: 1" in card


def test_the_ablation_trains_every_number_of_cross_attention_layers(pictures, tmp_path, monkeypatch, capsys):
    script = [sys.executable, str(ROOT / "examples" / "ablate_cross_attention.py"), "--output_dir", str(tmp_path)]
    arguments = command(pictures, tmp_path, "--num_epochs", "1")[4:]  # without the other script and its folder
    result = run([*script, "--cross_layers", "1", "4", *arguments])
    assert result.returncode == 0, result.stderr
    for count in (1, 4):
        config = json.loads((tmp_path / f"{count}-layers" / "mammut-tiny" / "seed-0" / "config.json").read_text())
        assert config["model_type"] == "mammut"
        assert config["text_config"]["cross_attn_every"] == 4 / count
    runs = json.loads((tmp_path / "ablation.json").read_text())
    row = next(line for line in result.stdout.splitlines() if line.startswith("| 4 "))
    assert row.split("|")[2].strip() == f"{runs['4'][0]['text_to_image_recall@1']:.3f}"
    assert (tmp_path / "ablation.md").read_text() in result.stdout
    monkeypatch.setattr("sys.argv", [*script[1:], "--cross_layers", "3"])
    with pytest.raises(SystemExit):
        load_example("ablate_cross_attention").main()
    assert "3 cross-attention layers cannot be spread evenly over the 4 decoder layers" in capsys.readouterr().err


def test_recalls_and_ranks_on_a_known_case():
    similarity = np.array([[0.9, 0.1, 0.2], [0.8, 0.5, 0.6], [0.3, 0.3, 0.3]])
    assert ranks_of_first(similarity, [[0], [1], [2]]).tolist() == [0, 2, 2]  # ties count against the model
    embeds = torch.eye(12)
    swapped = embeds[[1, 0, *range(2, 12)]]
    ranks = retrieval_ranks(embeds, swapped, [str(number) for number in range(12)])
    assert ranks["text_to_image_rank"].tolist() == [11, 11] + [0] * 10  # the swapped ones tie with all others
    # Of equal captions every image is right, and there is one candidate: 11 for the image that nothing fits.
    ranks = retrieval_ranks(embeds, embeds[[0, 0, *range(2, 12)]], ["same", "same", *map(str, range(10))])
    assert not ranks["text_to_image_rank"].any()
    assert ranks["image_to_text_rank"].tolist() == [0, 10] + [0] * 10


def test_broken_embeddings_rank_last():
    ranks = ranks_of_first(np.full((3, 3), float("nan")), [[0], [1], [2]])
    assert ranks.tolist() == [2, 2, 2]


def test_evaluation_counts_no_stand_in_for_a_corrupt_image(pictures):
    processor = tiny_processor()
    model = tiny_model(text_config={"vocab_size": len(processor.tokenizer)})
    rows = (
        load_pairs(str(pictures), eval_fraction=0.25)["test"]
        .cast_column("image", datasets.Image(decode=False))
        .to_list()
    )
    rows[3]["image"] = {"bytes": b"broken", "path": None}
    dataset = ImageCaptionDataset(datasets.Dataset.from_list(rows), on_corrupt_image="skip")
    result = evaluate_pairs(model, dataset, PairCollator(processor), Accelerator(cpu=True), batch_size=3)
    assert result["num_eval_images"] == 9


def test_word_f1_on_known_cases():
    assert word_f1("woman judge: dark skin tone", "woman judge: dark skin tone") == 1
    assert word_f1("a cat", "a dog") == pytest.approx(0.5)
    assert word_f1("", "a dog") == 0


def test_evaluation_equals_one_pass_over_the_whole_split(pictures):
    # Perplexity must be weighted by tokens, whatever the batch size; recalls rank the whole split.
    processor = tiny_processor()
    model = tiny_model(text_config={"vocab_size": len(processor.tokenizer)})
    dataset = ImageCaptionDataset(load_pairs(str(pictures), eval_fraction=0.25)["test"])
    collator, accelerator = PairCollator(processor), Accelerator(cpu=True)
    results = [evaluate_pairs(model, dataset, collator, accelerator, batch_size=size) for size in (3, 10)]
    batch = collator([dataset[index] for index in range(len(dataset))])
    batch.pop("num_skipped")
    with torch.no_grad():
        outputs = model(**batch)
    for result in results:
        assert result["perplexity"] == pytest.approx(outputs.caption_loss.exp().item(), rel=1e-4)
        assert result["num_eval_images"] == 10
    assert results[0]["text_to_image_recall@5"] == results[1]["text_to_image_recall@5"]
    assert results[1]["contrastive_loss"] == pytest.approx(outputs.contrastive_loss.item(), rel=1e-4)
    assert results[0]["contrastive_batch_size"] == 3
    scores = score_pairs(model, dataset, collator, accelerator, batch_size=3)
    assert np.isnan(scores["contrastive_loss"]).tolist() == [False] * 9 + [True]
    assert scores["num_tokens"].tolist() == (batch["labels"][:, 1:] != -100).sum(dim=1).tolist()


def test_pairs_of_mammut_score_as_its_forward_pass_does(pictures):
    processor = tiny_mammut_processor()
    model = tiny_mammut(text_config={"vocab_size": len(processor.tokenizer)}).eval()
    dataset = ImageCaptionDataset(load_pairs(str(pictures), eval_fraction=0.25)["test"])
    collator = PairCollator(processor)
    scores = score_pairs(model, dataset, collator, Accelerator(cpu=True), batch_size=10)
    batch = collator([dataset[index] for index in range(len(dataset))])
    batch.pop("num_skipped")
    with torch.no_grad():
        outputs = model(**batch)
    found = scores["caption_loss"].sum() / scores["num_tokens"].sum()
    assert found == pytest.approx(outputs.caption_loss.item(), rel=1e-4)
    assert scores["contrastive_loss"].mean() == pytest.approx(outputs.contrastive_loss.item(), rel=1e-4)


def test_decay_reaches_matrices_only():
    model = tiny_model()
    decayed, free = sorted(weight_decay_groups(model, 0.1, 1e-3), key=lambda group: -group["weight_decay"])
    assert decayed["weight_decay"] == 0.1
    assert free["weight_decay"] == 0
    assert all(parameter.ndim >= 2 for parameter in decayed["params"])
    assert any(parameter is model.model.logit_scale for parameter in free["params"])
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))


def test_half_a_line_at_the_end_of_a_log_does_not_stop_a_resumed_run(tmp_path):
    path = tmp_path / "training_log.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"step": 3, "lo')
    log = TrainingLog(path, Accelerator(cpu=True), TrainingState(step=2), steps_per_epoch=4, resume=True)
    log.record({"loss": float("nan")})
    lines = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in lines] == [(1, 2.0), (2, 1.0), (2, None)]
    path.write_text('{"step": 1, "lo\n{"step": 2, "loss": 1.0}\n')
    with pytest.raises(ValueError, match=r"Line 1 of .*is no JSON"):
        TrainingLog(path, Accelerator(cpu=True), TrainingState(step=2), steps_per_epoch=4, resume=True)
