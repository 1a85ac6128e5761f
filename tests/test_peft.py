"""Adapters on all three models, quantised loading, and the script that fine-tunes through PEFT."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from PIL import Image
from transformers import AutoModelForImageTextToText, TorchAoConfig

from tests.conftest import CAPTIONS, PAIRS, save_pair
from tests.loopback_hub import TOKEN, LoopbackHub
from tests.test_hub import CARD, ask_a_stranger
from tests.test_trainers import picture_folder
from triptych import hub
from triptych.data.pairs import load_pairs


ROOT = Path(__file__).parents[1]
PICTURES = [Image.new("RGB", (20, 20), colour) for colour in ("red", "green", "blue")]


def batch_of(model, processor) -> dict[str, torch.Tensor]:
    """Three pictures with captions, or conversations about them, and labels."""
    texts = ["a red heart", "a cat", "what is it?"]
    if model.config.model_type == "vw_lmm":
        conversations = [
            [{"role": "user", "content": "<image>\nwhat is it?"}, {"role": "assistant", "content": text}]
            for text in texts
        ]
        images = [[picture] for picture in PICTURES]
        return dict(processor.encode_conversations(conversations, images, padding=True, return_tensors="pt"))
    batch = processor(images=PICTURES, text=texts, padding=True, return_tensors="pt")
    return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


def adapter(method: str, targets) -> LoraConfig | IA3Config:
    if method == "ia3":
        return IA3Config(target_modules=targets, feedforward_modules=[])
    return LoraConfig(r=2, target_modules=targets, use_dora=method == "dora")


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]], ids=["all-linear", "named"])
@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
@pytest.mark.parametrize("name", PAIRS)
def test_adapters_train_alone_and_survive_saving_loading_and_merging(tmp_path, name, method, targets):
    model, processor = PAIRS[name]()
    batch = batch_of(model, processor)
    with torch.no_grad():
        plain = model(**batch).logits
    adapted = get_peft_model(model, adapter(method, targets)).train()
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # LoRA's second factor starts at zero, so only the second step reaches the first
        optimizer.zero_grad()
        adapted(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(adapted.parameters(), 1.0)
        optimizer.step()
    trained = [key for key, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in key or "ia3_" in key for key in trained)
    assert any(part in key for key in trained for part in ("vision_model", "vision_tower"))

    adapted.eval().save_pretrained(tmp_path)
    with torch.no_grad():
        expected = adapted(**batch).logits
        assert not torch.allclose(expected, plain, atol=1e-4)
        fresh, _ = PAIRS[name]()
        loaded = PeftModel.from_pretrained(fresh, tmp_path).eval()
        torch.testing.assert_close(loaded(**batch).logits, expected, atol=1e-5, rtol=0)
        merged = loaded.merge_and_unload()
        assert type(merged) is type(model)
        torch.testing.assert_close(merged(**batch).logits, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", PAIRS)
def test_eight_bit_weights_load_and_answer(tmp_path, name):
    torchao = pytest.importorskip("torchao.quantization")
    model, processor = PAIRS[name]()
    model.save_pretrained(tmp_path)
    config = TorchAoConfig(torchao.Int8WeightOnlyConfig())
    small = AutoModelForImageTextToText.from_pretrained(tmp_path, quantization_config=config, dtype=torch.float32)
    batch = batch_of(model, processor)
    with torch.no_grad():
        found, expected = small(**batch), model(**batch)
    assert not torch.equal(found.logits, expected.logits)
    assert (found.logits - expected.logits).norm() < 0.05 * expected.logits.norm()
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=0.05)
    assert small.generate(pixel_values=batch["pixel_values"], **prompt(batch, name), max_new_tokens=3).shape[0] == 3


def prompt(batch: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key: batch[key] for key in ("input_ids", "attention_mask")} if name == "vw_lmm" else {}


@pytest.mark.parametrize("name", PAIRS)
def test_models_prepare_for_training_on_quantised_weights(name):
    model, processor = PAIRS[name]()
    model.is_loaded_in_8bit = True  # what bitsandbytes, which needs a GPU, would say
    prepared = prepare_model_for_kbit_training(model)
    assert not any(parameter.requires_grad for parameter in prepared.parameters())
    adapted = get_peft_model(prepared, LoraConfig(r=2, target_modules="all-linear")).train()
    adapted(**batch_of(model, processor)).loss.backward()
    assert any(parameter.grad is not None for parameter in adapted.parameters())


# The script


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        str(ROOT / "examples" / "finetune_lora.py"),
        *arguments,
        "--mixed_precision",
        "no",
        "--num_workers",
        "0",
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(("name", "task"), [("grr_coca", "caption"), ("mammut", "vqa"), ("vw_lmm", "caption")])
def test_the_script_trains_an_adapter_with_a_card_of_its_own(tmp_path, name, task):
    save_pair(name, tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text("---\nlicense: mit\n---\n")
    captions = [CAPTIONS[:2] if index % 2 else CAPTIONS[2:3] for index in range(40)]  # one or two per image
    rows = [{"caption": caption, "question": "what is it?", "answers": "a cat"} for caption in captions]
    picture_folder(tmp_path / "data", rows)
    arguments = [
        "--model_name_or_path", "base", "--task", task, "--dataset", "data", "--output_dir", "adapter", "--rank", "2",
        "--max_steps", "2", "--batch_size", "4", "--dataset_license", "cc0-1.0",
    ]  # fmt: skip
    result = run(*arguments, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert load_pairs(str(tmp_path / "data"))["train"].num_rows == 38
    card = ModelCard.load(tmp_path / "adapter" / "README.md")
    assert card.data.license == "cc0-1.0"
    assert card.data.library_name == "peft"
    assert "| without the adapter | with it |" in card.text
    results = json.loads((tmp_path / "adapter" / "eval_results.json").read_text())
    assert results["with_adapter"].keys() == results["without_adapter"].keys()
    loaded = PeftModel.from_pretrained(PAIRS[name]()[0], tmp_path / "adapter")
    assert loaded.peft_config["default"].base_model_name_or_path == "base"
    assert any(parameter.abs().sum() > 0 for key, parameter in loaded.named_parameters() if "lora_B" in key)


ADAPTED = """
from peft import PeftModel
model = AutoModelForImageTextToText.from_pretrained("someone/base", trust_remote_code=True)
model = PeftModel.from_pretrained(model, "someone/adapter").eval()
processor = AutoProcessor.from_pretrained("someone/base", trust_remote_code=True)
found["logits"] = model(**batch).logits
"""


def test_base_and_adapter_travel_through_the_hub(tmp_path, monkeypatch):
    model, processor = PAIRS["grr_coca"]()
    hub.save_repository(tmp_path / "base", model, processor, CARD)
    picture_folder(tmp_path / "data", [{"caption": CAPTIONS[index % 3]} for index in range(40)])
    with LoopbackHub().running() as server:
        environment = {
            "HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
        }  # fmt: skip
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        push = [sys.executable, "-m", "triptych.cli", "push", "base", "someone/base"]
        subprocess.run(push, cwd=tmp_path, check=True, timeout=300)
        arguments = [
            "--model_name_or_path", "someone/base", "--task", "caption", "--dataset", "data", "--output_dir", "adapter",
            "--max_steps", "2", "--learning_rate", "1e-2", "--dataset_license", "cc0-1.0",
            "--hub_model_id", "someone/adapter",
        ]  # fmt: skip
        result = run(*arguments, folder=tmp_path)
        assert result.returncode == 0, result.stderr
        batch = {key: value for key, value in batch_of(model, processor).items() if key != "labels"}
        found = ask_a_stranger(ADAPTED, "someone/base", batch, tmp_path)
        published = server.repositories["someone/adapter"]
        assert published.commits[published.branches["main"]].keys() >= {"README.md", "adapter_model.safetensors"}
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
        torch.testing.assert_close(found["logits"], adapted(**batch).logits, atol=1e-5, rtol=0)
        assert not torch.allclose(found["logits"], adapted.unload()(**batch).logits, atol=1e-4)


def test_the_script_refuses_what_nobody_could_load(tmp_path):
    save_pair("grr_coca", tmp_path / "base")
    base = ("--model_name_or_path", "base", "--output_dir", "adapter")
    push = ("--hub_model_id", "someone/adapter")
    result = run(*base, "--task", "caption", *push, folder=tmp_path)
    assert "`hub_model_id` needs `base_model_id`: base is a folder here" in result.stderr
    result = run(*base, "--task", "vqa", folder=tmp_path)
    assert "is a GrrCocaProcessor, which knows no questions" in result.stderr
    assert not (tmp_path / "adapter" / "README.md").exists()


def test_an_adapter_whose_base_nobody_has_is_not_published(tmp_path):
    model, _ = PAIRS["grr_coca"]()
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    card = {
        "name": "adapter", "repo": "adapter", "license": "cc0-1.0", "summary": "One.", "training": {}, "before": {"a": 1.0},
        "metrics": {"a": 2.0}, "evaluation_data": "some rows", "data_statement": "None.", "limits": "All.",
    }  # fmt: skip
    with pytest.raises(ValueError, match="is a PeftModel: write it with `save_adapter`"):
        hub.publish(adapted, "someone/adapter")
    PAIRS["grr_coca"]()[0].save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="holds a model; give the adapter a folder of its own"):
        hub.save_adapter(tmp_path / "model", adapted, "someone/base", card)
    named = get_peft_model(
        PAIRS["grr_coca"]()[0], LoraConfig(r=2, target_modules="all-linear"), adapter_name="colours"
    )
    for _ in range(2):  # also a second time into the same folder
        folder = hub.save_adapter(tmp_path / "named", named, "someone/base", card)
        assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in folder.iterdir()}
    named.add_adapter("shapes", LoraConfig(r=2, target_modules="all-linear"))
    with pytest.raises(ValueError, match=r"2 adapters \(colours, shapes\)"):
        hub.save_adapter(tmp_path / "named", named, "someone/base", card)
    folder = hub.save_adapter(tmp_path / "adapter", adapted, str(tmp_path), card)
    with pytest.raises(ValueError, match="which nobody else has"):
        hub.files_to_publish(folder)
    folder = hub.save_adapter(tmp_path / "adapter", adapted, "someone/base", card)
    names = {path.name for path in hub.files_to_publish(folder)}
    assert names == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert ModelCard.load(folder / "README.md").data.base_model == "someone/base"
