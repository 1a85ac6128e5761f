"""Models whose weights the processes share out (FSDP2, DeepSpeed): how they are called, and put together again."""

from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers.integrations.deepspeed import unset_hf_deepspeed_config


# Methods that trainings and evaluations call beside `forward`.
_METHODS = (
    "embed_pairs", "contrastive_gradients", "contrastive_losses", "get_image_features", "get_text_features", "generate",
)  # fmt: skip


def reach_through_sharding(model: Any) -> None:
    """Let FSDP2 gather the weights for all methods that are called, as it does for `forward`."""
    if isinstance(model, FSDPModule):
        for name in filter(lambda name: hasattr(model, name), _METHODS):
            register_fsdp_forward_method(model, name)  # type: ignore[arg-type]


def whole_model(model: Any, model_class: type, accelerator: Accelerator) -> Any:
    """A model with all of its weights, to be saved; called by all processes.

    Args:
        model: Prepared by `accelerator`.
        model_class (`type`): It was of this class before: FSDP2 makes it another one.
        accelerator (`Accelerator`): Of the run.

    Returns:
        On the main process a model that has weights and configurations, but nothing that is computed from them, so that it can only be
        saved; `None` on the others.
    """
    weights = accelerator.get_state_dict(model)
    unset_hf_deepspeed_config()  # for which transformers would share out what is built from now on
    if not accelerator.is_main_process:
        return None
    shared = accelerator.unwrap_model(model)
    with torch.device("meta"):  # another copy of the weights would be one too many
        whole = model_class(shared.config)
    whole.load_state_dict(weights, assign=True)
    whole.tie_weights()
    whole.generation_config = shared.generation_config
    return whole


__all__ = ["reach_through_sharding", "whole_model"]
