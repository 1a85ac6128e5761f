"""Checkpoints of the authors' VW-LMM repository (LLaVA 1.x layout), as a table of renamings.

Nothing in the weights tells the plain model from the pif one; `docs/vw_lmm.md` says what does.
"""

import inspect
from collections.abc import Iterable
from pathlib import Path

from transformers import CLIPVisionConfig, GenerationConfig, LlamaConfig, MistralConfig, PreTrainedConfig

from triptych.convert.foreign_keys import UNREAD, fixed, read_keys
from triptych.convert.origin import Origin
from triptych.modeling.configuration_vw_lmm import VwLmmConfig, vocabulary_with_placeholder


VISION_PREFIX = "model.vision_tower.vision_tower.vision_model."
# Ours to theirs.
_PREFIXES = {
    "model.vision_tower.": VISION_PREFIX,
    "model.language_model.": "model.",
    "lm_head.": "lm_head.",
    "vm_head.": "vm_head.",
}
_TOWER = "clip-vit-large-patch14-336"  # openai's
_CLIP = VwLmmConfig.presets()["vw-lmm-vicuna-7b"]["vision_config"]
_TEXT_CLASSES = {"mistral": MistralConfig, "llama": LlamaConfig}
_VOCABULARIES = ("model.language_model.embed_tokens.weight", "lm_head.weight", "vm_head.weight")
_PROJECTOR = "model.multi_modal_projector."


def is_buffer(name: str) -> bool:
    """Whether a tensor is one of the buffers that old versions of transformers stored, the angles rounded to bf16."""
    return name.endswith((".rotary_emb.inv_freq", ".embeddings.position_ids"))


def origins(names: Iterable[str]) -> dict[str, Origin]:
    """Origins of all parameters of a [`VwLmmForCausalLM`]. A linear adapter has no number in its name there."""
    names = list(names)
    is_mlp = any(name.startswith(f"{_PROJECTOR}linear_2.") for name in names)
    adapter = {"linear_1.": "0." if is_mlp else "", "linear_2.": "2."}
    prefixes = {f"{_PROJECTOR}{ours}": f"model.mm_projector.{theirs}" for ours, theirs in adapter.items()} | _PREFIXES
    found = {}
    for name in names:
        ours = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        if ours is None:
            raise ValueError(f"`{name}` stands nowhere in the layout of VW-LMM's authors.")
        found[name] = Origin(prefixes[ours] + name.removeprefix(ours), is_vocabulary=name in _VOCABULARIES)
    return found


# transformers' own, and options of training; all of `generate` are among its configuration's
_BOOKKEEPING = [
    *GenerationConfig().to_dict(), *inspect.get_annotations(PreTrainedConfig), "torch_dtype", "auto_map", "tokenizer_class",
    "tokenizer_padding_side", "tokenizer_model_max_length", "max_sequence_length", "use_mm_proj", "tune_mm_mlp_adapter",
    "freeze_mm_mlp_adapter", "pretrain_mm_mlp_adapter", "unfreeze_mm_vision_tower", "mm_projector_lr", "mm_vision_tower_lr",
    "tune_mm_vision_resampler", "freeze_mm_vision_resampler",
    "mm_use_im_patch_token",  # a token that no prompt holds
    "pretraining_tp",  # the same product in parts
    "image_grid_pinpoints", "image_crop_resolution", "image_split_resolution",  # read for "anyres" only
]  # fmt: skip
_KEYS: dict[str, list] = {
    "rope_theta": [10_000.0], "rope_scaling": [None], "vision_config": [None], "mm_vision_select_layer": [],
    "mm_vision_select_feature": ["patch", "patch", "cls_patch"], "mm_projector_type": ["linear", "linear", "mlp2x_gelu"],
    "image_aspect_ratio": [None, None, "square", "pad"],
    **fixed(attention_bias=False, mlp_bias=False, sliding_window=None, is_encoder_decoder=False),
    **fixed(mm_use_im_start_end=False, mm_patch_merge_type="flat", mm_resampler_type=None),
}  # fmt: skip


def _read_own(place: str, given: dict, config_class: type[PreTrainedConfig], **keys: list) -> tuple[dict, dict]:
    """What [`read_keys`] finds, and what of it is a field of one of transformers' configurations, which keeps its name."""
    own = {name: [None] for name in inspect.get_annotations(config_class) if name != "rope_parameters"}
    found = read_keys(place, given, {**dict.fromkeys(_BOOKKEEPING, UNREAD), **keys, **own})
    return found, {name: value for name, value in given.items() if name in own}


def image_options(config: dict) -> dict[str, bool]:
    """Whether images are padded to squares, or cropped, as an argument of [`LlavaImageProcessor`]."""
    return {"do_pad": config.get("image_aspect_ratio") == "pad"}


def convert_config(config: dict, pseudo_image_features: bool) -> VwLmmConfig:
    """Translate the flat `config.json` of the authors; for errors see [`read_keys`].

    Args:
        config (`dict`): The file's content. `vision_config`, if there is one, replaces CLIP ViT-L/14 at 336 pixels.
        pseudo_image_features (`bool`): Whether this is the pif model.
    """
    architecture = (config.get("architectures") or ["llama"])[0]
    text_class = next((_TEXT_CLASSES[name] for name in _TEXT_CLASSES if name in architecture.lower()), None)
    if text_class is None:
        raise ValueError(f"`architectures` is {architecture!r}, expected llama or mistral in it.")
    is_clip = fixed(model_type="clip_vision_model")
    _, vision = _read_own("vision_config.", config.get("vision_config") or _CLIP, CLIPVisionConfig, **is_clip)
    keys = {**_KEYS, "mm_hidden_size": [vision["hidden_size"]] * 2, "mm_vision_tower": UNREAD}
    if not config.get("vision_config"):
        config = {**config, "mm_vision_tower": Path(config.get("mm_vision_tower") or _TOWER).name}
        keys["mm_vision_tower"] = [_TOWER, _TOWER]
    found, text = _read_own("", config, text_class, **keys)
    rope = {"rope_type": "default", "rope_theta": found["rope_theta"]}
    if found["rope_scaling"] is not None:
        scaling = read_keys(
            "rope_scaling.", found["rope_scaling"], {"type": [None, "linear", "dynamic"], "factor": [1.0]}
        )
        rope |= {"rope_type": scaling["type"], "factor": scaling["factor"]}
    words = text.pop("vocab_size")
    vocabulary = vocabulary_with_placeholder(words)
    has_class_token = found["mm_vision_select_feature"] == "cls_patch"
    return VwLmmConfig(
        vision_config=CLIPVisionConfig(**vision),
        text_config=text_class(**text, vocab_size=vocabulary, rope_parameters=rope),
        image_token_id=words,
        num_reserved_tokens=vocabulary - words,
        image_seq_length=(vision["image_size"] // vision["patch_size"]) ** 2 + has_class_token,
        vision_feature_layer=found["mm_vision_select_layer"],
        vision_feature_select_strategy="full" if has_class_token else "default",
        projector_type=found["mm_projector_type"],
        pseudo_image_features=pseudo_image_features,
    )


__all__ = ["VISION_PREFIX", "convert_config", "image_options", "is_buffer", "origins"]
