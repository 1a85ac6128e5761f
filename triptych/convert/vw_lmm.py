"""Checkpoints of the authors' VW-LMM repository (LLaVA 1.x layout), as a table of renamings.

Nothing in the weights tells the plain model from the pif one; `docs/vw_lmm.md` says what does.
"""

import torch
from transformers import AutoConfig, CLIPVisionConfig

from triptych.modeling.configuration_vw_lmm import VW_LMM_PRESETS, VwLmmConfig


# In order; the first match wins.
_PREFIXES = {
    "model.vision_tower.vision_tower.vision_model.": "model.vision_tower.",
    "model.mm_projector.0.": "model.multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "model.multi_modal_projector.linear_2.",
    "model.mm_projector.": "model.multi_modal_projector.linear_1.",
    "model.": "model.language_model.",
    "lm_head.": "lm_head.",
    "vm_head.": "vm_head.",
}
# Buffers that old versions of transformers stored, the angles rounded to bf16.
_BUFFERS = (".rotary_emb.inv_freq", ".embeddings.position_ids")


def convert_state_dict(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Translate the authors' parameters into those of [`VwLmmForCausalLM`].

    Raises:
        ValueError: If a parameter belongs to no VW-LMM.
    """
    converted = {}
    for name, value in state_dict.items():
        if name.endswith(_BUFFERS):
            continue
        prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
        if prefix is None:
            raise ValueError(f"`{name}` is not a parameter of VW-LMM: expected {', '.join(sorted(_PREFIXES))}.")
        converted[_PREFIXES[prefix] + name.removeprefix(prefix)] = value
    return converted


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


__all__ = ["convert_config", "convert_state_dict"]
