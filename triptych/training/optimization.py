"""Optimiser, schedule and the numbers that a resumed run must find again."""

from dataclasses import asdict, dataclass

import torch
from torch import nn


def weight_decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Parameter groups with decay on matrices only: not on biases, norms, single vectors or the logit scale."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in parameters if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]


@dataclass
class TrainingState:
    """Where a run stands. Saved with every checkpoint.

    Args:
        step (`int`): Optimiser steps done.
        epoch (`int`): Current pass over the data.
        batch (`int`): Batches of this pass already consumed by this process.
        num_skipped (`int`): Corrupt images skipped so far.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    num_skipped: int = 0

    def state_dict(self) -> dict:
        return asdict(self)

    def load_state_dict(self, state_dict: dict) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)


@torch.no_grad()
def clamp_logit_scale(logit_scale: nn.Parameter, maximum: float) -> None:
    """Keep the learned log inverse temperature in [0, maximum], in place (CLIP, arXiv 2103.00020, section 2.5)."""
    logit_scale.clamp_(0.0, maximum)


def best_precision() -> str:
    """`"bf16"` where the hardware multiplies it natively, else `"no"` (fp32)."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    if torch.backends.mps.is_available():
        return "no"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "no"


__all__ = ["TrainingState", "best_precision", "clamp_logit_scale", "weight_decay_groups"]
