"""The four training stages of VW-LMM: what each one trains, and towards what.

The authors published no training code. What is known of the stages, and what is our choice, is in `docs/vw_lmm.md`.
"""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from triptych.modeling.modeling_vw_lmm import VwLmmForCausalLM


ADAPTER = "model.multi_modal_projector"
LANGUAGE_MODEL = "model.language_model"


@dataclass(frozen=True)
class Stage:
    """One stage.

    Args:
        trained (`tuple[str, ...]`): Modules that are trained; all others are frozen, the vision tower always.
        visual_loss (`str`): `visual_loss` of the configuration during the stage.
        detach_visual_target (`bool`): `detach_visual_target` of the configuration during the stage.
    """

    trained: tuple[str, ...]
    visual_loss: Literal["visual_words", "fit_vm_head", "none"]
    detach_visual_target: bool = False


STAGES = {
    "align": Stage((ADAPTER,), "none"),
    "instruct": Stage((ADAPTER, LANGUAGE_MODEL, "lm_head"), "none"),
    "fit_vm_head": Stage(("vm_head",), "fit_vm_head"),
    # Not detached, as in the released code, the adapter soon gives every patch the same word: that is easiest to predict.
    "joint": Stage((ADAPTER, LANGUAGE_MODEL, "lm_head"), "visual_words", detach_visual_target=True),
}


def prepare_stage(model: VwLmmForCausalLM, stage: Stage, lora_rank: int | None = None) -> nn.Module:
    """Freeze and unfreeze the model for a stage, and set its loss.

    Args:
        model ([`VwLmmForCausalLM`]): The model; changed in place.
        stage ([`Stage`]): What to train.
        lora_rank (`int`, *optional*): Train the language model through LoRA adapters of this rank; `merge_and_unload` of the
            returned model ends the stage.

    Returns:
        `nn.Module`: What to hand to the trainer: the model, or a `PeftModel` around it.

    Raises:
        ValueError: If the stage trains a module that the model does not have.
    """
    modules = {}
    for name in stage.trained:
        try:
            modules[name] = model.get_submodule(name)
        except AttributeError as error:
            raise ValueError(f"The stage trains `{name}`, which the model does not have.") from error
    if not modules:
        raise ValueError(f"The stage trains nothing: {stage}.")
    model.config.visual_loss = stage.visual_loss
    model.config.detach_visual_target = stage.detach_visual_target
    model.requires_grad_(False)
    if lora_rank is not None and LANGUAGE_MODEL in modules:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=lora_rank,
            lora_alpha=2 * lora_rank,
            target_modules=r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
            # trained whole, and part of every checkpoint
            modules_to_save=[name for name in modules if name not in (LANGUAGE_MODEL, "lm_head")],
        )
        return get_peft_model(model, config)  # type: ignore[arg-type]
    for module in modules.values():
        module.requires_grad_(True)
    return model


__all__ = ["STAGES", "Stage", "prepare_stage"]
