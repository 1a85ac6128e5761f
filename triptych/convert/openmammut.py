"""openMaMMUT checkpoints (LAION's fork of open_clip, `mammut_model.py`), as a table of renamings.

Only names and shapes are translated; `docs/mammut.md` says how the layout differs from the paper's.
"""

from triptych.convert import open_clip_layout as shared
from triptych.convert.foreign_keys import UNREAD
from triptych.convert.open_clip_layout import OpenClipLayout
from triptych.modeling.configuration_mammut import MammutConfig


OPENMAMMUT = OpenClipLayout(
    exact={"model.vision_to_text_projection.weight": "map_viz2txt_kv", "lm_head.weight": "text.text_projection"},
    blocks=[
        ("model.vision_model.layers.{}.", "visual.transformer.resblocks.{}.", "self_attn"),
        ("model.text_model.layers.{}.", "text.resblocks.{}.", "self_attn"),
        ("model.text_model.cross_layers.{}.", "text.cross_attn.{}.", "cross_attn"),
    ],
    transposed={"map_viz2txt_kv", "visual.proj", "text.text_projection"},
    ignored=frozenset({"logit_bias"}),  # of runs started with --siglip, whose loss never added it
)


_MODEL = {**shared.MODEL_KEYS, "init_logit_bias": UNREAD}
_VISION = {**shared.VISION_KEYS, "pool_type": ["tok", "avg_all"], "final_ln_after_pool": [False]}
_VISION |= dict.fromkeys(["attn_pooler_queries", "attn_pooler_heads"], UNREAD)
_TEXT = {**shared.TEXT_KEYS, "cross_attn_ratio": [1], "has_mlp": [True], "does_full_decoding": [False, True]}


def convert_config(config: dict) -> MammutConfig:
    """Translate a model configuration of LAION's fork (the content of its JSON file); for errors see [`read_keys`].

    Args:
        config (`dict`): With `embed_dim`, `vision_cfg`, `text_cfg`.
    """
    model, vision, text, vision_fields, text_fields = shared.read_towers(config, _MODEL, _VISION, _TEXT)
    if model["embed_dim"] != text["width"]:  # the mean of the text states is the text embedding
        raise ValueError(f"`embed_dim` is {model['embed_dim']}, expected `text_cfg.width`, {text['width']}.")
    normed = not vision["final_ln_after_pool"]
    return MammutConfig.from_preset(
        "openmammut-vit-l-14",
        vision_config={**vision_fields, "norm_before_pool": normed, "norm_decoder_tokens": normed},
        text_config={
            **text_fields,
            "num_hidden_layers": text["layers"],
            "cross_attn_every": text["layers"] // (text["layers"] // text["cross_attn_ratio"]),
            "self_mlp_at_cross": text["has_mlp"],
        },
    )


__all__ = ["OPENMAMMUT", "convert_config"]
