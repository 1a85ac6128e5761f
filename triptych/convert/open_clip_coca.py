"""CoCa checkpoints in open_clip's layout (`open_clip/src/open_clip/coca_model.py`), as a table of renamings.

Only names and shapes are translated; `docs/grr_coca.md` says how the layouts differ.
"""

from triptych.convert import open_clip_layout as shared
from triptych.convert.foreign_keys import UNREAD, read_keys
from triptych.convert.open_clip_layout import OpenClipLayout
from triptych.modeling.configuration_grr_coca import GrrCocaConfig


_POOLER = "model.vision_model.caption_pooler"
COCA = OpenClipLayout(
    exact={
        f"{_POOLER}.query": "visual.attn_pool.query",
        f"{_POOLER}.cross_attn.q_proj.weight": "visual.attn_pool.attn.q_proj_weight",
        f"{_POOLER}.cross_attn.k_proj.weight": "visual.attn_pool.attn.k_proj_weight",
        f"{_POOLER}.cross_attn.v_proj.weight": "visual.attn_pool.attn.v_proj_weight",
        "model.text_model.cls_token": "text.cls_emb",
        "model.text_projection.weight": "text.text_projection",
        "lm_head.weight": "text_decoder.text_projection",
    },
    fused={f"{_POOLER}.cross_attn.{{qkv}}_proj.bias": "visual.attn_pool.attn.in_proj_bias"},
    prefixes={
        f"{_POOLER}.layer_norm_q.": "visual.attn_pool.ln_q.",
        f"{_POOLER}.layer_norm_kv.": "visual.attn_pool.ln_k.",
        f"{_POOLER}.cross_attn.out_proj.": "visual.attn_pool.attn.out_proj.",
        f"{_POOLER}.layer_norm_out.": "visual.ln_post.",  # the only norm, which without a pooler is behind the blocks
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


_MODEL = {**shared.MODEL_KEYS, "multimodal_cfg": []}
_VISION = {**shared.VISION_KEYS, "attentional_pool": [False, False, True]}
_TEXT = {**shared.TEXT_KEYS, "embed_cls": [False, True], "pad_id": [0], "bos_id": [None], "eos_id": [None]}
# The decoder takes them from the text tower, or never looks.
_OF_TEXT = ["context_length", "vocab_size", "output_tokens", "embed_cls", "pad_id", "bos_id", "eos_id"]


def convert_config(config: dict) -> GrrCocaConfig:
    """Translate an open_clip model configuration (the content of its JSON file); for errors see [`read_keys`].

    Args:
        config (`dict`): With `embed_dim`, `vision_cfg`, `text_cfg`, `multimodal_cfg`.
    """
    model, vision, text, vision_fields, text_fields = shared.read_towers(config, _MODEL, _VISION, _TEXT)
    same = {"width": [512, text["width"]], "heads": [8, text["heads"]], **dict.fromkeys(_OF_TEXT, UNREAD)}
    multimodal = read_keys("multimodal_cfg.", model["multimodal_cfg"], {**_TEXT, **same})
    has_pooler = vision["attentional_pool"]
    return GrrCocaConfig.from_preset(
        "coca-vit-b-32",
        projection_dim=model["embed_dim"],
        vision_config={
            **vision_fields,
            "pooler_type": "open_clip" if has_pooler else "class_token",
            "num_pooler_heads": vision["attn_pooler_heads"] if has_pooler else vision_fields["num_attention_heads"],
            "num_caption_queries": vision["attn_pooler_queries"],
            "pooler_hidden_size": model["embed_dim"] if has_pooler else vision["width"],
        },
        text_config={
            **text_fields,
            "num_unimodal_layers": text["layers"],
            "num_multimodal_layers": multimodal["layers"],
        },
    )


__all__ = ["COCA", "convert_config"]
