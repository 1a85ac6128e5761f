"""Checkpoints of the authors' VW-LMM repository (LLaVA 1.x layout), as a table of renamings.

Nothing in the weights tells the plain model from the pif one; `docs/vw_lmm.md` says what does.
"""

from collections.abc import Iterable

from transformers import AutoConfig, CLIPVisionConfig

from triptych.convert.origin import Origin
from triptych.modeling.configuration_vw_lmm import VW_LMM_PRESETS, VwLmmConfig


VISION_PREFIX = "model.vision_tower.vision_tower.vision_model."
# Ours to theirs.
_PREFIXES = {
    "model.vision_tower.": VISION_PREFIX,
    "model.language_model.": "model.",
    "lm_head.": "lm_head.",
    "vm_head.": "vm_head.",
}
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
        found[name] = Origin(prefixes[ours] + name.removeprefix(ours))
    return found


def convert_config(config: dict, pseudo_image_features: bool) -> VwLmmConfig:
    """Translate the flat `config.json` of the authors.

    Args:
        config (`dict`): The file's content. `vision_config`, if there is one, replaces CLIP ViT-L/14 at 336 pixels.
        pseudo_image_features (`bool`): Whether this is the pif model.
    """
    architecture = (config.get("architectures") or [""])[0].lower()
    text_type = "mistral" if "mistral" in architecture else "llama"
    known = type(AutoConfig.for_model(text_type)).__dataclass_fields__
    text = {key: value for key, value in config.items() if key in known and key not in ("architectures", "model_type")}
    text["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": text.pop("rope_theta", config.get("rope_theta", 10_000.0)),
    }
    vision = config.get("vision_config") or VW_LMM_PRESETS["vw-lmm-vicuna-7b"]["vision_config"]
    strategies = {"patch": "default", "cls_patch": "full"}
    return VwLmmConfig(
        vision_config=CLIPVisionConfig(**{key: value for key, value in vision.items() if key != "model_type"}),
        text_config={"model_type": text_type, **text},
        image_token_id=config["vocab_size"],
        vision_feature_layer=config["mm_vision_select_layer"],
        vision_feature_select_strategy=strategies[config.get("mm_vision_select_feature", "patch")],
        projector_type=config.get("mm_projector_type", "linear"),
        pseudo_image_features=pseudo_image_features,
    )


__all__ = ["VISION_PREFIX", "convert_config", "is_buffer", "origins"]
