"""Models with random weights and batches for them, which all benchmarks share."""

from typing import Any

import torch
from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

from triptych import VwLmmConfig, VwLmmForCausalLM
from triptych.training.captioners import FAMILIES


CLIP_B = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}


def captioner(preset: str, device: str = "cpu", attention: str = "sdpa", **fields: Any) -> nn.Module:
    """A captioner of a preset, some of whose configuration fields may be others."""
    config_class, model_class, _ = next(family for family in FAMILIES.values() if preset in family[0].presets())
    torch.manual_seed(0)
    with torch.device(device):
        return model_class._from_config(config_class.from_preset(preset, **fields), attn_implementation=attention)


def pairs(model: nn.Module, count: int, length: int) -> dict[str, torch.Tensor]:
    """Images with captions of `length` tokens."""
    size, vocabulary = model.config.vision_config.image_size, model.config.text_config.vocab_size
    length = min(length, model.config.max_position_embeddings)
    ids = torch.randint(3, vocabulary, (count, length), device=model.device)
    pixel_values = torch.randn(count, 3, size, size, device=model.device)
    return {"pixel_values": pixel_values, "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def chat_config(preset: str, vision: dict[str, Any], text: dict[str, Any], **fields: Any) -> VwLmmConfig:
    """VW-LMM of a preset with CLIP's tower of the released models, without its class token, and its last stage's loss."""
    presets = VwLmmConfig.presets()
    return VwLmmConfig(
        **presets[preset]
        | {
            "vision_config": presets["vw-lmm-vicuna-7b"]["vision_config"] | vision,
            "text_config": presets[preset]["text_config"] | text,
            "vision_feature_select_strategy": "default",
            "detach_visual_target": True,
        }
        | fields
    )


def chat_model(
    config: VwLmmConfig, kind: str = "VW-LMM", device: str = "cpu", dtype: torch.dtype = torch.float32
) -> nn.Module:
    """VW-LMM, or transformers' Llava of the same parts; towers and VM head frozen, as in the last stage."""
    options: dict[str, Any] = {"attn_implementation": "sdpa", "dtype": dtype}
    with torch.device(device):
        if kind == "VW-LMM":
            model = VwLmmForCausalLM._from_config(config, **options)
            model.vm_head.requires_grad_(False)
        else:
            same = ("vision_config", "text_config", "vision_feature_layer", "vision_feature_select_strategy")
            theirs = LlavaConfig(
                **{name: getattr(config, name) for name in same}, image_token_index=config.image_token_id
            )
            model = LlavaForConditionalGeneration._from_config(theirs, **options)
    model.model.vision_tower.requires_grad_(False)
    return model


def conversations(
    config: VwLmmConfig, count: int, length: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Rows of an image and `length` words, the second half of which is the answer."""
    size = config.vision_config.image_size
    ids = torch.randint(10, config.image_token_id, (count, length), device=device)
    image = torch.full((count, config.image_seq_length), config.image_token_id, device=device)
    labels = ids.clone()
    labels[:, : length // 2] = -100
    labels = torch.cat([torch.full_like(image, -100), labels], dim=1)
    ids = torch.cat([image, ids], dim=1)
    pixel_values = torch.randn(count, 3, size, size, device=device, dtype=dtype)
    return {"pixel_values": pixel_values, "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
