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
    PAIRS,
    WITHOUT_TRIPTYCH,
    save_pair,
    tiny_config,
    tiny_mammut,
    tiny_mammut_processor,
    tiny_model,
    tiny_processor,
    tiny_vw_lmm,
    tiny_vw_lmm_processor,
)
from triptych import hub
from triptych.modeling.self_contained import auto_classes_of


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

STRANGER = (
    WITHOUT_TRIPTYCH
    + """
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
)

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


# Every Auto class loads the repository, and what it saves again loads once more; nothing mentions the first repository.
EVERY_CLASS = """
import json
from pathlib import Path
import transformers
torch.set_grad_enabled(False)  # with gradients, attention takes another kernel
torch.set_num_threads(1)  # and sums depend on how many share them
for name in AutoConfig.from_pretrained(repo, trust_remote_code=True).auto_map:
    if name == "AutoConfig":
        continue
    auto_class = getattr(transformers, name)
    model = auto_class.from_pretrained(repo, trust_remote_code=True)
    model.save_pretrained(name)
    processor.save_pretrained(name)
    again = auto_class.from_pretrained(name, trust_remote_code=True)
    for key, loaded in ((name, model), (f"{name} again", again)):
        for parameter in loaded.parameters():
            parameter.data = parameter.data.clone()  # aligned: else a product may differ in its last bit
        outputs = loaded(**batch)
        found[key] = next(
            outputs[part] for part in ("logits", "logits_per_image", "last_hidden_state") if outputs.get(part) is not None
        )
    if model.can_generate():
        found[f"{name} ids"] = model.generate(**batch, num_beams=2, max_new_tokens=4)
    AutoProcessor.from_pretrained(name, trust_remote_code=True)
"""


def inputs_of(model, processor) -> dict[str, torch.Tensor]:
    picture, text = Image.new("RGB", (20, 20), "red"), "what is it?"
    text = f"<image>{text}" if model.config.model_type == "vw_lmm" else text
    return dict(processor(images=picture, text=text, return_tensors="pt"))


@torch.no_grad()
@pytest.mark.parametrize("save_from", ["head", "base"])
@pytest.mark.parametrize("name", PAIRS)
def test_a_stranger_loads_every_class_through_every_auto_class(tmp_path, monkeypatch, name, save_from):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    model, processor = PAIRS[name]()
    (model if save_from == "head" else model.base_model).save_pretrained(tmp_path / "repo")
    processor.save_pretrained(tmp_path / "repo")
    config = json.loads((tmp_path / "repo" / "config.json").read_text())
    classes = auto_classes_of(type(model.config))
    classes.pop("AutoModelForZeroShotObjectDetection", None)  # code and weights of its own: test_detection.py
    assert config["auto_map"].keys() == {"AutoConfig", *classes}
    for cls in (type(model), type(model.config), type(processor)):
        assert cls._auto_class is None  # saving leaves no trace
    assert not hasattr(model.config, "auto_map")
    assert not hasattr(model.config, "custom_pipelines")

    batch = inputs_of(model, processor)
    found = ask_a_stranger(EVERY_CLASS, tmp_path / "repo", batch, tmp_path)
    for auto_name, cls in classes.items():
        if cls is type(model) and save_from == "base":
            continue  # its head is a fresh one
        own = cls.from_pretrained(tmp_path / "repo")
        for parameter in own.parameters():
            parameter.data = parameter.data.clone()
        outputs = own(**batch)
        parts = ("logits", "logits_per_image", "last_hidden_state")
        expected = next(outputs[part] for part in parts if outputs.get(part) is not None)
        assert torch.equal(found[auto_name], expected), auto_name
        assert torch.equal(found[f"{auto_name} again"], expected), auto_name
        if own.can_generate():
            assert torch.equal(found[f"{auto_name} ids"], own.generate(**batch, num_beams=2, max_new_tokens=4))
    sources = {path.name: path.read_bytes() for path in (tmp_path / "repo").glob("*.py")}
    for auto_name in classes:
        again = json.loads((tmp_path / auto_name / "config.json").read_text())
        assert again["auto_map"] == config["auto_map"]
        assert {path.name: path.read_bytes() for path in (tmp_path / auto_name).glob("*.py")} == sources
        for pipeline in again.get("custom_pipelines", {}).values():
            assert f"{pipeline['impl'].partition('.')[0]}.py" in sources


def test_only_checkpoints_with_a_tower_of_ours_carry_another_models_files(tmp_path):
    vision = {"grr_coca": tiny_config().vision_config, "mammut": tiny_mammut().config.vision_config}
    for name, tower in (("clip", {}), *vision.items()):
        fields = tower if name == "clip" else {**tower.to_dict(), "model_type": tower.model_type}
        tiny_vw_lmm(vision_config=fields, vision_feature_select_strategy="full").save_pretrained(tmp_path / name)
        files = {path.name for path in (tmp_path / name).glob("*.py")}
        for other in vision:
            assert (f"modeling_{other}.py" in files) == (name == other)
        assert any("mammut" in file for file in files) == (name == "mammut")


def test_importing_adds_our_types_to_transformers_tables_and_changes_nothing(tmp_path):
    code = """
from transformers.models.auto import modeling_auto as auto
tables = {name: dict(value) for name, value in vars(auto).items() if name.endswith("_MAPPING_NAMES")}
import triptych, triptych.modeling
for name, before in tables.items():
    after = dict(getattr(auto, name))
    added = {model_type: after.pop(model_type) for model_type in after.keys() - before.keys()}
    assert after == before
    assert not added or name == "CONFIG_MAPPING_NAMES"
    assert all(getattr(triptych, config).model_type == model_type for model_type, config in added.items())
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, timeout=120)


PART = """
from transformers import pipeline
processor.image_processor.save_pretrained("part")
AutoModel.from_pretrained(repo, trust_remote_code=True).vision_model.save_pretrained("part")
found["part"] = pipeline("image-feature-extraction", "part", trust_remote_code=True)("red.png", return_tensors=True)
found["whole"] = AutoModel.from_pretrained(repo, trust_remote_code=True).vision_model(**batch).last_hidden_state
"""


def test_a_tower_that_a_stranger_saves_carries_its_code_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    _, processor = save_pair("mammut", tmp_path / "repo")
    picture = Image.new("RGB", (20, 20), "red")
    picture.save(tmp_path / "red.png")
    found = ask_a_stranger(PART, tmp_path / "repo", dict(processor(images=picture, return_tensors="pt")), tmp_path)
    torch.testing.assert_close(found["part"], found["whole"], atol=1e-5, rtol=0)


def test_what_no_auto_class_loads_is_no_repository(tmp_path):
    class Mine(triptych.GrrCocaForConditionalGeneration):
        pass

    with pytest.raises(ValueError, match="registered with no Auto class"):
        hub.save_repository(tmp_path / "repo", Mine(tiny_config()), tiny_processor(), CARD)
    assert list(tmp_path.iterdir()) == []


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

    (repo / "model-00001-of-00002.safetensors").write_text("of an earlier model")

    def interrupted(source, target):
        if Path(target).name == "config.json":  # by when what others would load instead is gone
            assert not (repo / "model-00001-of-00002.safetensors").exists()
            raise KeyboardInterrupt
        moves.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(hub.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        hub.save_repository(repo, tiny_model(seed=1), tiny_processor(), CARD)
    assert not (repo / "config.json").exists()
    monkeypatch.undo()
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "mine.safetensors"):
        (repo / name).write_text("")
    hub.save_repository(repo, tiny_model(seed=1), tiny_processor(), CARD)
    assert (repo / "notes.txt").read_text() == "mine"
    assert {path.name for path in repo.glob("*.safetensors*")} == {"model.safetensors", "mine.safetensors"}
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


def test_files_are_readable_as_others_are_and_numbers_are_json(tmp_path):
    results = {"a": float("nan"), "b": [1.5, float("inf")]}
    repo = hub.save_repository(tmp_path / "repo", tiny_model(), tiny_processor(), CARD, {"eval_results.json": results})
    (tmp_path / "other").write_text("")
    modes = {path.name: path.stat().st_mode for path in repo.iterdir()}
    assert set(modes.values()) == {(tmp_path / "other").stat().st_mode}, modes
    text = (repo / "eval_results.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == {"a": None, "b": [1.5, None]}


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "repo").write_text("")
    with pytest.raises(ValueError, match=r"`folder` must be a folder"):
        hub.save_repository(tmp_path / "repo", tiny_model(), tiny_processor(), CARD)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("--dataset=/tmp/my pictures/set", "--dataset=set"),
        ("/tmp/models/demo", "demo"),
        (
            "see /tmp/a/b.png, https://a.org/b/c, owner/name, and/or",
            "see b.png, https://a.org/b/c, owner/name, and/or",
        ),
        ({"dir": "/tmp/a/b", "n": 1, "list": ["/tmp/a/c", None]}, {"dir": "b", "n": 1, "list": ["c", None]}),
        ("/nowhere/at/all is no path here", "/nowhere/at/all is no path here"),
    ],
)
def test_paths_of_this_machine_stay_at_home(content, expected):
    assert hub.portable(content) == expected
