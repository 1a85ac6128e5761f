"""What all of open_clip's checkpoints share: names inside a transformer block, fused projections, matrices stored (in, out),
and the keys of a configuration. Those are the fields of its dataclasses, `CLIPVisionCfg` and `CLIPTextCfg`."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from triptych.convert.foreign_keys import UNREAD, fixed, read_keys
from triptych.convert.origin import Origin


# Ours to theirs, inside a block.
_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm_kv": "ln_1_kv",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "{attention}.out_proj": "attn.out_proj",
}

# Ours to theirs, of every model.
_EXACT = {
    "model.logit_scale": "logit_scale",
    "model.vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "model.vision_model.embeddings.class_embedding": "visual.class_embedding",
    "model.vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "model.visual_projection.weight": "visual.proj",
    "model.text_model.embed_tokens.weight": "text.token_embedding.weight",
    "model.text_model.position_embedding.weight": "text.positional_embedding",
}
_PREFIXES = {
    "model.vision_model.pre_layernorm.": "visual.ln_pre.",
    "model.vision_model.post_layernorm.": "visual.ln_post.",
    "model.text_model.final_layer_norm.": "text.ln_final.",
}

# Tables for `read_keys`. What they do not list is refused: towers of timm and transformers, other kinds of blocks.
MODEL_KEYS: dict[str, list] = {
    "vision_cfg": [], "text_cfg": [], "embed_dim": [], "quick_gelu": [False], **fixed(custom_text=True, init_logit_bias=None),
    "init_logit_scale": UNREAD, "nonscalar_logit_scale": UNREAD, "pad_id": UNREAD,  # what `generate` writes behind the end
}  # fmt: skip
VISION_KEYS: dict[str, list] = {
    "layers": [12], "width": [768], "head_width": [64], "mlp_ratio": [4.0], "patch_size": [16], "image_size": [224],
    "no_ln_pre": [False], "norm_kwargs": [None], "output_tokens": [False, True], "patch_dropout": UNREAD, "image_seq_len": UNREAD,
    "pos_embed_type": ["learnable", "learnable", "sin_cos_2d"],  # stored as a table, both
    **fixed(ls_init_value=None, act_kwargs=None, attentional_pool=False, final_ln_after_pool=False, pool_type="tok"),
    "attn_pooler_queries": [256], "attn_pooler_heads": [8],
}  # fmt: skip
TEXT_KEYS: dict[str, list] = {
    "context_length": [77], "vocab_size": [49408], "width": [512], "heads": [8], "layers": [12], "output_tokens": [False, True],
    **fixed(embed_cls=False, pad_id=0, pool_type="argmax", final_ln_after_pool=False, proj_bias=False, proj_type="linear"),
    **fixed(mlp_ratio=4.0, ls_init_value=None, act_kwargs=None, norm_kwargs=None, no_causal_mask=False),
    **fixed(hf_model_name=None, hf_tokenizer_name=None, tokenizer_kwargs=None),
    "dim_head": UNREAD, "n_queries": UNREAD, "attn_pooler_heads": UNREAD,
}  # fmt: skip
_IMAGE_KEYS: dict[str, list] = {
    "mean": [OPENAI_CLIP_MEAN], "std": [OPENAI_CLIP_STD], "size": UNREAD,  # the position table says it
    **fixed(mode="RGB", interpolation="bicubic", resize_mode="shortest", fill_color=0),
}  # fmt: skip


def image_options(config: dict) -> dict[str, Any]:
    """What `open_clip_config.json` says about images beside `model_cfg`, as arguments of an image processor."""
    outer = read_keys("", config, {"model_cfg": [], "preprocess_cfg": [{}]}) if "model_cfg" in config else {}
    found = read_keys("preprocess_cfg.", outer.get("preprocess_cfg", {}), _IMAGE_KEYS)
    return {"image_mean": found["mean"], "image_std": found["std"]}


def read_towers(config: dict, model_keys: dict, vision_keys: dict, text_keys: dict) -> tuple[dict, ...]:
    """What [`read_keys`] finds in a configuration, its `vision_cfg` and its `text_cfg`; then the fields of ours, vision and text."""
    model = read_keys("", config, model_keys)
    vision = read_keys("vision_cfg.", model["vision_cfg"], vision_keys)
    text = read_keys("text_cfg.", model["text_cfg"], text_keys)
    # The norms inside an attentional pooler do not hear of `norm_kwargs`.
    eps = {"eps": [1e-5, 1e-5] if vision["attentional_pool"] else [1e-5]}
    mlp_type = "quick_gelu" if model["quick_gelu"] else "gelu"
    ids = {"bos_token_id": text.get("bos_id"), "eos_token_id": text.get("eos_id")}
    return model, vision, text, {
        "hidden_size": vision["width"], "intermediate_size": int(vision["width"] * vision["mlp_ratio"]),
        "num_hidden_layers": vision["layers"], "num_attention_heads": vision["width"] // vision["head_width"],
        "image_size": vision["image_size"], "patch_size": vision["patch_size"], "pre_layernorm": not vision["no_ln_pre"],
        "norm_eps": read_keys("vision_cfg.norm_kwargs.", vision["norm_kwargs"] or {}, eps)["eps"], "mlp_type": mlp_type,
    }, {
        "vocab_size": text["vocab_size"], "hidden_size": text["width"], "intermediate_size": 4 * text["width"],
        "num_attention_heads": text["heads"], "max_position_embeddings": text["context_length"], "mlp_type": mlp_type,
        # CLIP's tokenizer as open_clip uses it, unless they say something else
        "pad_token_id": text["pad_id"], "bos_token_id": text["vocab_size"] - 2, "eos_token_id": text["vocab_size"] - 1,
        **{name: id_ for name, id_ in ids.items() if id_ is not None},
    }  # fmt: skip


@dataclass(frozen=True)
class OpenClipLayout:
    """Where the parameters of one of our models stand in an open_clip model.

    Args:
        exact (`dict`): Our name to theirs, where they are not those of every model.
        fused (`dict`): Our name with `{qkv}` for q, k and v to theirs, one tensor that holds the three.
        prefixes (`dict`): Beginnings of our names to theirs, likewise.
        blocks (`list`): Our prefix of a block, with `{}` for its index; theirs; our name of its attention.
        transposed (`set`): Their names of what is stored as (in, out). Some are square, so a forgotten transpose raises no error.
        ignored (`set`): Their names of what is nowhere used.
    """

    exact: dict[str, str]
    blocks: list[tuple[str, str, str]]
    transposed: set[str]
    prefixes: dict[str, str] = field(default_factory=dict)
    fused: dict[str, str] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()

    def origin_of(self, name: str) -> Origin:
        """Origin of one of our parameters.

        Raises:
            ValueError: If open_clip has no such parameter.
        """
        if key := (_EXACT | self.exact).get(name):
            return Origin(key, is_transposed=key in self.transposed, is_scalar=key.startswith("logit_"))
        for ours, theirs in self.fused.items():
            for part, letter in enumerate("qkv"):
                if name == ours.format(qkv=letter):
                    return Origin(theirs, part, 3)
        for ours, theirs in (_PREFIXES | self.prefixes).items():
            if name.startswith(ours):
                return Origin(theirs + name.removeprefix(ours))
        for ours, theirs, attention in self.blocks:
            if match := re.match(re.escape(ours).replace(r"\{\}", r"(\d+)"), name):
                origin = _origin_in_block(name[match.end() :], theirs.format(match[1]), attention)
                if origin is not None:
                    return origin
        raise ValueError(f"`{name}` stands nowhere in open_clip's layout.")

    def origins(self, names: Iterable[str]) -> dict[str, Origin]:
        """Origins of all parameters of a model of ours."""
        return {name: self.origin_of(name) for name in names}


def _origin_in_block(rest: str, prefix: str, attention: str) -> Origin | None:
    if match := re.fullmatch(rf"{attention}\.([qkv])_proj\.(weight|bias)", rest):
        return Origin(f"{prefix}attn.in_proj_{match[2]}", "qkv".index(match[1]), 3)
    for ours, theirs in _BLOCK.items():
        start = f"{ours.format(attention=attention)}."
        if rest.startswith(start):
            return Origin(f"{prefix}{theirs}.{rest.removeprefix(start)}")
    return None


__all__ = ["MODEL_KEYS", "TEXT_KEYS", "VISION_KEYS", "OpenClipLayout", "image_options", "read_towers"]
