"""CoCa checkpoints in open_clip's layout (`open_clip/src/open_clip/coca_model.py`), as a table of renamings.

Only names and shapes are translated; `docs/grr_coca.md` says how the layouts differ.
"""

from triptych.convert.open_clip_layout import OpenClipLayout
from triptych.modeling.configuration_grr_coca import GrrCocaConfig


_POOLER = "model.vision_model.caption_pooler"
COCA = OpenClipLayout(
    exact={
        "model.logit_scale": "logit_scale",
        "model.vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "model.vision_model.embeddings.class_embedding": "visual.class_embedding",
        "model.vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        f"{_POOLER}.query": "visual.attn_pool.query",
        f"{_POOLER}.cross_attn.q_proj.weight": "visual.attn_pool.attn.q_proj_weight",
        f"{_POOLER}.cross_attn.k_proj.weight": "visual.attn_pool.attn.k_proj_weight",
        f"{_POOLER}.cross_attn.v_proj.weight": "visual.attn_pool.attn.v_proj_weight",
        "model.visual_projection.weight": "visual.proj",
        "model.text_model.embed_tokens.weight": "text.token_embedding.weight",
        "model.text_model.position_embedding.weight": "text.positional_embedding",
        "model.text_model.cls_token": "text.cls_emb",
        "model.text_projection.weight": "text.text_projection",
        "lm_head.weight": "text_decoder.text_projection",
    },
    fused={f"{_POOLER}.cross_attn.{{qkv}}_proj.bias": "visual.attn_pool.attn.in_proj_bias"},
    prefixes={
        "model.vision_model.pre_layernorm.": "visual.ln_pre.",
        f"{_POOLER}.layer_norm_q.": "visual.attn_pool.ln_q.",
        f"{_POOLER}.layer_norm_kv.": "visual.attn_pool.ln_k.",
        f"{_POOLER}.cross_attn.out_proj.": "visual.attn_pool.attn.out_proj.",
        # With a pooler the only norm stands behind it; without, behind the blocks.
        f"{_POOLER}.layer_norm_out.": "visual.ln_post.",
        "model.vision_model.post_layernorm.": "visual.ln_post.",
        "model.text_model.final_layer_norm.": "text.ln_final.",
        "model.multimodal_decoder.final_layer_norm.": "text_decoder.ln_final.",
    },
    blocks=[
        ("model.vision_model.layers.{}.", "visual.transformer.resblocks.{}.", "self_attn"),
        ("model.text_model.layers.{}.", "text.transformer.resblocks.{}.", "self_attn"),
        ("model.multimodal_decoder.layers.{}.self_block.", "text_decoder.resblocks.{}.", "self_attn"),
        ("model.multimodal_decoder.layers.{}.cross_block.", "text_decoder.cross_attn.{}.", "cross_attn"),
    ],
    transposed={"visual.proj", "text.text_projection", "text_decoder.text_projection"},
)


def convert_config(
    config: dict, pad_token_id: int = 0, bos_token_id: int | None = None, eos_token_id: int | None = None
) -> GrrCocaConfig:
    """Translate an open_clip model configuration (the content of its JSON file).

    Args:
        config (`dict`): With `embed_dim`, `vision_cfg`, `text_cfg`, `multimodal_cfg`.
        pad_token_id, bos_token_id, eos_token_id (`int`, *optional*): Default: 0 and the last two, those of CLIP's tokenizer as open_clip uses it.
    """
    vision, text, multimodal = config["vision_cfg"], config["text_cfg"], config["multimodal_cfg"]
    has_pooler = bool(vision.get("attentional_pool", False))
    heads = vision["width"] // vision.get("head_width", 64)
    return GrrCocaConfig.from_preset(
        "coca-vit-b-32",
        projection_dim=config["embed_dim"],
        vision_config={
            "hidden_size": vision["width"],
            "intermediate_size": int(vision["width"] * vision.get("mlp_ratio", 4)),
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": heads,
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "pooler_type": "open_clip" if has_pooler else "class_token",
            "num_pooler_heads": vision.get("attn_pooler_heads", 8) if has_pooler else heads,
            "num_caption_queries": vision.get("attn_pooler_queries", 256),
            "pooler_hidden_size": config["embed_dim"] if has_pooler else vision["width"],
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
            "bos_token_id": text["vocab_size"] - 2 if bos_token_id is None else bos_token_id,
            "eos_token_id": text["vocab_size"] - 1 if eos_token_id is None else eos_token_id,
        },
    )


__all__ = ["COCA", "convert_config"]
