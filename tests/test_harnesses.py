"""lmms-eval and CLIP_benchmark themselves, offline, against `triptych evaluate`. `make test` makes their environment."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from datasets import Image as ImageFeature
from typer.testing import CliRunner

from tests.conftest import save_pair
from tests.test_benchmarks import picture, webdataset
from tests.test_tasks import clip_benchmark_folder
from triptych.cli import app


PYTHON = Path(sys.prefix) / "harnesses" / "bin" / "python"
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="`make test` makes the environment of the harnesses")

NUM_QUESTIONS = 7
ASKED = " Say it."

# Tasks of lmms-eval on local files: questions as its TextVQA has them, captions, and choices by their likelihood.
QUESTIONS = f"""\
task: local_questions
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: FILE}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function local.visual
doc_to_text: !function local.question
doc_to_target: "answer"
generation_kwargs: {{max_new_tokens: 8, until: ["ASSISTANT:"]}}
process_results: !function local.accuracy
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true, ignore_punctuation: true}}
lmms_eval_specific_kwargs:
  default: {{pre_prompt: "", post_prompt: {json.dumps(ASKED)}}}
"""
CHOICES = """\
task: local_choices
dataset_path: parquet
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_visual: !function local.visual
doc_to_text: "question"
doc_to_choice: !function local.choices
doc_to_target: !function local.right
metric_list: [{metric: acc}]
"""
FUNCTIONS = """\
from lmms_eval.tasks.textvqa.utils import textvqa_doc_to_text as question
from lmms_eval.tasks.textvqa.utils import textvqa_doc_to_visual as visual
from lmms_eval.tasks.textvqa.utils import textvqa_process_results

def accuracy(doc, result):
    return {"exact_match": textvqa_process_results({**doc, "question_id": 0}, result)["exact_match"]}

def choices(doc):
    return [doc["A"], doc["B"]]

def right(doc):
    return "AB".index(doc["answer"])
"""


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    """A table, and the tasks of lmms-eval that read it."""
    folder = tmp_path_factory.mktemp("questions")
    numbers = range(NUM_QUESTIONS)
    said = ["a red heart", "a green apple", "woman", "flag", "blue", "whale", "swims"]
    rows = {
        "image": [picture(number) for number in numbers],
        "question": [f"What is it {number}?" for number in numbers],  # begins as lmms-eval writes questions
        "answers": [[said[number % 3]] * 4 + [said[(number + 1) % 7]] * 6 for number in numbers],
        "A": [said[number] for number in numbers],
        "B": [said[(number + 2) % 7] for number in numbers],
        "answer": ["AB"[number % 2] for number in numbers],
    }
    data = Dataset.from_dict(rows).cast_column("image", ImageFeature())
    (folder / "data").mkdir()
    data.to_parquet(str(folder / "data" / "test-0.parquet"))
    (folder / "tasks").mkdir()
    for name, text in (("questions", QUESTIONS), ("choices", CHOICES)):
        text = text.replace("FILE", str(folder / "data" / "test-0.parquet"))
        (folder / "tasks" / f"{name}.yaml").write_text(text)
    (folder / "tasks" / "local.py").write_text(FUNCTIONS)
    return folder


def run(*arguments: object, folder: Path) -> None:
    """A command in the harnesses' environment."""
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HOME": str(folder / "cache"),
        "ACCELERATE_USE_CPU": "true",
    }
    done = subprocess.run(
        [PYTHON, *map(str, arguments)], cwd=folder, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def lmms_eval(
    model: Path, tasks: str, questions: Path, folder: Path, *more: str
) -> tuple[dict, dict[str, list[dict]]]:
    """Of every task its numbers, and what was found for every document."""
    run(
        "-m", "lmms_eval", "--model", "triptych", "--model_args", f"pretrained={model}", "--tasks", tasks, "--batch_size", 3,
        "--include_path", questions / "tasks", "--output_path", folder / "lmms", "--log_samples", *more, folder=folder,
    )  # fmt: skip
    (results,) = (folder / "lmms").rglob("*_results.json")
    documents = {}
    for path in (folder / "lmms").rglob("*_samples_*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        documents[path.stem.partition("_samples_")[2]] = sorted(lines, key=lambda line: line["doc_id"])
    return json.loads(results.read_text())["results"], documents


def ours(model: Path, task: str, data: Path, folder: Path, *more: str) -> tuple[dict, list[dict]]:
    done = CliRunner().invoke(
        app, ["evaluate", str(model), "--task", task, "--dataset", str(data), "-o", str(folder / "ours"), *more]
    )
    assert done.exit_code == 0, done.output
    lines = (folder / "ours" / "samples.jsonl").read_text().splitlines()[1:]
    return json.loads((folder / "ours" / "results.json").read_text())["metrics"], [json.loads(line) for line in lines]


def same_answers(theirs: dict, documents: dict, questions: Path, folder: Path) -> None:
    asked = ("--prompt", "{}" + ASKED, "--max-new-tokens", "8")
    found, samples = ours(folder / "model", "questions", questions / "data", folder / "questions", *asked)
    said = [each["filtered_resps"] for each in documents["local_questions"]]
    assert said == [sample["answer"] for sample in samples]
    assert theirs["local_questions"]["exact_match,none"] == pytest.approx(found["vqa_accuracy"])


def test_lmms_eval_gives_our_numbers_of_a_model_that_chats(tmp_path, questions):
    save_pair("vw_lmm", tmp_path / "model")
    same_answers(*lmms_eval(tmp_path / "model", "local_questions", questions, tmp_path), questions, tmp_path)


def test_lmms_eval_gives_our_numbers_of_a_captioner(tmp_path, questions):
    save_pair("mammut", tmp_path / "model")
    theirs, documents = lmms_eval(
        tmp_path / "model", "local_questions,local_choices", questions, tmp_path, "--force_simple"
    )
    same_answers(theirs, documents, questions, tmp_path)
    found, samples = ours(tmp_path / "model", "choices", questions / "data", tmp_path / "choices")
    losses = [[float(value) for value, _ in each["filtered_resps"]] for each in documents["local_choices"]]
    assert [values.index(min(values)) for values in losses] == [sample["taken"] for sample in samples]
    assert theirs["local_choices"]["acc,none"] == pytest.approx(found["accuracy"])


def test_lmms_eval_gets_captions_of_a_model_that_reads_no_questions(tmp_path, questions):
    save_pair("grr_coca", tmp_path / "model")
    _, documents = lmms_eval(tmp_path / "model", "local_questions", questions, tmp_path)
    more = ("--caption-column", "answers", "--max-new-tokens", "8")
    _, samples = ours(tmp_path / "model", "captions", questions / "data", tmp_path, *more)
    assert [each["filtered_resps"] for each in documents["local_questions"]] == [
        sample["caption"] for sample in samples
    ]


def clip_benchmark(model: Path, data: Path, folder: Path, *more: str) -> dict:
    run(
        "-m", "triptych.harnesses.clip_benchmark", "eval", "--model_type", "triptych", "--model", "ours", "--pretrained", model,
        "--dataset", "wds/local", "--dataset_root", data, "--output", folder / "theirs.json", "--num_workers", 0, "--no_amp",
        *more, folder=folder,
    )  # fmt: skip
    return json.loads((folder / "theirs.json").read_text())["metrics"]


def test_clip_benchmark_classifies_as_we_do(tmp_path):
    save_pair("grr_coca", tmp_path / "model")
    data = clip_benchmark_folder(tmp_path / "classes", per_class=5)
    theirs = clip_benchmark(tmp_path / "model", data, tmp_path)
    found, _ = ours(tmp_path / "model", "classification", data, tmp_path)
    assert theirs["acc1"] == pytest.approx(found["top1"])
    assert theirs["acc5"] == pytest.approx(found["top5"])
    assert theirs["mean_per_class_recall"] == pytest.approx(found["mean_per_class_recall"])


def test_clip_benchmark_retrieves_as_we_do(tmp_path):
    save_pair("mammut", tmp_path / "model")
    data = webdataset(tmp_path / "captions")
    theirs = clip_benchmark(tmp_path / "model", data, tmp_path, "--task", "zeroshot_retrieval", "--recall_k", "1", "5")
    found, _ = ours(tmp_path / "model", "retrieval", data, tmp_path)
    for k in (1, 5):
        assert theirs[f"image_retrieval_recall@{k}"] == pytest.approx(found[f"text_to_image_recall@{k}"])
        assert theirs[f"text_retrieval_recall@{k}"] == pytest.approx(found[f"image_to_text_recall@{k}"])
