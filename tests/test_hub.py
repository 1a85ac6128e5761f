"""Repositories: complete, loadable where triptych is not, and never half-written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import triptych
from tests.conftest import (
    random_batch,
    tiny_config,
    tiny_mammut,
    tiny_mammut_processor,
    tiny_model,
    tiny_processor,
    tiny_vw_lmm,
    tiny_vw_lmm_processor,
)
from triptych import hub


CARD = {
    "name": "tiny",
    "repo": "tiny",
    "license": "cc-by-sa-4.0",
    "language": "en",
    "dataset_ids": None,
    "summary": "A tiny model.",
    "training": {"data": "none"},
    "evaluation_data": "nothing",
    "metrics": {"num_eval_images": 4, "contrastive_loss": 1.0},
    "data_statement": "No data.",
    "limits": "All.",
    "sources": "None.",
}

# Runs where `import triptych` fails: a fresh interpreter that ignores site hooks of the editable install.
STRANGER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("triptych", "modeling", "processing"):
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Blocker())
import torch
from transformers import (
    AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForPreTraining,
    AutoModelForZeroShotImageClassification, AutoProcessor,
)
repo, batch_file, out_file = sys.argv[1:]
batch = torch.load(batch_file, weights_only=True)
found = {}
processor = AutoProcessor.from_pretrained(repo, trust_remote_code=True)
"""

GRR_COCA_STRANGER = """
for auto_class in (AutoModelForImageTextToText, AutoModelForPreTraining):
    model = auto_class.from_pretrained(repo, trust_remote_code=True)
    found[auto_class.__name__] = model(**batch).logits
    found[f"{auto_class.__name__}.generate"] = model.generate(pixel_values=batch["pixel_values"], num_beams=2)
batch.pop("labels")
for auto_class in (AutoModel, AutoModelForZeroShotImageClassification):
    found[auto_class.__name__] = auto_class.from_pretrained(repo, trust_remote_code=True)(**batch).logits_per_image
found["text"] = processor(text="a red heart", return_tensors="pt")["input_ids"]
assert AutoConfig.from_pretrained(repo, trust_remote_code=True).model_type == "grr_coca"
"""

MAMMUT_STRANGER = """
model = AutoModelForImageTextToText.from_pretrained(repo, trust_remote_code=True)
questions = processor(questions=["what is it?", "is it a heart?"], return_tensors="pt")
found["answers"] = model.generate(**questions, pixel_values=batch["pixel_values"], max_new_tokens=4)
clip = (batch["pixel_values"][0, :, None] * torch.arange(8)[:, None, None] * 10).transpose(0, 1)
inputs = processor(videos=clip.clip(0, 255).byte(), questions="what moves?", return_tensors="pt")
found["video"] = model.generate(**inputs, max_new_tokens=4)
encoder = AutoModel.from_pretrained(repo, trust_remote_code=True)
text = processor(text=["a red heart", "a cat"], return_tensors="pt")
found["similarity"] = encoder(**text, pixel_values=batch["pixel_values"]).logits_per_image
assert AutoConfig.from_pretrained(repo, trust_remote_code=True).model_type == "mammut"
"""

VW_LMM_STRANGER = """
from transformers import pipeline
from PIL import Image
model = AutoModelForImageTextToText.from_pretrained(repo, trust_remote_code=True)
messages = [{"role": "user", "content": [{"type": "image", "path": "red.png"}, {"type": "text", "text": "what is it?"}]}]
inputs = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
found["answer"] = model.generate(**inputs, max_new_tokens=4)
found["words"] = model.get_visual_words(inputs["pixel_values"], top_k=2).ids
pipe = pipeline("image-text-to-text", model=repo, trust_remote_code=True)
found["pipeline"] = [row["generated_text"] for row in pipe(text=messages, max_new_tokens=4, return_full_text=False)]
assert type(model.model.vision_tower).__name__ == "GrrCocaVisionModel"
"""

FOUND = """
assert not [name for name in sys.modules if name.split(".")[0] == "triptych"]
torch.save(found, out_file)
"""


def ask_a_stranger(code: str, repo: Path, batch: dict, folder: Path) -> dict[str, torch.Tensor]:
    torch.save(batch, folder / "batch.pt")
    command = [sys.executable, "-c", STRANGER + code + FOUND, str(repo), str(folder / "batch.pt")]
    subprocess.run([*command, str(folder / "out.pt")], check=True, cwd=folder, timeout=300)
    return torch.load(folder / "out.pt", weights_only=True)


@pytest.mark.parametrize("save_from", ["head", "base"])
def test_a_stranger_loads_it_through_every_auto_class_and_gets_the_same_numbers(tmp_path, save_from, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    model, processor = tiny_model("grr-axial"), tiny_processor()
    repo = hub.save_repository(tmp_path / "repo", model if save_from == "head" else model.model, processor, CARD)
    files = {path.name for path in repo.iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "tokenizer.json", "processor_config.json"} <= files
    assert {
        "modeling_grr_coca.py",
        "configuration_grr_coca.py",
        "layers.py",
        "losses.py",
        "processing_grr_coca.py",
    } <= files
    auto_map = json.loads((repo / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModel"] == "modeling_grr_coca.GrrCocaModel"

    batch = random_batch(model.config)
    found = ask_a_stranger(GRR_COCA_STRANGER, repo, batch, tmp_path)
    with torch.no_grad():
        expected = model(**batch)
        if save_from == "head":
            assert torch.equal(found["AutoModelForImageTextToText"], expected.logits)
            assert torch.equal(found["AutoModelForPreTraining"], expected.logits)
            ids = model.generate(pixel_values=batch["pixel_values"], num_beams=2)
            assert torch.equal(found["AutoModelForImageTextToText.generate"], ids)
        dual = model.model(batch["input_ids"], batch["pixel_values"], batch["attention_mask"])
    assert torch.equal(found["AutoModel"], dual.logits_per_image)
    assert torch.equal(found["AutoModelForZeroShotImageClassification"], dual.logits_per_image)
    assert torch.equal(found["text"], processor(text="a red heart", return_tensors="pt")["input_ids"])


@torch.no_grad()
def test_a_stranger_asks_mammut_about_images_and_videos(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    processor = tiny_mammut_processor(num_frames=8)
    text = {"vocab_size": len(processor.tokenizer), "max_position_embeddings": 40}
    model = tiny_mammut("video", text_config=text)
    repo = hub.save_repository(tmp_path / "repo", model, processor, CARD)
    pixel_values = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = ask_a_stranger(MAMMUT_STRANGER, repo, {"pixel_values": pixel_values}, tmp_path)

    questions = processor(questions=["what is it?", "is it a heart?"], return_tensors="pt")
    assert torch.equal(found["answers"], model.generate(**questions, pixel_values=pixel_values, max_new_tokens=4))
    clip = (pixel_values[0, :, None] * torch.arange(8)[:, None, None] * 10).transpose(0, 1)
    inputs = processor(videos=clip.clip(0, 255).byte(), questions="what moves?", return_tensors="pt")
    assert torch.equal(found["video"], model.generate(**inputs, max_new_tokens=4))
    texts = processor(text=["a red heart", "a cat"], return_tensors="pt")
    expected = model.model(**texts, pixel_values=pixel_values).logits_per_image
    assert torch.equal(found["similarity"], expected)


@torch.no_grad()
def test_a_stranger_asks_vw_lmm_through_the_pipeline(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (30, 20), "red").save("red.png")
    processor = tiny_vw_lmm_processor(image_seq_length=16)
    model = tiny_vw_lmm(
        vision_config=tiny_config().vision_config.to_dict(),
        text_config={"vocab_size": len(processor.tokenizer), "max_position_embeddings": 256},
        image_token_id=processor.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    repo = hub.save_repository(tmp_path / "repo", model, processor, CARD)
    found = ask_a_stranger(VW_LMM_STRANGER, repo, {}, tmp_path)

    messages = [
        {"role": "user", "content": [{"type": "image", "path": "red.png"}, {"type": "text", "text": "what is it?"}]}
    ]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = model.generate(**inputs, max_new_tokens=4)
    assert torch.equal(found["answer"], ids)
    assert torch.equal(found["words"], model.get_visual_words(inputs["pixel_values"], top_k=2).ids)
    new = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert found["pipeline"] == new


def test_exporting_leaves_no_trace_on_later_saves(tmp_path):
    model, processor = tiny_model(), tiny_processor()
    hub.save_repository(tmp_path / "repo", model, processor, CARD)
    model.save_pretrained(tmp_path / "plain")
    processor.save_pretrained(tmp_path / "plain")
    assert not list((tmp_path / "plain").glob("*.py"))
    for path in (tmp_path / "plain").glob("*.json"):
        assert "auto_map" not in path.read_text(), path.name


def test_a_failed_export_leaves_nothing_that_looks_valid(tmp_path):
    incomplete = {key: value for key, value in CARD.items() if key != "limits"}
    with pytest.raises(Exception, match="limits"):
        hub.save_repository(tmp_path / "repo", tiny_model(), tiny_processor(), incomplete)
    assert list(tmp_path.iterdir()) == []


def test_replacing_a_repository_keeps_foreign_files_and_never_shows_a_mixture(tmp_path, monkeypatch):
    repo = hub.save_repository(tmp_path / "repo", tiny_model(), tiny_processor(), CARD)
    (repo / "notes.txt").write_text("mine")
    moves = []
    replace = hub.os.replace

    def interrupted(source, target):
        if len(moves) == 3:
            raise KeyboardInterrupt
        moves.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(hub.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        hub.save_repository(repo, tiny_model(seed=1), tiny_processor(), CARD)
    assert not (repo / "config.json").exists()
    monkeypatch.undo()
    hub.save_repository(repo, tiny_model(seed=1), tiny_processor(), CARD)
    assert (repo / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]
    loaded = triptych.GrrCocaForConditionalGeneration.from_pretrained(repo)
    assert torch.equal(loaded.lm_head.weight, tiny_model(seed=1).lm_head.weight)


def test_the_card_states_licence_numbers_and_chance(tmp_path):
    repo = hub.save_repository(
        tmp_path / "repo", tiny_model(), tiny_processor(), CARD, {"eval_results.json": {"a": 1}}
    )
    card = (repo / "README.md").read_text()
    assert card.startswith("---\n")
    assert "license: cc-by-sa-4.0" in card
    assert "| contrastive_loss | 1 |" in card
    assert "0.2500" in card
    assert json.loads((repo / "eval_results.json").read_text()) == {"a": 1}


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "repo").write_text("")
    with pytest.raises(ValueError, match=r"`folder` must be a folder"):
        hub.save_repository(tmp_path / "repo", tiny_model(), tiny_processor(), CARD)
