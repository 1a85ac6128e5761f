"""Orders in which a training goes through its rows. Each depends on its seed and the epoch alone, so a resumed run repeats none."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class EpochSampler(Sampler[int]):
    """A random order of rows, another one in every epoch.

    Args:
        num_rows (`int`): Rows of the data set.
        seed (`int`): Of the order.
    """

    def __init__(self, num_rows: int, seed: int = 0):
        self.num_rows, self.seed, self.epoch = num_rows, seed, 0

    def __len__(self) -> int:
        return self.num_rows

    def set_epoch(self, epoch: int) -> None:
        """Change the order; call it before iterating."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rows = list(range(self.num_rows))
        random.Random(f"{self.seed}-{self.epoch}").shuffle(rows)
        return iter(rows)


class GroupedSampler(EpochSampler):
    """A random order in which a few rows of one group follow one another, so that a batch encodes their picture once.

    Args:
        groups (`Sequence`): Group of every row: its image or clip.
        group_size (`int`): Most rows of a group that stay together; the others come at another place of the epoch.
        seed (`int`): Seed of the order.

    Raises:
        ValueError: If `group_size` is not positive.
    """

    def __init__(self, groups: Sequence, group_size: int, seed: int = 0):
        if group_size < 1:
            raise ValueError(f"`group_size` must be positive, got {group_size}.")
        super().__init__(len(groups), seed)
        rows: dict[Any, list[int]] = {}
        for row, group in enumerate(groups):
            rows.setdefault(group, []).append(row)
        self.rows = list(rows.values())
        self.group_size = group_size

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self.seed}-{self.epoch}")
        parts = []
        for rows in self.rows:
            shuffled = rng.sample(rows, len(rows))
            parts += [shuffled[start : start + self.group_size] for start in range(0, len(rows), self.group_size)]
        rng.shuffle(parts)
        for part in parts:
            yield from part


class LengthGroupedSampler(EpochSampler):
    """Batches of rows of about the same length, in a random order, so that little of them is padding.

    transformers puts long rows first within every 50 batches; here the order of batches is random. The batch of the longest row stays
    the first, so that memory runs out at once, if it does; what fills no batch is the last.

    Args:
        lengths (`Sequence[int]`): Of every row.
        batch_size (`int`): Rows of all processes in one step.
        seed (`int`): Seed of the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int = 0):
        super().__init__(len(lengths), seed)
        self.lengths, self.batch_size = lengths, batch_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(random.Random(f"{self.seed}-{self.epoch}").getrandbits(63))
        rows = get_length_grouped_indices(list(self.lengths), self.batch_size, generator=generator)
        first, *batches = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        last = batches.pop() if batches and len(batches[-1]) < self.batch_size else []
        yield from first
        for batch in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[batch]
        yield from last


__all__ = ["EpochSampler", "GroupedSampler", "LengthGroupedSampler"]
