"""Foreign checkpoints: found in every form, refused where they do not fit, converted value by value, and back."""

import copy
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import HTTPError
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessor,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner

from tests.conftest import PAIRS
from tests.loopback_hub import LoopbackHub, Repository
from triptych import GrrCocaForConditionalGeneration, MammutForConditionalGeneration, VwLmmForCausalLM
from triptych.cli import app
from triptych.convert import conversion, source
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


# Every field of the original dataclasses, by what another value does: `Result` differs, an error names the key, or nothing.
IMAGES = {
    "translated": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    "refused": {"mode": "L", "interpolation": "bilinear", "resize_mode": "squash", "fill_color": 9},
    "unread": {"size": 9},
}
VISION = {  # `CLIPVisionCfg` of open_clip and of LAION's fork
    "translated": {"layers": 3, "width": 48, "head_width": 4, "mlp_ratio": 2.0, "patch_size": 14, "image_size": 56, "no_ln_pre": True},
    "refused": {
        "ls_init_value": 1e-4, "output_tokens": False, "act_kwargs": {"approximate": "tanh"}, "pos_embed_type": "rope",
        "timm_model_name": "vit", "timm_model_pretrained": True, "timm_pool": "", "timm_proj": "mlp", "timm_proj_bias": True,
        "timm_drop": 0.1, "timm_drop_path": 0.1,
    },
    "unread": {"patch_dropout": 0.5},
}  # fmt: skip
CUSTOM_BLOCKS = {  # today's open_clip only
    "block_type": "custom", "qk_norm": True, "scaled_cosine_attn": True, "scale_heads": True, "scale_attn_inner": True,
    "scale_attn": True, "scale_fc": True,
}  # fmt: skip
TEXT = {  # `CLIPTextCfg` of both
    "translated": {"vocab_size": 600},
    "refused": {
        "hf_tokenizer_name": "t5", "tokenizer_kwargs": {"clean": "whitespace"}, "mlp_ratio": 2.0, "ls_init_value": 1e-4,
        "no_causal_mask": True, "final_ln_after_pool": True, "pool_type": "last", "proj_bias": True, "proj_type": "none",
        "act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-6}, "hf_model_name": "roberta", "hf_model_pretrained": False,
        "hf_proj_type": "linear", "hf_pooler_type": "cls_pooler",
    },
    "unread": {},
}  # fmt: skip
MODERN_TEXT = {  # today's open_clip only
    "text_arch": "modern", "variable_text": True, "tokenizer_mode": "x", "tokenizer_type": "tiktoken", "tiktoken_name": "r50k_base",
    "attention_mode": "bidirectional", "pos_embed": "x", "rope_temperature": 1.0, "mlp_type": "mlp", "norm_type": "rmsnorm",
    "norm_eps": 1e-5, "attn_gated": True, "pre_norm": True, "norm_placement": "sandwich", "zero_init_residual": True,
    "reg_tokens": 1, "value_residual": True, "attention_bias": False, "mlp_bias": False, "gate_bias": False, "hf_model_config": {},
}  # fmt: skip
MODEL = {
    "translated": {"quick_gelu": True},
    "refused": {"custom_text": False},
    "unread": {"init_logit_scale": 1.0, "nonscalar_logit_scale": True, "pad_id": 3},
}


def merged(*groups: dict) -> dict:
    return {
        outcome: {key: value for group in groups for key, value in group.get(outcome, {}).items()}
        for outcome in ("translated", "refused", "unread")
    }


KEYS = {
    ("coca_open_clip", ""): merged(MODEL, {"refused": {"init_logit_bias": -10.0}}),
    ("coca_open_clip", "preprocess_cfg"): IMAGES,
    ("coca_open_clip", "vision_cfg"): merged(
        VISION,
        {
            "translated": {"attn_pooler_queries": 9, "attn_pooler_heads": 2},
            "refused": {
                **CUSTOM_BLOCKS, "attentional_pool": "parallel", "norm_kwargs": {"eps": 1e-6}, "pool_type": "avg",
                "final_ln_after_pool": True, "timm_model_kwargs": {},
            },
            "unread": {"image_seq_len": 9},
        },
    ),
    ("coca_open_clip", "text_cfg"): merged(
        TEXT,
        {
            "translated": {"context_length": 60, "layers": 3, "pad_id": 3, "bos_id": 3, "eos_id": 3},
            "refused": {**CUSTOM_BLOCKS, **MODERN_TEXT, "embed_cls": False, "output_tokens": False, "width": 64, "heads": 2},
        },
    ),
    ("coca_open_clip", "multimodal_cfg"): merged(
        {"refused": {**TEXT["refused"], **CUSTOM_BLOCKS, **MODERN_TEXT, "width": 64, "heads": 2}, "translated": {"layers": 3}},
        {"unread": {
            "context_length": 90, "vocab_size": 9, "embed_cls": True, "output_tokens": True, "pad_id": 3, "bos_id": 3, "eos_id": 3,
            "dim_head": 9, "n_queries": 9, "attn_pooler_heads": 9,
        }},
    ),
    ("mammut_laion_mlp", ""): merged(MODEL, {"refused": {"embed_dim": 64}, "unread": {"init_logit_bias": -10.0}}),
    ("mammut_laion_mlp", "preprocess_cfg"): IMAGES,
    ("mammut_laion_mlp", "vision_cfg"): merged(
        VISION,
        {
            "translated": {"final_ln_after_pool": False, "norm_kwargs": {"eps": 1e-6}},
            "refused": {"pool_type": "tok", "attentional_pool": True},
            "unread": {"attn_pooler_queries": 9, "attn_pooler_heads": 2},
        },
    ),
    ("mammut_laion_mlp", "text_cfg"): merged(
        TEXT,
        {
            "translated": {"context_length": 60, "layers": 6, "heads": 2, "cross_attn_ratio": 1, "has_mlp": False},
            "refused": {
                "embed_cls": True, "pad_id": 3, "does_full_decoding": False, "output_tokens": False, "is_multimodal_decoder": True,
                "token_average_pool": True,
            },
            "unread": {"dim_head": 9, "n_queries": 9, "attn_pooler_heads": 9},
        },
    ),
    # `LlamaConfig` of transformers 4.35, and what LLaVA adds
    ("vw_llama", ""): {
        "translated": {
            "vocab_size": 130, "hidden_size": 32, "intermediate_size": 60, "num_hidden_layers": 3, "num_attention_heads": 8,
            "num_key_value_heads": 4, "hidden_act": "gelu", "max_position_embeddings": 99, "initializer_range": 0.1,
            "rms_norm_eps": 1e-3, "use_cache": False, "pad_token_id": 3, "bos_token_id": 3, "eos_token_id": 3,
            "tie_word_embeddings": True, "rope_theta": 99.0, "rope_scaling": {"type": "linear", "factor": 2.0}, "attention_bias": True,
            "attention_dropout": 0.1, "mlp_bias": True, "head_dim": 8, "mm_vision_select_layer": -1, "mm_projector_type": "linear",
            "mm_vision_select_feature": "cls_patch", "image_aspect_ratio": "square",
        },
        "refused": {
            "sliding_window": 9, "is_encoder_decoder": True, "mm_use_im_start_end": True, "mm_hidden_size": 9, "rope_parameters": {},
            "mm_patch_merge_type": "spatial_unpad", "mm_resampler_type": "x", "quantization_config": {}, "use_sliding_window": True,
        },
        "unread": {
            "mm_vision_tower": "other", "mm_use_im_patch_token": True, "use_mm_proj": False, "tune_mm_mlp_adapter": True,
            "freeze_mm_mlp_adapter": True, "pretrain_mm_mlp_adapter": "x", "unfreeze_mm_vision_tower": True, "mm_projector_lr": 1.0,
            "mm_vision_tower_lr": 1.0, "tune_mm_vision_resampler": True, "freeze_mm_vision_resampler": True,
            "image_grid_pinpoints": [[9, 9]], "image_crop_resolution": 9, "image_split_resolution": 9, "model_type": "llava_llama",
            "tokenizer_padding_side": "left", "tokenizer_model_max_length": 9, "max_sequence_length": 9, "torch_dtype": "float16",
            "transformers_version": "4.31.0", "_name_or_path": "x", "auto_map": {}, "max_length": 9, "do_sample": True,
            "temperature": 0.5, "top_p": 0.5, "return_dict": False, "output_attentions": True, "output_hidden_states": True,
            "id2label": {}, "label2id": {}, "problem_type": "x", "tokenizer_class": "x", "chunk_size_feed_forward": 9,
        },
    },
    ("vw_llama", "vision_config"): {
        "translated": {
            "intermediate_size": 60, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 56, "patch_size": 7,
            "hidden_act": "gelu", "layer_norm_eps": 1e-3, "projection_dim": 8, "num_channels": 1, "attention_dropout": 0.1,
            "initializer_range": 0.1, "initializer_factor": 2.0,
        },
        "refused": {"hidden_dropout": 0.1, "quantization_config": {}, "model_type": "siglip_vision_model"},
        "unread": {"torch_dtype": "float16"},
    },
}  # fmt: skip


def config_of(name: str) -> dict:
    return json.loads((FIXTURES / name / "config.json").read_text())


def result_of(name: str, config: dict) -> tuple[dict, dict]:
    """Our configuration, and what the processor hears."""
    layout = LAYOUTS[CASES[name][0]]
    extra = {"pseudo_image_features": False} if name.startswith("vw") else {}
    found = layout.convert_config(config.get("model_cfg", config), **extra)
    return found.to_dict(), layout.image_options(config)


@pytest.mark.parametrize(("name", "place"), KEYS)
def test_every_key_of_a_foreign_configuration_is_translated_refused_or_known_to_change_nothing(name, place):
    original = config_of(name)
    if place == "preprocess_cfg":
        original = {"model_cfg": original, "preprocess_cfg": {}}
    before = result_of(name, original)
    for outcome, changes in {**KEYS[name, place], "unknown": {"brand_new": 1}}.items():
        for key, value in changes.items():
            config = copy.deepcopy(original)
            (config[place] if place else config)[key] = value
            if outcome in ("translated", "unread"):
                assert (result_of(name, config) == before) == (outcome == "unread"), key
            else:
                # What two parts share is refused where the second one is read.
                part = "multimodal_cfg" if place == "text_cfg" and key in ("width", "heads") else place
                with pytest.raises(ValueError, match=rf"`{part}{'.' if part else ''}{key}(\.eps)?` is .*, expected "):
                    result_of(name, config)


def test_keys_that_only_change_together():
    config = config_of("coca_open_clip")
    config["embed_dim"] = config["text_cfg"]["width"] = config["multimodal_cfg"]["width"] = 64
    config["text_cfg"]["heads"] = config["multimodal_cfg"]["heads"] = 2
    found, _ = result_of("coca_open_clip", config)
    assert [
        found["projection_dim"],
        found["text_config"]["hidden_size"],
        found["text_config"]["num_attention_heads"],
    ] == [64, 64, 2]
    config = config_of("mammut_laion_mlp")
    config["embed_dim"] = config["text_cfg"]["width"] = 64
    assert result_of("mammut_laion_mlp", config)[0]["text_config"]["hidden_size"] == 64
    config = config_of("vw_llama")
    config["mm_hidden_size"] = config["vision_config"]["hidden_size"] = 32
    assert result_of("vw_llama", config)[0]["vision_config"]["hidden_size"] == 32
    config = config_of("coca_open_clip")
    del config["vision_cfg"]["attentional_pool"]
    config["vision_cfg"] |= {"width": 32, "norm_kwargs": {"eps": 1e-3}}  # without a pooler every norm has it
    assert result_of("coca_open_clip", config)[0]["vision_config"]["norm_eps"] == 1e-3
    config["vision_cfg"]["norm_kwargs"]["bias"] = False
    with pytest.raises(ValueError, match=r"`vision_cfg\.norm_kwargs\.bias` is False, expected no such key"):
        result_of("coca_open_clip", config)
    config["vision_cfg"] = {"layers": [3, 4, 6, 3]}
    with pytest.raises(ValueError, match=r"`vision_cfg\.layers` is \[3, 4, 6, 3\], expected something like 12"):
        result_of("coca_open_clip", config)
    config["vision_cfg"] = "ViT-B-32"
    with pytest.raises(ValueError, match="`vision_cfg` must be an object, got 'ViT-B-32'"):
        result_of("coca_open_clip", config)


def test_a_language_model_is_asked_for_its_own_keys_and_a_tower_for_its_name():
    config = {**config_of("vw_llama"), "architectures": ["vwMistralForCausalLM"], "sliding_window": 9}
    assert result_of("vw_llama", config)[0]["text_config"]["sliding_window"] == 9
    with pytest.raises(ValueError, match="`attention_bias` is True, expected False"):
        result_of("vw_llama", {**config, "attention_bias": True})
    with pytest.raises(ValueError, match="`image_aspect_ratio` is 'anyres', expected None or 'square' or 'pad'"):
        result_of("vw_llama", {**config, "image_aspect_ratio": "anyres"})
    with pytest.raises(
        ValueError, match="`architectures` is 'LlavaQwen2ForCausalLM', expected llama or mistral in it"
    ):
        result_of("vw_llama", {**config, "architectures": ["LlavaQwen2ForCausalLM"]})
    for scaling, message in (
        ({"type": "yarn"}, r"`rope_scaling\.type` is 'yarn', expected 'linear' or 'dynamic'"),
        ({"type": "linear", "beta": 1}, r"`rope_scaling\.beta` is 1, expected no such key"),
        ("linear", "`rope_scaling` must be an object, got 'linear'"),
    ):
        with pytest.raises(ValueError, match=message):
            result_of("vw_llama", {**config, "rope_scaling": scaling})
    del config["vision_config"], config["mm_hidden_size"]
    for tower in ("openai/clip-vit-large-patch14-336", "/data/clip-vit-large-patch14-336/"):
        found, _ = result_of("vw_llama", {**config, "mm_vision_tower": tower})
        assert found["vision_config"]["image_size"] == 336
    with pytest.raises(
        ValueError, match="`mm_vision_tower` is 'clip-vit-large-patch14', expected 'clip-vit-large-patch14-336'"
    ):
        result_of("vw_llama", {**config, "mm_vision_tower": "openai/clip-vit-large-patch14"})


def plain_tower(
    weights: dict, x: torch.Tensor, prefix: str, heads: int, activation, eps: float = 1e-5
) -> torch.Tensor:
    """open_clip's blocks, from its own names."""
    for index in range(len({key.removeprefix(prefix).split(".")[0] for key in weights if key.startswith(prefix)})):
        block = {
            key.removeprefix(f"{prefix}{index}."): weights[key]
            for key in weights
            if key.startswith(f"{prefix}{index}.")
        }
        normed = F.layer_norm(x, x.shape[-1:], block["ln_1.weight"], block["ln_1.bias"], eps)
        qkv = F.linear(normed, block["attn.in_proj_weight"], block["attn.in_proj_bias"]).unflatten(-1, (3, heads, -1))
        mixed = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4)).transpose(1, 2).flatten(2)
        x = x + F.linear(mixed, block["attn.out_proj.weight"], block["attn.out_proj.bias"])
        normed = F.layer_norm(x, x.shape[-1:], block["ln_2.weight"], block["ln_2.bias"], eps)
        inner = activation(F.linear(normed, block["mlp.c_fc.weight"], block["mlp.c_fc.bias"]))
        x = x + F.linear(inner, block["mlp.c_proj.weight"], block["mlp.c_proj.bias"])
    return x


def plain_embeddings(
    weights: dict, inputs: dict, activation=F.gelu, eps=1e-5, ln_pre=True, ln_first=False
) -> list[torch.Tensor]:
    """Image and text embeddings of openMaMMUT, in plain torch."""
    x = F.conv2d(inputs["pixel_values"], weights["visual.conv1.weight"], stride=7).flatten(2).mT
    x = (
        torch.cat([weights["visual.class_embedding"].expand(len(x), 1, -1), x], 1)
        + weights["visual.positional_embedding"]
    )
    if ln_pre:
        x = F.layer_norm(x, x.shape[-1:], weights["visual.ln_pre.weight"], weights["visual.ln_pre.bias"], eps)
    x = plain_tower(weights, x, "visual.transformer.resblocks.", 3, activation, eps)
    x = x if ln_first else x.mean(1)
    x = F.layer_norm(x, x.shape[-1:], weights["visual.ln_post.weight"], weights["visual.ln_post.bias"], eps)
    image = (x.mean(1) if ln_first else x) @ weights["visual.proj"]
    x = weights["text.token_embedding.weight"][inputs["input_ids"]] + weights["text.positional_embedding"]
    x = plain_tower(weights, x, "text.resblocks.", 4, activation)
    text = F.layer_norm(x, x.shape[-1:], weights["text.ln_final.weight"], weights["text.ln_final.bias"]).mean(1)
    return [F.normalize(image, dim=-1), F.normalize(text, dim=-1)]


@pytest.mark.parametrize(
    ("changes", "vision_changes", "options"),
    [
        ({}, {}, {}),
        ({"quick_gelu": True}, {}, {"activation": lambda x: x * torch.sigmoid(1.702 * x)}),
        ({}, {"norm_kwargs": {"eps": 0.1}}, {"eps": 0.1}),
        ({}, {"no_ln_pre": True}, {"ln_pre": False}),
        ({}, {"final_ln_after_pool": False}, {"ln_first": True}),
    ],
    ids=["as released", "quick_gelu", "eps", "no_ln_pre", "norm before pooling"],
)
@torch.no_grad()
def test_translated_keys_change_the_numbers_as_the_original_code_does(tmp_path, changes, vision_changes, options):
    name = "mammut_laion_mlp"
    weights = {
        key: tensor for key, tensor in weights_of(name).items() if options.get("ln_pre", True) or "ln_pre" not in key
    }
    save_file(weights, tmp_path / "model.safetensors")
    config = {**config_of(name), **changes}
    config["vision_cfg"] |= vision_changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = AutoModelForImageTextToText.from_pretrained(
        convert("open-mammut", str(tmp_path), tmp_path / "out", with_processor=False)
    )
    inputs = load_file(FIXTURES / name / "inputs.safetensors")
    released = load_file(FIXTURES / name / "expected.safetensors")
    expected = plain_embeddings(weights, inputs, **options)
    outputs = model.base_model(
        inputs["input_ids"], inputs["pixel_values"], attention_mask=(inputs["input_ids"] != 0).long()
    )
    for found, wanted, theirs in zip(
        (outputs.image_embeds, outputs.text_embeds),
        expected,
        (released["image_features"], released["text_features"]),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
        if not options:  # the reference is the original code's
            torch.testing.assert_close(wanted, theirs, atol=1e-5, rtol=0)
    if options:
        assert (outputs.image_embeds - released["image_features"]).abs().max() > 1e-3


@torch.no_grad()
def test_coca_with_quick_gelu(tmp_path):
    weights, inputs = weights_of("coca_open_clip"), load_file(FIXTURES / "coca_open_clip" / "inputs.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**config_of("coca_open_clip"), "quick_gelu": True}))
    save_file(weights, tmp_path / "model.safetensors")
    model = AutoModelForImageTextToText.from_pretrained(
        convert("open-clip-coca", str(tmp_path), tmp_path / "out", with_processor=False)
    )
    x = F.conv2d(inputs["pixel_values"], weights["visual.conv1.weight"], stride=7).flatten(2).mT
    x = (
        torch.cat([weights["visual.class_embedding"].expand(len(x), 1, -1), x], 1)
        + weights["visual.positional_embedding"]
    )
    x = F.layer_norm(x, x.shape[-1:], weights["visual.ln_pre.weight"], weights["visual.ln_pre.bias"])
    x = plain_tower(weights, x, "visual.transformer.resblocks.", 3, lambda x: x * torch.sigmoid(1.702 * x))
    hidden = []
    hook = model.model.vision_model.layers[-1].register_forward_hook(lambda *call: hidden.append(call[2]))
    model(inputs["input_ids"], inputs["pixel_values"])
    hook.remove()
    torch.testing.assert_close(hidden[0], x, atol=1e-5, rtol=0)
    assert {part.mlp_type for part in (model.config.vision_config, model.config.text_config)} == {"quick_gelu"}


@torch.no_grad()
def test_vw_lmm_keys_that_change_what_the_model_reads(tmp_path):
    weights, config = weights_of("vw_llama"), config_of("vw_llama")
    models = {}
    for place, changes in (
        ("plain", {}),
        ("scaled", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
        ("class token", {"mm_vision_select_feature": "cls_patch"}),
    ):
        (tmp_path / place).mkdir()
        save_file(weights, tmp_path / place / "model.safetensors")
        (tmp_path / place / "config.json").write_text(json.dumps({**config, **changes}))
        folder = convert("vw-lmm", str(tmp_path / place), tmp_path / place / "out", with_processor=False)
        models[place] = AutoModelForImageTextToText.from_pretrained(folder)
    ids = torch.arange(3, 15)[None]
    positions = torch.arange(12.0)[None] / 4  # what linear scaling does
    stretched = models["plain"](ids, position_ids=positions).logits
    torch.testing.assert_close(models["scaled"](ids).logits, stretched, atol=1e-5, rtol=0)
    assert (models["plain"](ids).logits - stretched).abs().max() > 1e-3
    pixels = load_file(FIXTURES / "vw_llama" / "inputs.safetensors")["pixel_values"][:1]
    features = models["class token"].get_image_features(pixels).pooler_output[0]
    assert len(features) == 5 == models["class token"].config.image_seq_length
    torch.testing.assert_close(
        features[1:], models["plain"].get_image_features(pixels).pooler_output[0], atol=1e-5, rtol=0
    )


def test_the_processor_prepares_images_as_the_configuration_says(tmp_path):
    picture = Image.new("RGB", (40, 20), "red")
    picture.paste("blue", (30, 0, 40, 20))
    fixture, config = FIXTURES / "vw_llama", config_of("vw_llama")
    source = Source(str(fixture / "original_state_dict.safetensors"))
    vocabulary = {f"w{index}": index for index in range(config["vocab_size"])}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(vocabulary))).save_pretrained(tmp_path / "tokenizer")
    pixels = {}
    for value in ("pad", "square", None):
        (tmp_path / "config.json").write_text(json.dumps({**config, "image_aspect_ratio": value}))
        found, options = conversion.find_config(LAYOUTS["vw-lmm"], source, config=str(tmp_path / "config.json"))
        processor = conversion.make_processor(LAYOUTS["vw-lmm"], found, source, str(tmp_path / "tokenizer"), options)
        pixels[value] = processor.image_processor(picture, return_tensors="pt")["pixel_values"]
    clip = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    cropped = clip(picture, return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels["square"], cropped)
    assert torch.equal(pixels[None], cropped)
    assert not torch.equal(pixels["pad"], cropped)

    content = {
        "model_cfg": config_of("coca_open_clip"),
        "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]},
    }
    (tmp_path / "config.json").write_text(json.dumps(content))
    source = Source(str(FIXTURES / "coca_open_clip" / "original_state_dict.safetensors"))
    CLIPTokenizer(vocab={"a": 0, "<|startoftext|>": 510, "<|endoftext|>": 511}, merges=[]).save_pretrained(
        tmp_path / "clip"
    )
    found, options = conversion.find_config(LAYOUTS["open-clip-coca"], source, config=str(tmp_path / "config.json"))
    processor = conversion.make_processor(LAYOUTS["open-clip-coca"], found, source, str(tmp_path / "clip"), options)
    assert list(processor.image_processor.image_mean) == [0.5, 0.4, 0.3]
    assert list(processor.image_processor.image_std) == [0.2, 0.2, 0.2]


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
    model = conversion.empty_model(chosen, conversion.find_config(chosen, source, preset)[0])
    assert conversion.differences(chosen, model, source) == []
    reserved = getattr(
        model.config, "num_reserved_tokens", 0
    )  # rows of the embeddings and two heads that are ours alone
    assert model.num_parameters() == values + 3 * reserved * model.config.get_text_config().hidden_size
    with pytest.raises(ValueError, match=rf"fits best is '{preset}"):
        conversion.find_config(chosen, source)


def test_larger_images_have_a_larger_table(monkeypatch):
    weights = weights_of("mammut_laion_mlp")
    weights["visual.positional_embedding"] = torch.randn(1 + 6 * 6, weights["visual.positional_embedding"].shape[1])
    source = Source(str(FIXTURES / "mammut_laion_mlp" / "original_state_dict.safetensors"))
    monkeypatch.setattr(source, "meta", lambda: weights)
    config, _ = conversion.find_config(
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
        assert torch.equal(state[name][: len(expected)], expected), name
        assert len(state[name]) == (192 if origin.is_vocabulary else len(expected))
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
        (json.dumps({**config_of("coca_open_clip"), "embed_dim": 64}), r"half\.json describes no model of ours: .*"),
    ):
        (tmp_path / "half.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            convert("open-clip-coca", fixture, tmp_path / "out", config=str(tmp_path / "half.json"))
    with pytest.raises(ValueError, match="Unknown `layout` 'blip'"):
        convert("blip", fixture, tmp_path / "out")
    save_file({"a": torch.zeros(1)}, tmp_path / "private.safetensors")
    (tmp_path / "indexed").mkdir()
    for name in ("../private.safetensors", str(tmp_path / "private.safetensors"), "absent.safetensors"):
        (tmp_path / "indexed" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(ValueError, match=f"names '{re.escape(name)}', which is no file of that folder"):
            Source(str(tmp_path / "indexed"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no weights"):
        Source(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="neither a file, a folder, nor"):
        Source("no such thing")
    with pytest.raises(ValueError, match="`revision` 'v1' is for names on the Hub"):
        Source(str(tmp_path / "empty"), "v1")
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
    assert model.generation_config.eos_token_id == model.generation_config.pad_token_id == 511
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
    assert "64 rows for the image placeholder stand behind its words" in card
    assert (tmp_path / "out" / "modeling_vw_lmm.py").exists()
    with pytest.raises(ValueError, match="has no processor"):
        files_to_publish(tmp_path / "out")


@pytest.mark.parametrize("location", ["owner", "owner/name", "owner/name/epoch_1.pt"])
def test_a_hub_that_does_not_answer_is_named(monkeypatch, location):
    def fail(*args, **kwargs):
        raise HTTPError("Name or service not known")

    monkeypatch.setattr(source, "hf_hub_download", fail)
    monkeypatch.setattr(source.HfApi, "list_repo_files", fail)
    monkeypatch.setattr(source, "HF_HUB_OFFLINE", False)
    with pytest.raises(
        OSError, match=f"'{location}' is no file or folder here, and the Hub does not give it: Name or"
    ):
        Source(location)


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
            "v1", {"first run/epoch_1.pt": weights, "first run/epoch_2.pt": weights}
        )
        server.repositories["someone/runs"].commit("main", {"first run/epoch_1.pt": server.store(b"not wanted")})
        server.repositories["someone/model"] = Repository(private=False)
        server.repositories["someone/model"].commit(
            "main",
            {
                "open_clip_pytorch_model.bin": weights,
                "open_clip_config.json": wrapped,
                **dict.fromkeys(("epoch_1.pt", "epoch_2.pt", "runs/epoch_1.pt"), server.store(b"not wanted")),
            },
        )
        server.repositories["someone/many"] = Repository(private=False)
        server.repositories["someone/many"].commit("main", {"epoch_1.pt": weights, "epoch_2.pt": weights})
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
            ["someone/runs/first run/epoch_1.pt", "one", "--config", "config.json", "--revision", "v1"],
            ["someone/model", "two"],
        ):
            result = subprocess.run(
                [*command, *arguments], cwd=tmp_path, env={**os.environ, **hub}, capture_output=True, text=True, timeout=300,
                check=False,
            )  # fmt: skip
            assert result.returncode == 0, result.stderr
            assert "image_features" in result.stdout
        result = subprocess.run(
            [*command, "someone/many", "three"], cwd=tmp_path, env={**os.environ, **hub}, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        assert result.returncode == 2
        assert "several weights that no index joins (epoch_1.pt, epoch_2.pt): name one" in " ".join(
            result.stderr.split()
        )
    fetched = {path.name for path in (tmp_path / "home" / "hub").glob("models--someone--m*/snapshots/*/*")}
    assert fetched == {"open_clip_pytorch_model.bin", "open_clip_config.json"}
    cards = [(tmp_path / folder / "README.md").read_text() for folder in ("one", "two")]
    assert "Converted from `someone/runs/first run/epoch_1.pt`" in cards[0]
    assert "Converted from `someone/model`" in cards[1]
