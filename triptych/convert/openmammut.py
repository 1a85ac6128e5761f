"""openMaMMUT checkpoints (LAION's fork of open_clip, `mammut_model.py`), as a table of renamings.

Only names and shapes are translated; `docs/mammut.md` says how the layout differs from the paper's.
"""

import torch

from triptych.convert.open_clip_layout import OpenClipLayout
from triptych.modeling.configuration_mammut import MammutConfig


OPENMAMMUT = OpenClipLayout(
    name="openMaMMUT",
    exact={
        "logit_scale": "model.logit_scale",
        "map_viz2txt_kv": "model.vision_to_text_projection.weight",
        "visual.proj": "model.visual_projection.weight",
        "visual.conv1.weight": "model.vision_model.embeddings.patch_embedding.weight",
        "visual.class_embedding": "model.vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "model.vision_model.embeddings.position_embedding.weight",
        "text.token_embedding.weight": "model.text_model.embed_tokens.weight",
        "text.positional_embedding": "model.text_model.position_embedding.weight",
        "text.text_projection": "lm_head.weight",
    },
    prefixes={
        "visual.ln_pre.": "model.vision_model.pre_layernorm.",
        "visual.ln_post.": "model.vision_model.post_layernorm.",
        "text.ln_final.": "model.text_model.final_layer_norm.",
    },
    blocks=[
        (r"visual\.transformer\.resblocks\.(\d+)\.", "model.vision_model.layers.{}.", "self_attn"),
        (r"text\.resblocks\.(\d+)\.", "model.text_model.layers.{}.", "self_attn"),
        (r"text\.cross_attn\.(\d+)\.", "model.text_model.cross_layers.{}.", "cross_attn"),
    ],
    transposed={"map_viz2txt_kv", "visual.proj", "text.text_projection"},
)


def convert_state_dict(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Translate openMaMMUT parameters into those of [`MammutForConditionalGeneration`].

    A `logit_bias` (runs started with `--siglip`) is left out: the loss of those runs never added it.

    Raises:
        ValueError: If a parameter belongs to no openMaMMUT.
    """
    return OPENMAMMUT.convert_state_dict(
        {name: value for name, value in state_dict.items() if not name.endswith("logit_bias")}
    )


def convert_config(
    config: dict, pad_token_id: int = 0, bos_token_id: int = 49406, eos_token_id: int = 49407
) -> MammutConfig:
    """Translate a model configuration of LAION's fork (the content of its JSON file).

    Args:
        config (`dict`): With `embed_dim`, `vision_cfg`, `text_cfg`.
        pad_token_id, bos_token_id, eos_token_id (`int`): Ids of CLIP's tokenizer as the fork uses it.
    """
    vision, text = config["vision_cfg"], config["text_cfg"]
    return MammutConfig.from_preset(
        "openmammut-vit-l-14",
        vision_config={
            "hidden_size": vision["width"],
            "intermediate_size": int(vision["width"] * vision.get("mlp_ratio", 4)),
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision.get("head_width", 64),
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
        },
        text_config={
            "vocab_size": text["vocab_size"],
            "hidden_size": text["width"],
            "intermediate_size": 4 * text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "max_position_embeddings": text["context_length"],
            "cross_attn_every": text.get("cross_attn_ratio", 1),
            "self_mlp_at_cross": text.get("has_mlp", True),
            "pad_token_id": pad_token_id,
            "bos_token_id": bos_token_id,
            "eos_token_id": eos_token_id,
        },
    )


__all__ = ["convert_config", "convert_state_dict"]
