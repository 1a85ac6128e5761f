"""Compiled layers: what a step does between its matrix products becomes few kernels."""

from contextlib import AbstractContextManager

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


# torch counts them by function, and all layers share one: kinds of layers, with and without gradient, the first shape and then any.
_MOST_GRAPHS = 64


def compile_layers(model: nn.Module) -> None:
    """Compile the layers of a model by `torch.compile`, each kind once, in place; names of parameters stay.

    The first batch is compiled for its shape, the first of another length or size for all shapes, and nothing after that. What stands
    between the layers (embeddings, masks, losses) is not compiled.

    Args:
        model (`nn.Module`): Whose layers are transformers' `GradientCheckpointingLayer`, as those here and of its language models are.

    Raises:
        ValueError: If there are none.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(f"`compile` finds no layers in a {type(model).__name__}.")
    torch._dynamo.config.recompile_limit = _MOST_GRAPHS
    for layer in layers:
        layer.compile()


def without_compilation() -> AbstractContextManager:
    """Run compiled layers as they are written: evaluations have many shapes that never return.

    It holds for all that torch compiles meanwhile, `flex_attention` too, which then needs the memory of all scores.
    """
    return torch.compiler.set_stance("force_eager")


__all__ = ["compile_layers", "without_compilation"]
