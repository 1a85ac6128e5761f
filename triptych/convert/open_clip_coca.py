"""CoCa checkpoints in open_clip's layout (`open_clip/src/open_clip/coca_model.py`), as a table of renamings.

Only names and shapes are translated; `docs/grr_coca.md` says how the layouts differ.
"""

import re

import torch

from triptych.modeling.configuration_grr_coca import GrrCocaConfig


_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_1_kv": "layer_norm_kv",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "{attention}.out_proj",
    "attn.in_proj_weight": "{attention}.{qkv}_proj.weight",
    "attn.in_proj_bias": "{attention}.{qkv}_proj.bias",
}
# regex of a block's prefix, our prefix, our name of its attention
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
# Stored as (in, out) and multiplied from the right. Two of them are square, so a forgotten transpose raises no error.
_TRANSPOSED = {"visual.proj", "text.text_projection", "text_decoder.text_projection"}


def rename_key(key: str) -> str:
    """Our name of an open_clip parameter; `{qkv}` stands for q, k, v where one tensor holds the three.

    Raises:
        ValueError: If the parameter belongs to no open_clip CoCa.
    """
    if key in _EXACT:
        return _EXACT[key]
    for prefix, target in _PREFIXES.items():
        if key.startswith(prefix):
            return target + key.removeprefix(prefix)
    for pattern, target, attention in _BLOCKS:
        if match := re.match(pattern, key):
            rest = key[match.end() :]
            for suffix, renamed in _BLOCK.items():
                if rest == suffix or rest.startswith(f"{suffix}."):
                    name = target.format(match[1]) + renamed + rest.removeprefix(suffix)
                    return name.replace("{attention}", attention)
    raise ValueError(f"{key!r} is not a parameter of open_clip's CoCa.")


def convert_state_dict(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Translate open_clip parameters into those of [`GrrCocaForConditionalGeneration`].

    Raises:
        ValueError: If a parameter belongs to no open_clip CoCa.
    """
    converted = {}
    for key, tensor in state_dict.items():
        key = key.removeprefix("module.")
        name = rename_key(key)
        if key in _TRANSPOSED:
            tensor = tensor.T.contiguous()
        if "{qkv}" in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                converted[name.replace("{qkv}", letter)] = part.clone()
        else:
            converted[name] = tensor.reshape(()) if key == "logit_scale" else tensor
    return converted


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


__all__ = ["convert_config", "convert_state_dict", "rename_key"]
