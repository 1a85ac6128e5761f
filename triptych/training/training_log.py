"""The log of a running training: one line of JSON per record, which a resumed run continues where its checkpoint was."""

import json
from pathlib import Path

from accelerate import Accelerator

from triptych.training.optimization import TrainingState


class TrainingLog:
    """Numbers of a run, in a file and in its tracker.

    Args:
        path (`Path`): File with a line per record. Without `resume` it starts empty; with it, lines behind the checkpoint go.
        accelerator (`Accelerator`): Of the run; the main process writes.
        state (`TrainingState`): Of the run, after a checkpoint was loaded.
        steps_per_epoch (`int`): Optimiser steps per epoch.
        resume (`bool`): Go on with an earlier run.
    """

    def __init__(self, path: Path, accelerator: Accelerator, state: TrainingState, steps_per_epoch: int, resume: bool):
        self.path, self.accelerator, self.state, self.steps_per_epoch = path, accelerator, state, steps_per_epoch
        rows = [json.loads(line) for line in path.read_text().splitlines()] if resume else []
        # The evaluation of the checkpoint's own step is made again, its training loss is not.
        kept = [row for row in rows if row["step"] < state.step or (row["step"] == state.step and "loss" in row)]
        if accelerator.is_main_process:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def record(self, numbers: dict) -> None:
        """Add numbers of the current step."""
        step = self.state.step
        numbers = {"step": step, "epoch": round(step / self.steps_per_epoch, 3), **numbers}
        self.accelerator.log(numbers, step=step)
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps(numbers) + "\n")


__all__ = ["TrainingLog"]
