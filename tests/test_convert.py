"""Foreign checkpoints: found in every form, refused where they do not fit, converted value by value, and back."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPTokenizer, PreTrainedTokenizerFast
from typer.testing import CliRunner

from tests.conftest import PAIRS
from tests.loopback_hub import LoopbackHub, Repository
from triptych import GrrCocaForConditionalGeneration, MammutForConditionalGeneration, VwLmmForCausalLM
from triptych.cli import app
from triptych.convert import conversion
from triptych.convert.conversion import LAYOUTS, convert, export_open_clip
from triptych.convert.source import Source
from triptych.convert.verify import deviations
from triptych.convert.vw_lmm import VISION_PREFIX
from triptych.hub import files_to_publish


FIXTURES = Path(__file__).parent / "fixtures"
CASES = {
    "coca_open_clip": ("open-clip-coca", GrrCocaForConditionalGeneration),
    "mammut_laion_mlp": ("open-mammut", MammutForConditionalGeneration),
    "mammut_laion_nomlp": ("open-mammut", MammutForConditionalGeneration),
    "vw_llama": ("vw-lmm", VwLmmForCausalLM),
    "vw_pif_llama": ("vw-lmm", VwLmmForCausalLM),
}


def weights_of(name: str) -> dict[str, torch.Tensor]:
    return load_file(FIXTURES / name / "original_state_dict.safetensors")


def convert_fixture(name: str, source: Path | str, destination: Path, **options) -> Path:
    config = str(FIXTURES / name / "config.json")
    return convert(CASES[name][0], str(source), destination, config=config, with_processor=False, **options)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_converted_folders_give_the_numbers_of_the_original_code(tmp_path, name):
    folder = convert_fixture(
        name, FIXTURES / name / "original_state_dict.safetensors", tmp_path / name, pif="pif" in name
    )
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert type(model) is CASES[name][1]
    found = deviations(folder, FIXTURES / name)
    if CASES[name][0] == "vw-lmm":
        assert model.config.pseudo_image_features == ("pif" in name)
        assert found.keys() == {"visual_word_probs", "image_features"}
        assert max(found.values()) < 1e-5
        return
    assert found.pop("greedy_ids") == 0
    assert found.pop("caption_logits_valid") < 1e-4
    assert found.keys() == {"image_features", "text_features", "contrastive_loss", "caption_loss"}
    assert max(found.values()) < 1e-5
    expected, inputs = (load_file(FIXTURES / name / f"{part}.safetensors") for part in ("expected", "inputs"))
    mask = (inputs["input_ids"] != 0).long()
    padded_with_eos = inputs["input_ids"].masked_fill(mask == 0, model.config.text_config.eos_token_id)
    found = model.base_model(padded_with_eos, inputs["pixel_values"], attention_mask=mask).text_embeds
    torch.testing.assert_close(found, expected["text_features"], atol=1e-5, rtol=0)


def write_as(form: str, weights: dict[str, torch.Tensor], folder: Path) -> Path:
    folder.mkdir()
    if form == "pickle":
        torch.save(weights, folder / "epoch_3.pt")
        return folder / "epoch_3.pt"
    if form == "wrapped":
        wrapped = {f"module.{key}": tensor for key, tensor in weights.items()}
        torch.save({"epoch": 3, "name": "run", "state_dict": wrapped}, folder / "open_clip_pytorch_model.bin")
        return folder
    if form == "old pickle":
        torch.save(weights, folder / "model.pt", _use_new_zipfile_serialization=False)
        return folder
    names = sorted(weights)
    parts = [names[: len(names) // 2], names[len(names) // 2 :]]
    suffix = "safetensors" if form == "sharded safetensors" else "bin"
    index = {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05d}-of-00002.{suffix}"
        tensors = {key: weights[key] for key in part}
        save_file(tensors, folder / file) if suffix == "safetensors" else torch.save(tensors, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / f"model.{suffix}.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


@pytest.mark.parametrize("form", ["pickle", "wrapped", "old pickle", "sharded safetensors", "sharded pickles"])
def test_every_form_of_a_checkpoint_gives_the_same_weights_in_shards_of_any_size(tmp_path, form):
    name = "mammut_laion_nomlp"
    weights = {**weights_of(name), "logit_bias": torch.tensor([-10.0])}  # of runs started with --siglip
    weights["logit_scale"] = weights["logit_scale"].reshape(1)
    source = write_as(form, weights, tmp_path / "source")
    folder = convert_fixture(name, source, tmp_path / "out", max_shard_size="50KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    assert not list(folder.glob("*/"))
    convert_fixture(name, source, folder)  # into the same folder, in one file
    assert [path.name for path in folder.glob("*.safetensors*")] == ["model.safetensors"]
    state = MammutForConditionalGeneration.from_pretrained(folder).state_dict()
    for key, origin in LAYOUTS["open-mammut"].origins(state).items():
        assert torch.equal(state[key], origin.take(weights[origin.key])), key


@pytest.mark.parametrize("name", ["coca_open_clip", "mammut_laion_mlp", "vw_llama"])
def test_a_checkpoint_in_half_precision_is_loaded_as_such(tmp_path, name):
    save_file({key: tensor.bfloat16() for key, tensor in weights_of(name).items()}, tmp_path / "half.safetensors")
    folder = convert_fixture(name, tmp_path / "half.safetensors", tmp_path / "out")
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForImageTextToText.from_pretrained(folder).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["coca_open_clip", "mammut_laion_mlp", "mammut_laion_nomlp"])
def test_the_way_back_is_bit_identical(tmp_path, name):
    original = weights_of(name)
    folder = convert_fixture(name, FIXTURES / name / "original_state_dict.safetensors", tmp_path / name)
    found = export_open_clip(CASES[name][0], CASES[name][1].from_pretrained(folder))
    assert found.keys() == original.keys()
    for key, tensor in original.items():
        assert torch.equal(found[key], tensor), key


@pytest.mark.parametrize(
    ("name", "layout", "preset", "values"),
    [
        ("coca_base", "open-clip-coca", "coca-vit-b-18-288", 440_337_409),
        ("coca_ViT-B-32", "open-clip-coca", "coca-vit-b-32", 253_560_065),
        ("coca_ViT-L-14", "open-clip-coca", "coca-vit-l-14", 638_450_177),
        ("mammut_ViT-B-32", "open-mammut", "openmammut-vit-b-32", 183_021_313),
        ("mammut_ViT-L-14", "open-mammut", "openmammut-vit-l-14", 508_294_913),
        ("vw_lmm_vicuna_7b", "vw-lmm", "vw-lmm-vicuna-7b", 7_193_974_784),
        ("vw_lmm_mistral_7b", "vw-lmm", "vw-lmm-mistral-7b", 7_697_291_264),
    ],
)
def test_checkpoints_of_real_size_fill_every_parameter(tmp_path, monkeypatch, name, layout, preset, values):
    shapes = json.loads((FIXTURES / "keys" / f"{name}.json").read_text())
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    source = Source(str(tmp_path))
    stored = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    monkeypatch.setattr(source, "meta", lambda: stored)
    chosen = LAYOUTS[layout]
    model = conversion.empty_model(chosen, conversion.find_config(chosen, source, preset))
    assert conversion.differences(chosen, model, source) == []
    assert model.num_parameters() == values
    with pytest.raises(ValueError, match=rf"fits best is '{preset}"):
        conversion.find_config(chosen, source)


def test_larger_images_have_a_larger_table(monkeypatch):
    weights = weights_of("mammut_laion_mlp")
    weights["visual.positional_embedding"] = torch.randn(1 + 6 * 6, weights["visual.positional_embedding"].shape[1])
    source = Source(str(FIXTURES / "mammut_laion_mlp" / "original_state_dict.safetensors"))
    monkeypatch.setattr(source, "meta", lambda: weights)
    config = conversion.find_config(
        LAYOUTS["open-mammut"], source, config=str(FIXTURES / "mammut_laion_mlp" / "config.json")
    )
    assert config.vision_config.image_size == 6 * config.vision_config.patch_size
    assert (
        conversion.differences(LAYOUTS["open-mammut"], conversion.empty_model(LAYOUTS["open-mammut"], config), source)
        == []
    )


def test_the_tower_of_another_checkpoint(tmp_path):
    weights = weights_of("vw_llama")
    tower = {key: tensor for key, tensor in weights.items() if key.startswith(VISION_PREFIX)}
    clip = {f"vision_model.{key.removeprefix(VISION_PREFIX)}": tensor + 1 for key, tensor in tower.items()}
    save_file({**clip, "text_model.a": torch.zeros(1)}, tmp_path / "model.safetensors")
    source = FIXTURES / "vw_llama" / "original_state_dict.safetensors"
    folder = convert_fixture("vw_llama", source, tmp_path / "out", vision=str(tmp_path))
    state = VwLmmForCausalLM.from_pretrained(folder).state_dict()
    for name, origin in LAYOUTS["vw-lmm"].origins(state).items():
        expected = weights[origin.key] + 1 if origin.key in tower else weights[origin.key]
        assert torch.equal(state[name], expected), name
    with pytest.raises(ValueError, match="goes with the layout 'vw-lmm'"):
        convert("open-mammut", str(source), tmp_path / "other", vision=str(tmp_path))
    with pytest.raises(ValueError, match=r"no tensor whose name begins with 'vision_model\.'"):
        convert_fixture("vw_llama", source, tmp_path / "other", vision=str(source))


def test_what_does_not_fit_is_a_table_and_writes_nothing(tmp_path):
    weights = weights_of("mammut_laion_mlp")
    del weights["text.ln_final.bias"]
    weights["visual.proj"] = torch.zeros(3, 3)
    weights["text.cls_emb"] = torch.zeros(3)
    weights["logit_scale"] = torch.zeros(2)
    weights["text.resblocks.0.attn.in_proj_bias"] = torch.zeros(2)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="7 differences") as caught:
        convert_fixture("mammut_laion_mlp", tmp_path, tmp_path / "out")
    message = str(caught.value)
    assert "text.ln_final.bias -> model.text_model.final_layer_norm.bias: stored None, expected (32,)" in message
    assert "visual.proj -> model.visual_projection.weight: stored (3, 3)" in message
    assert "text.cls_emb: stored (3,), expected None" in message
    assert "The preset that fits best is 'openmammut" in message
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


class Harmful:
    def __reduce__(self):
        return (print, ("harm",))


def test_bad_sources_are_named(tmp_path, monkeypatch, capsys):
    with (tmp_path / "model.pt").open("wb") as file:
        pickle.dump({"a": Harmful()}, file)
    with pytest.raises(ValueError, match=r"pickle that holds more than weights.*safetensors"):
        Source(str(tmp_path))
    assert "harm" not in capsys.readouterr().out
    torch.save({"state_dict": {"a": 1}}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="'a' is something else"):
        Source(str(tmp_path))
    torch.save({"a": torch.zeros(1)}, tmp_path / "other_model.pt")
    with pytest.raises(ValueError, match="several weights that no index joins"):
        Source(str(tmp_path))
    for content, message in (([1], "got list"), (torch.zeros(2), "got Tensor")):
        torch.save(content, tmp_path / "other_model.pt")
        with pytest.raises(ValueError, match=f"must hold tensors by name.*{message}"):
            Source(str(tmp_path / "other_model.pt"))
    (tmp_path / "other_model.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"other_model\.pt cannot be read"):
        Source(str(tmp_path / "other_model.pt"))
    fixture = str(FIXTURES / "coca_open_clip" / "original_state_dict.safetensors")
    for text, message in (
        ("{", "cannot be read as JSON"),
        ("[1]", "must hold a JSON object, got list"),
        ('{"multimodal_cfg": {}}', "lacks 'vision_cfg'"),
    ):
        (tmp_path / "half.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            convert("open-clip-coca", fixture, tmp_path / "out", config=str(tmp_path / "half.json"))
    with pytest.raises(ValueError, match="Unknown `layout` 'blip'"):
        convert("blip", fixture, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no weights"):
        Source(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="neither a file, a folder, nor"):
        Source("no such thing")
    with pytest.raises(ValueError, match="configuration of open_clip's CoCa is missing"):
        convert(
            "open-clip-coca", str(FIXTURES / "mammut_laion_mlp" / "original_state_dict.safetensors"), tmp_path / "out"
        )
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(ValueError, match=r"its disk has 0\.0 GB left"):
        convert_fixture(
            "coca_open_clip", FIXTURES / "coca_open_clip" / "original_state_dict.safetensors", tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


@torch.no_grad()
def test_a_converted_coca_is_a_complete_repository(tmp_path):
    words = {"!": 0, **{f"w{index}</w>": index for index in range(1, 508)}, "a</w>": 508, "cat</w>": 509}
    words = {**{word: id_ for word, id_ in words.items() if id_ != 400}, "!</w>": 400}
    vocabulary = {**words, "<|startoftext|>": 510, "<|endoftext|>": 511}
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(tmp_path / "tokenizer")
    fixture = FIXTURES / "coca_open_clip"
    weights = str(fixture / "original_state_dict.safetensors")
    options = {"config": str(fixture / "config.json"), "tokenizer": str(tmp_path / "tokenizer")}
    folder = convert("open-clip-coca", weights, tmp_path / "out", **options)
    assert {"README.md", "config.json", "generation_config.json", "processor_config.json", "tokenizer.json"} <= {
        path.name for path in files_to_publish(folder)
    }
    processor, model = (auto.from_pretrained(folder) for auto in (AutoProcessor, AutoModelForImageTextToText))
    inputs = processor(images=Image.new("RGB", (40, 30), "red"), text="a", return_tensors="pt")
    assert inputs["input_ids"].shape == (1, 76)
    assert inputs["input_ids"][0, :3].tolist() == [510, 508, 511]
    assert inputs["attention_mask"].sum() == 3
    assert processor.tokenizer("a !").input_ids == [
        510,
        508,
        400,
        511,
    ]  # not the padding id of the original, "!" inside a word
    assert inputs["pixel_values"].shape == (1, 3, 28, 28)
    assert model.generate(**inputs, max_new_tokens=4).shape[0] == 1
    assert model.generation_config.eos_token_id == 511
    options["config"] = str(tmp_path / "config.json")
    other = json.loads((fixture / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_cfg": other}))
    convert("open-clip-coca", weights, tmp_path / "out", **options)  # as open_clip_config.json wraps it


def test_the_command_converts_to_a_complete_repository(tmp_path):
    fixture = FIXTURES / "vw_llama"
    _, processor = PAIRS["vw_lmm"]()
    weights = load_file(fixture / "original_state_dict.safetensors")
    config = json.loads((fixture / "config.json").read_text())
    (tmp_path / "source").mkdir()
    save_file(weights, tmp_path / "source" / "model.safetensors")
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    arguments = ["convert", "vw-lmm", str(tmp_path / "source"), str(tmp_path / "out")]
    outcome = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert outcome.exit_code == 0, outcome.output
    assert "model.mm_projector.0.weight\tmodel.multi_modal_projector.linear_1.weight" in outcome.stdout
    assert not (tmp_path / "out").exists()
    processor.tokenizer.save_pretrained(tmp_path / "tokenizer")
    outcome = CliRunner().invoke(app, [*arguments, "--tokenizer", str(tmp_path / "tokenizer")])
    assert outcome.exit_code == 2
    assert "`tokenizer` does not belong to this model" in outcome.output
    vocabulary = {f"w{index}": index for index in range(config["vocab_size"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary)), eos_token="w2", pad_token="w0"
    )
    tokenizer.save_pretrained(tmp_path / "source")  # now beside the weights
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 0, outcome.output
    assert AutoProcessor.from_pretrained(tmp_path / "out").image_token_id == config["vocab_size"]
    files_to_publish(tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    outcome = CliRunner().invoke(app, [*arguments, "--no-processor"])
    assert outcome.exit_code == 0, outcome.output
    outcome = CliRunner().invoke(app, [*arguments, "--no-processor", "--verify", str(fixture)])
    assert outcome.exit_code == 0, outcome.output
    assert float(outcome.stdout.splitlines()[-1].split("\t")[1]) < 1e-5
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Converted from `source`" in card
    assert (tmp_path / "out" / "modeling_vw_lmm.py").exists()
    with pytest.raises(ValueError, match="has no processor"):
        files_to_publish(tmp_path / "out")


def test_checkpoints_on_the_hub(tmp_path):
    name = "mammut_laion_nomlp"
    config = json.loads((FIXTURES / name / "config.json").read_text())
    torch.save({"state_dict": weights_of(name)}, tmp_path / "epoch_1.pt")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with LoopbackHub().running() as server:
        weights = server.store((tmp_path / "epoch_1.pt").read_bytes())
        wrapped = server.store(json.dumps({"model_cfg": config}).encode())
        server.repositories["someone/runs"] = Repository(private=False)
        server.repositories["someone/runs"].commit(
            "main", {"first run/epoch_1.pt": weights, "first run/epoch_2.pt": weights}
        )
        server.repositories["someone/model"] = Repository(private=False)
        server.repositories["someone/model"].commit(
            "main", {"open_clip_pytorch_model.bin": weights, "open_clip_config.json": wrapped}
        )
        hub = {
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }
        command = [
            sys.executable,
            "-m",
            "triptych.cli",
            "convert",
            "open-mammut",
            "--no-processor",
            "--verify",
            str(FIXTURES / name),
        ]
        for arguments in (
            ["someone/runs/first run/epoch_1.pt", "one", "--config", "config.json"],
            ["someone/model", "two"],
        ):
            result = subprocess.run(
                [*command, *arguments], cwd=tmp_path, env={**os.environ, **hub}, capture_output=True, text=True, timeout=300,
                check=False,
            )  # fmt: skip
            assert result.returncode == 0, result.stderr
            assert "image_features" in result.stdout
    cards = [(tmp_path / folder / "README.md").read_text() for folder in ("one", "two")]
    assert "Converted from `someone/runs/first run/epoch_1.pt`" in cards[0]
    assert "Converted from `someone/model`" in cards[1]
