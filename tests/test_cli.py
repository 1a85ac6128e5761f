"""The `triptych` command on checkpoints of all three models."""

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.conftest import PAIRS, save_pair
from triptych import pipeline
from triptych.cli import app


@pytest.fixture(scope="module", params=PAIRS)
def checkpoint(request, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp(request.param)
    save_pair(request.param, folder)
    for index, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (30, 20), colour).save(folder / f"{index}.png")
    return str(folder)


def invoke(*arguments: str) -> str:
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 0, outcome.output
    return outcome.stdout


def test_captions_as_text_and_json(checkpoint):
    pictures = [f"{checkpoint}/{index}.png" for index in range(3)]
    options = ["--model", checkpoint, "--max-new-tokens", "4", "--num-beams", "1", "--batch-size", "2"]
    found = json.loads(invoke("caption", *pictures, *options, "--json"))
    pipe = pipeline("image-to-text", checkpoint)
    expected = pipe(pictures, max_new_tokens=4, generate_kwargs={"num_beams": 1, "do_sample": False})
    assert [row["caption"] for row in found] == [rows[0]["generated_text"] for rows in expected]
    assert [row["image"] for row in found] == pictures
    assert invoke("caption", pictures[0], *options) == f"{pictures[0]}\t{found[0]['caption']}\n"


def test_answers_with_their_probability(checkpoint):
    options = ["--model", checkpoint, "--max-new-tokens", "4", "--top", "2"]
    found = json.loads(invoke("ask", f"{checkpoint}/0.png", "what is it?", "how?", *options, "--json"))
    assert [row["question"] for row in found] == ["what is it?", "how?"]
    assert all(len(row["answers"]) == 2 for row in found)
    assert all(0 <= answer["score"] <= 1 for row in found for answer in row["answers"])
    lines = invoke("ask", f"{checkpoint}/0.png", "what is it?", *options).splitlines()
    assert [line.split("\t")[0] for line in lines] == ["what is it?"] * 2


def test_what_a_model_cannot_do_is_one_line(checkpoint):
    if "vw_lmm" not in checkpoint:
        found = json.loads(invoke("retrieve", "a red heart", checkpoint, "--model", checkpoint, "--json"))
        assert [row["cosine"] for row in found] == sorted((row["cosine"] for row in found), reverse=True)
        return
    outcome = CliRunner().invoke(app, ["retrieve", "a red heart", checkpoint, "--model", checkpoint])
    assert outcome.exit_code == 2
    assert "retrieval needs a grr_coca or mammut" in outcome.output
    assert "Traceback" not in outcome.output


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("caption", "--model --prompt --num-beams --max-new-tokens --batch-size --json"),
        ("ask", "--model --top --max-new-tokens --json"),
        ("retrieve", "--model --top --batch-size --json"),
        ("visual-words", "--model --output --top-k --num-heat-maps --json"),
        (
            "convert",
            "--revision --preset --config --tokenizer --no-processor --pif --vision --verify --max-shard-size --dry-run",
        ),
        ("push", "--private --revision --pull-request --message --dry-run --json"),
    ],
)
def test_every_command_explains_its_options(command, options):
    outcome = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}, color=False)
    for option in options.split():
        assert option in outcome.stdout


def test_broken_weights_are_one_line(tmp_path):
    save_pair("grr_coca", tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    outcome = CliRunner().invoke(app, ["caption", str(tmp_path / "a.png"), "-m", str(tmp_path)])
    assert outcome.exit_code == 2
    assert "cannot be loaded" in outcome.output
    assert len(outcome.stderr.strip().splitlines()) == 1
