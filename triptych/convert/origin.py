"""Where a parameter of ours comes from in a foreign checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from triptych.modeling.configuration_vw_lmm import vocabulary_with_placeholder


@dataclass(frozen=True)
class Origin:
    """One parameter's place in a foreign checkpoint.

    Args:
        key (`str`): The foreign tensor.
        part, parts (`int`): Which of so many equal blocks of its rows (q, k and v in one matrix).
        is_transposed (`bool`): Stored as (in, out).
        is_scalar (`bool`): A single number, of shape (1,) here and stored with or without a dimension.
        is_vocabulary (`bool`): A row per word, and here rows for VW-LMM's placeholder behind them, the mean of all words.
    """

    key: str
    part: int = 0
    parts: int = 1
    is_transposed: bool = False
    is_scalar: bool = False
    is_vocabulary: bool = False

    def can_take(self, tensor: torch.Tensor) -> bool:
        """Whether a foreign tensor has the form that this origin expects: one number, a matrix, rows in equal blocks."""
        if self.is_scalar:
            return tensor.numel() == 1
        if self.is_transposed or self.is_vocabulary:
            return tensor.ndim == 2
        return self.parts == 1 or (tensor.ndim > 0 and len(tensor) > 0 and len(tensor) % self.parts == 0)

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """Our parameter out of the foreign tensor; a meta tensor gives a meta tensor."""
        if self.is_scalar:
            return tensor.reshape(1)
        if self.is_vocabulary:
            missing = vocabulary_with_placeholder(len(tensor)) - len(tensor)
            mean = tensor.float().mean(0, keepdim=True).to(tensor.dtype)
            return torch.cat([tensor, mean.expand(missing, *mean.shape[1:])])
        if self.is_transposed:
            tensor = tensor.T
        if self.parts > 1:
            tensor = tensor.chunk(self.parts)[self.part]
        return tensor.contiguous() if self.is_transposed else tensor.clone() if self.parts > 1 else tensor


def exported(state_dict: Mapping[str, torch.Tensor], origins: dict[str, Origin]) -> dict[str, torch.Tensor]:
    """The way back: the foreign tensors, bit for bit, in the order of `origins`.

    Args:
        state_dict (`Mapping`): Our parameters.
        origins (`dict`): Of every one of them.
    """
    parts: dict[str, dict[int, torch.Tensor]] = {}
    for name, origin in origins.items():
        tensor = state_dict[name]
        if origin.is_scalar:
            tensor = tensor.reshape(())
        parts.setdefault(origin.key, {})[origin.part] = tensor.T.contiguous() if origin.is_transposed else tensor
    return {
        key: torch.cat([found[part] for part in sorted(found)]) if len(found) > 1 else found[0]
        for key, found in parts.items()
    }


__all__ = ["Origin", "exported"]
