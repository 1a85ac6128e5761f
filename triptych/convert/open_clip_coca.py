"""CoCa checkpoints in open_clip's layout (`open_clip/src/open_clip/coca_model.py`), as a table of renamings.

Only names and shapes are translated; `docs/grr_coca.md` says how the layouts differ.
"""

import torch

from triptych.convert.open_clip_layout import OpenClipLayout
from triptych.modeling.configuration_grr_coca import GrrCocaConfig


_BLOCKS = [
    (r"visual\.transformer\.resblocks\.(\d+)\.", "model.vision_model.layers.{}.", "self_attn"),
    (r"text\.transformer\.resblocks\.(\d+)\.", "model.text_model.layers.{}.", "self_attn"),
    (r"text_decoder\.resblocks\.(\d+)\.", "model.multimodal_decoder.layers.{}.self_block.", "self_attn"),
    (r"text_decoder\.cross_attn\.(\d+)\.", "model.multimodal_decoder.layers.{}.cross_block.", "cross_attn"),
]
_POOLER = "model.vision_model.caption_pooler"
_PREFIXES = {
    "visual.ln_pre.": "model.vision_model.pre_layernorm.",
    "visual.attn_pool.ln_q.": f"{_POOLER}.layer_norm_q.",
    "visual.attn_pool.ln_k.": f"{_POOLER}.layer_norm_kv.",
    "visual.attn_pool.attn.out_proj.": f"{_POOLER}.cross_attn.out_proj.",
    "visual.ln_post.": f"{_POOLER}.layer_norm_out.",
    "text.ln_final.": "model.text_model.final_layer_norm.",
    "text_decoder.ln_final.": "model.multimodal_decoder.final_layer_norm.",
}
_EXACT = {
    "logit_scale": "model.logit_scale",
    "visual.conv1.weight": "model.vision_model.embeddings.patch_embedding.weight",
    "visual.class_embedding": "model.vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "model.vision_model.embeddings.position_embedding.weight",
    "visual.attn_pool.query": f"{_POOLER}.query",
    "visual.attn_pool.attn.q_proj_weight": f"{_POOLER}.cross_attn.q_proj.weight",
    "visual.attn_pool.attn.k_proj_weight": f"{_POOLER}.cross_attn.k_proj.weight",
    "visual.attn_pool.attn.v_proj_weight": f"{_POOLER}.cross_attn.v_proj.weight",
    "visual.attn_pool.attn.in_proj_bias": f"{_POOLER}.cross_attn.{{qkv}}_proj.bias",
    "visual.proj": "model.visual_projection.weight",
    "text.token_embedding.weight": "model.text_model.embed_tokens.weight",
    "text.positional_embedding": "model.text_model.position_embedding.weight",
    "text.cls_emb": "model.text_model.cls_token",
    "text.text_projection": "model.text_projection.weight",
    "text_decoder.text_projection": "lm_head.weight",
}
COCA = OpenClipLayout(
    name="open_clip's CoCa",
    exact=_EXACT,
    prefixes=_PREFIXES,
    blocks=_BLOCKS,
    transposed={"visual.proj", "text.text_projection", "text_decoder.text_projection"},
)


def convert_state_dict(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Translate open_clip parameters into those of [`GrrCocaForConditionalGeneration`].

    Raises:
        ValueError: If a parameter belongs to no open_clip CoCa.
    """
    return COCA.convert_state_dict(state_dict)


def convert_config(
    config: dict, pad_token_id: int = 0, bos_token_id: int = 49406, eos_token_id: int = 49407
) -> GrrCocaConfig:
    """Translate an open_clip model configuration (the content of its JSON file).

    Args:
        config (`dict`): With `embed_dim`, `vision_cfg`, `text_cfg`, `multimodal_cfg`.
        pad_token_id, bos_token_id, eos_token_id (`int`): Ids of CLIP's tokenizer as open_clip uses it.
    """
    vision, text, multimodal = config["vision_cfg"], config["text_cfg"], config["multimodal_cfg"]
    return GrrCocaConfig.from_preset(
        "coca-vit-b-32",
        projection_dim=config["embed_dim"],
        vision_config={
            "hidden_size": vision["width"],
            "intermediate_size": int(vision["width"] * vision.get("mlp_ratio", 4)),
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision.get("head_width", 64),
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "num_pooler_heads": vision.get("attn_pooler_heads", 8),
            "num_caption_queries": vision.get("attn_pooler_queries", 256),
            "pooler_hidden_size": config["embed_dim"],
        },
        text_config={
            "vocab_size": text["vocab_size"],
            "hidden_size": text["width"],
            "intermediate_size": 4 * text["width"],
            "num_unimodal_layers": text["layers"],
            "num_multimodal_layers": multimodal["layers"],
            "num_attention_heads": text["heads"],
            "max_position_embeddings": text["context_length"],
            "pad_token_id": pad_token_id,
            "bos_token_id": bos_token_id,
            "eos_token_id": eos_token_id,
        },
    )


__all__ = ["convert_config", "convert_state_dict"]
