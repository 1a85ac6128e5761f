"""One pass over a data set, which all processes share."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards the model is in the mode in which it was."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def shares_weights(accelerator: Accelerator) -> bool:
    """Whether processes share the weights out (FSDP, DeepSpeed ZeRO-3). Each needs the others for every pass through the model then."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        plugin: Any = accelerator.state.deepspeed_plugin
        return plugin.zero_stage == 3
    return accelerator.distributed_type == DistributedType.FSDP


def map_rows(
    function: Callable[[list[Any]], list[Any]],
    dataset: Dataset,
    accelerator: Accelerator,
    batch_size: int,
    num_workers: int = 0,
    description: str = "evaluate",
) -> list[Any]:
    """Apply a function to all rows of a data set, batch by batch; processes share the rows.

    Where they share weights too, the function is called equally often on all of them.

    Args:
        function (`Callable`): From a list of rows to a list of results, not necessarily as many. Results must be picklable, tensors on
            the CPU.
        dataset: Rows by index.
        accelerator: Of the run.
        batch_size (`int`): Rows at a time.
        num_workers (`int`): Processes that read rows.
        description (`str`): For the progress bar.

    Returns:
        `list`: The results in the order of the rows, on every process.
    """
    results: list[Any] = []
    rows = list(range(len(dataset)))  # type: ignore[arg-type]
    with accelerator.split_between_processes(rows) as indices:
        loader = DataLoader(Subset(dataset, indices), batch_size=batch_size, collate_fn=list, num_workers=num_workers)
        for batch in tqdm(loader, desc=description, leave=False, disable=not accelerator.is_main_process):
            results += function(batch)
        if shares_weights(accelerator):
            most = math.ceil(math.ceil(len(rows) / accelerator.num_processes) / batch_size)
            for _ in range(most - len(loader)):  # others are not through yet
                function([dataset[0]])
    return gather_object(results)


__all__ = ["evaluating", "map_rows", "shares_weights"]
