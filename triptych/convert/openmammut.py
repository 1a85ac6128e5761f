"""openMaMMUT checkpoints (LAION's fork of open_clip, `mammut_model.py`), as a table of renamings.

Only names and shapes are translated; `docs/mammut.md` says how the layout differs from the paper's.
"""

from triptych.convert.open_clip_layout import OpenClipLayout
from triptych.modeling.configuration_mammut import MammutConfig


OPENMAMMUT = OpenClipLayout(
    exact={
        "model.logit_scale": "logit_scale",
        "model.vision_to_text_projection.weight": "map_viz2txt_kv",
        "model.visual_projection.weight": "visual.proj",
        "model.vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "model.vision_model.embeddings.class_embedding": "visual.class_embedding",
        "model.vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "model.text_model.embed_tokens.weight": "text.token_embedding.weight",
        "model.text_model.position_embedding.weight": "text.positional_embedding",
        "lm_head.weight": "text.text_projection",
    },
    prefixes={
        "model.vision_model.pre_layernorm.": "visual.ln_pre.",
        "model.vision_model.post_layernorm.": "visual.ln_post.",
        "model.text_model.final_layer_norm.": "text.ln_final.",
    },
    blocks=[
        ("model.vision_model.layers.{}.", "visual.transformer.resblocks.{}.", "self_attn"),
        ("model.text_model.layers.{}.", "text.resblocks.{}.", "self_attn"),
        ("model.text_model.cross_layers.{}.", "text.cross_attn.{}.", "cross_attn"),
    ],
    transposed={"map_viz2txt_kv", "visual.proj", "text.text_projection"},
    ignored=frozenset({"logit_bias"}),  # of runs started with --siglip, whose loss never added it
)


def convert_config(
    config: dict, pad_token_id: int = 0, bos_token_id: int | None = None, eos_token_id: int | None = None
) -> MammutConfig:
    """Translate a model configuration of LAION's fork (the content of its JSON file).

    Args:
        config (`dict`): With `embed_dim`, `vision_cfg`, `text_cfg`.
        pad_token_id, bos_token_id, eos_token_id (`int`, *optional*): Default: 0 and the last two, those of CLIP's tokenizer as the fork uses it.
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
            "bos_token_id": text["vocab_size"] - 2 if bos_token_id is None else bos_token_id,
            "eos_token_id": text["vocab_size"] - 1 if eos_token_id is None else eos_token_id,
        },
    )


__all__ = ["OPENMAMMUT", "convert_config"]
