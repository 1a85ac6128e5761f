"""transformers' own Trainer and TRL's SFTTrainer on all three models, through the scripts that users read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.conftest import save_pair, vw_lmm_pair
from tests.test_hub import ask_a_stranger
from triptych.data.conversations import ConversationCollator


ROOT = Path(__file__).parents[1]


def run(script: str, *arguments: str, folder: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / script), *arguments, "--bf16", "False", "--logging_steps", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr


def losses_of(folder: Path) -> list[float]:
    (state,) = folder.glob("checkpoint-*/trainer_state.json")
    return [row["loss"] for row in json.loads(state.read_text())["log_history"] if "loss" in row]


def picture_folder(folder: Path, rows: list[dict]) -> None:
    folder.mkdir()
    for index in range(len(rows)):
        picture = Image.new("RGB", (20, 20), ("red", "green", "blue")[index % 3])
        picture.putpixel((0, 0), (index, 0, 0))  # no two alike: rows of one picture are held out together
        picture.save(folder / f"{index}.png")
    lines = [json.dumps({"file_name": f"{index}.png", **row}) + "\n" for index, row in enumerate(rows)]
    (folder / "metadata.jsonl").write_text("".join(lines))


TRAINING = ("--output_dir", "out", "--max_steps", "4", "--per_device_train_batch_size", "4", "--eval_strategy", "no")


CHECKPOINT = """
found["logits"] = AutoModelForImageTextToText.from_pretrained(repo, trust_remote_code=True)(**batch).logits
"""


def test_captions_with_the_trainer(tmp_path, monkeypatch):
    picture_folder(tmp_path / "data", [{"caption": f"a {colour} square"} for colour in ("red", "green", "blue")] * 14)
    run("trainer_grr_coca.py", "--dataset", "data", *TRAINING, folder=tmp_path)
    losses = losses_of(tmp_path / "out")
    assert losses[-1] < losses[0]
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    inputs = processor(images=Image.new("RGB", (20, 20)), text="a red", return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=3).shape[0] == 1
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")  # also one from the middle of the training
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    found = ask_a_stranger(CHECKPOINT, checkpoint, dict(inputs), tmp_path)
    with torch.no_grad():
        assert torch.equal(found["logits"], model(**inputs).logits)


def test_questions_with_the_trainer(tmp_path):
    rows = [{"question": "which colour?", "answers": colour} for colour in ("red", "green", "blue")] * 14
    picture_folder(tmp_path / "data", rows)
    small = '{"vision_config": {"image_size": 32, "patch_size": 16}}'
    run("trainer_mammut.py", "--dataset", "data", "--config_overrides", small, *TRAINING, folder=tmp_path)
    losses = losses_of(tmp_path / "out")
    assert losses[-1] < losses[0]
    model, processor = (
        auto.from_pretrained(tmp_path / "out") for auto in (AutoModelForImageTextToText, AutoProcessor)
    )
    inputs = processor(images=Image.new("RGB", (20, 20)), questions="which colour?", return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=3).shape[0] == 1


@pytest.fixture
def conversations(tmp_path) -> Path:
    """A VW-LMM checkpoint, and a file of conversations beside it."""
    save_pair("vw_lmm", tmp_path / "base")
    Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    turns = [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a red heart"}]
    (tmp_path / "data.json").write_text(json.dumps([{"image": "red.png", "conversations": turns}] * 16))
    return tmp_path


def test_conversations_with_the_trainer(conversations):
    arguments = ("--model_name_or_path", "base", "--dataset", "data.json", "--learning_rate", "1e-2")
    run("trainer_vw_lmm.py", *arguments, *TRAINING, folder=conversations)
    losses = losses_of(conversations / "out")
    assert losses[-1] < losses[0]
    before, after = (
        AutoModelForImageTextToText.from_pretrained(conversations / name).state_dict() for name in ("base", "out")
    )
    changed = {key for key, tensor in after.items() if not torch.equal(tensor, before[key])}
    assert not any("vision_tower" in key or "vm_head" in key for key in changed)
    assert any("language_model" in key for key in changed)


@pytest.mark.parametrize("columns", ["prompt and completion", "our collator"])
def test_conversations_with_trl(tmp_path, columns):
    trl = pytest.importorskip("trl")
    model, processor = vw_lmm_pair()
    question, answer = (
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a red heart"}]},
    )
    picture = Image.new("RGB", (20, 20), "red")
    rows = {
        "prompt and completion": {"prompt": [question], "completion": [answer]},
        "our collator": {
            "messages": [{**question, "content": "<image>\nwhat is it?"}, {**answer, "content": "a red heart"}]
        },
    }[columns]
    data = datasets.Dataset.from_list([{**rows, "images": [picture]}] * 8)
    data = data.cast_column("images", datasets.List(datasets.Image()))
    arguments = trl.SFTConfig(
        str(tmp_path), max_steps=6, per_device_train_batch_size=4, learning_rate=1e-2, use_cpu=True, bf16=False,
        logging_steps=1, report_to="none", gradient_checkpointing=False, max_length=None, lr_scheduler_type="constant",
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        processing_class=processor,
        data_collator=ConversationCollator(processor) if columns == "our collator" else None,
    )
    first = (
        model(**ConversationCollator(processor)([{"messages": rows["messages"], "images": [picture]}]))
        if (columns == "our collator")
        else None
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < 0.8 * losses[0]
    if first is not None:
        assert losses[0] == pytest.approx(first.language_loss.item(), rel=1e-2)
    trainer.save_model()
    assert (tmp_path / "modeling_vw_lmm.py").exists()


def test_every_script_is_short_enough_to_read():
    for name in ("grr_coca", "mammut", "vw_lmm"):
        assert len((ROOT / "examples" / f"trainer_{name}.py").read_text().splitlines()) < 80
