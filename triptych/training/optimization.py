"""Parameter groups, and the numbers that a resumed run must find again."""

from collections import defaultdict
from dataclasses import asdict, dataclass

from torch import nn


def weight_decay_groups(
    model: nn.Module, weight_decay: float, learning_rate: float, learning_rates: dict[str, float] | None = None
) -> list[dict]:
    """Parameter groups with decay on matrices only: not on biases, norms, single vectors or the logit scale.

    Args:
        model (`nn.Module`): Whose trained parameters are grouped.
        weight_decay (`float`), learning_rate (`float`): Of matrices, and of whatever has no rate of its own.
        learning_rates (`dict[str, float]`, *optional*): Rates of modules with their own, by prefix of their parameters' names.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            own = [rate for prefix, rate in (learning_rates or {}).items() if name.startswith(prefix)]
            groups[own[0] if own else learning_rate, weight_decay if parameter.ndim >= 2 else 0.0].append(parameter)
    return [{"params": parameters, "lr": rate, "weight_decay": decay} for (rate, decay), parameters in groups.items()]


@dataclass
class TrainingState:
    """Where a run stands. Saved with every checkpoint.

    Args:
        step (`int`): Optimiser steps done.
        epoch (`int`): Current pass over the data.
        batch (`int`): Batches of this pass already consumed by this process.
        num_skipped (`int`): Corrupt images skipped so far, by all processes.
        seconds (`float`): Time spent on training so far, evaluations included.
        data_seconds (`float`): Time of it that was spent on waiting for batches.
        best (`float`, *optional*), best_step (`int`): Of the evaluation whose weights are kept, where one is chosen.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    num_skipped: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0
    best: float | None = None
    best_step: int = 0

    def state_dict(self) -> dict:
        return asdict(self)

    def load_state_dict(self, state_dict: dict) -> None:
        vars(self).update(state_dict)


__all__ = ["TrainingState", "weight_decay_groups"]
