"""Where versions of transformers differ and no one form works in all of them: each difference once, with its version."""

import copy
import inspect
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from transformers.cache_utils import Cache
from transformers.generation import utils as generation_utils
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.deprecation import deprecate_kwarg


if TYPE_CHECKING:  # importing transformers' pipelines takes as long as importing torch
    from transformers.pipelines import Pipeline


# 5.24 renamed `past_key_values` to `cache`: arguments of models, fields of outputs, what `generate` keeps for the next step.
_OLD_NAME = "past_key_values"
CACHE_NAME = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else _OLD_NAME


# Some version after 5.16 began to share encoded images out among the chunks of a prompt (`prefill_chunk_size`).
SHARES_IMAGES_OUT = hasattr(generation_utils, "_slice_mm_encoder_output")


def named_cache(cache: Cache | None) -> dict[str, Cache | None]:
    """The keyword argument under which transformers' own models, and `generate`, take a cache."""
    return {CACHE_NAME: cache}


def takes_cache(method: Callable) -> Callable:
    """Let callers of a method with an argument `cache` use the name that their transformers has for it.

    Up to 5.23 that is `past_key_values`, also in the signature that `generate` and `Trainer` inspect. From 5.24 on it is
    `cache`, and the old name is translated with transformers' own deprecation warning.

    Args:
        method (`Callable`): With a parameter `cache`.

    Returns:
        `Callable`: The same, for both names.
    """
    if CACHE_NAME != _OLD_NAME:
        return deprecate_kwarg(_OLD_NAME, "5.40.0", new_name=CACHE_NAME)(method)

    @wraps(method)
    def renamed(*args, **kwargs):
        if _OLD_NAME in kwargs:
            if kwargs.get("cache") is not None:
                raise ValueError(f"`cache` and `{_OLD_NAME}` are two names of one argument; pass one of them.")
            kwargs["cache"] = kwargs.pop(_OLD_NAME)
        return method(*args, **kwargs)

    signature = inspect.signature(method)
    renamed.__signature__ = signature.replace(
        parameters=[
            parameter.replace(name=_OLD_NAME) if parameter.name == "cache" else parameter
            for parameter in signature.parameters.values()
        ]
    )
    return renamed


# 5.20 let pipelines keep what they were told apart from the model's generation config, and merge both at every call.
def pipeline_generate_kwargs(pipeline: "Pipeline", asked: dict, room: int | None, **overrides: Any) -> dict:
    """What a pipeline hands to `generate`.

    Args:
        pipeline (`Pipeline`): With a default for `max_new_tokens` in `_default_generation_config`.
        asked (`dict`): By the caller of the pipeline.
        room (`int`, *optional*): Most new tokens that fit, to which the default is lowered. What somebody asked for stays.
        overrides: What the pipeline itself needs.

    Returns:
        `dict`: Keyword arguments of `generate`.
    """
    if hasattr(pipeline, "_prepare_generate_kwargs"):
        kwargs = pipeline._prepare_generate_kwargs(asked, **overrides)
        if room is not None and "max_new_tokens" in kwargs.keys() - asked.keys():
            kwargs["max_new_tokens"] = max(1, min(kwargs["max_new_tokens"], room))
        return kwargs
    config = copy.deepcopy(asked.get("generation_config", pipeline.generation_config))
    if room is not None and config.max_new_tokens == pipeline._default_generation_config.max_new_tokens:
        config.max_new_tokens = max(1, min(config.max_new_tokens, room))
    others = {name: value for name, value in asked.items() if name != "generation_config"}
    return {**config.update(**others, **overrides), "generation_config": config}


# 5.23 renamed `gradient_checkpointing_enable`, and warns of the old name.
def checkpoint_activations(model: PreTrainedModel) -> None:
    """Compute the activations of layers again in the backward pass instead of keeping them."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()


__all__ = ["CACHE_NAME", "checkpoint_activations", "named_cache", "pipeline_generate_kwargs", "takes_cache"]
