"""Where the batches of a training come from: rows by index, epoch after epoch, or a stream that has no end."""

import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, Dataset

from triptych.data.orders import EpochSampler
from triptych.data.streams import PairStream
from triptych.training.run_arguments import RunArguments


class RowBatches:
    """Batches of a data set of rows, whose order the seed and the epoch decide.

    Args:
        data (`Dataset`): Rows by index. If it has `set_epoch`, it is told the epoch.
        order (`Sampler`, *optional*): Of the rows, with `set_epoch`. Default: random.
        collate (`Callable`): From rows to a batch.
        args (`RunArguments`), accelerator (`Accelerator`): Of the run.

    Raises:
        ValueError: If there are fewer rows than one step takes.
    """

    def __init__(
        self,
        data: Dataset,
        order: Any,
        collate: Callable[[list[Any]], Any],
        args: RunArguments,
        accelerator: Accelerator,
    ):
        num_rows, rows_per_batch = len(data), args.batch_size * accelerator.num_processes  # type: ignore[arg-type]
        if num_rows < rows_per_batch:
            raise ValueError(
                f"`batch_size` {args.batch_size} on {accelerator.num_processes} processes needs at least {rows_per_batch} training "
                f"rows, the data set has {num_rows}."
            )
        self.data, self.accelerator = data, accelerator
        self.order = EpochSampler(num_rows, args.seed) if order is None else order
        loader = DataLoader(data, sampler=self.order, drop_last=True, **_loading(collate, args))
        self.loader: Any = accelerator.prepare(loader)
        self.num_batches: float = len(self.loader)
        self.facts: dict[str, Any] = {"number of training rows": num_rows}

    def epoch(self, number: int, first: int) -> Any:
        """The batches of an epoch from the one with the number `first` on."""
        self.loader.set_epoch(number)
        for each in (self.order, self.data):  # accelerate does not reach them behind a resumed, sharded loader
            if hasattr(each, "set_epoch"):
                each.set_epoch(number)
        return self.accelerator.skip_first_batches(self.loader, first) if first else self.loader

    def save(self, folder: Path) -> None:
        """Nothing: the order follows from the seed."""

    def load(self, folder: Path) -> None:
        """Nothing likewise."""


class StreamBatches:
    """Batches of a stream, of which every process and every worker reads shards of its own.

    Args:
        data (`PairStream`): The stream.
        collate (`Callable`): From pairs to a batch.
        args (`RunArguments`), accelerator (`Accelerator`): Of the run.

    Raises:
        ValueError: If there are fewer shards than readers.
    """

    num_batches = math.inf

    def __init__(
        self, data: PairStream, collate: Callable[[list[Any]], Any], args: RunArguments, accelerator: Accelerator
    ):
        from torchdata.stateful_dataloader import StatefulDataLoader

        data.divide(accelerator.process_index, accelerator.num_processes, args.num_workers)
        self.accelerator = accelerator
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "'set_vital' is deprecated")  # torchdata 0.11 beside torch 2.15
            self.loader = StatefulDataLoader(data, **_loading(collate, args))
        self.facts = {**data.facts, "number of processes": accelerator.num_processes, "num_workers": args.num_workers}

    def epoch(self, number: int, first: int) -> Iterator[Any]:
        """The batches from now on; where that is, [`load`] has told."""
        for batch in self.loader:
            yield send_to_device(batch, self.accelerator.device, non_blocking=True)

    def _file(self, folder: Path) -> Path:
        return folder / f"stream_{self.accelerator.process_index}.pt"

    def save(self, folder: Path) -> None:
        """Write down where every reader of this process stands, behind the last batch that was taken."""
        torch.save(self.loader.state_dict(), self._file(folder))

    def load(self, folder: Path) -> None:
        """Go on there."""
        self.loader.load_state_dict(torch.load(self._file(folder), weights_only=True))


def _loading(collate: Callable[[list[Any]], Any], args: RunArguments) -> dict[str, Any]:
    """What every loader of a training is told."""
    return {
        "batch_size": args.micro_batch_size or args.batch_size,
        "collate_fn": collate,
        "num_workers": args.num_workers,
        "pin_memory": torch.cuda.is_available(),
        # Its own generator: the global one belongs to dropout, which a resumed run must continue exactly.
        "generator": torch.Generator().manual_seed(args.seed),
    }


__all__ = ["RowBatches", "StreamBatches"]
