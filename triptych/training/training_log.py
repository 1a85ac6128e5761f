"""The log of a running training: one line of JSON per record, which a resumed run continues where its checkpoint was."""

import json
import math
from pathlib import Path

from accelerate import Accelerator

from triptych.hub import to_json
from triptych.training.optimization import TrainingState


def _complete_rows(path: Path) -> list[dict]:
    """The records of a log; a run that was killed while it wrote has left half a line at the end.

    Raises:
        ValueError: If another line is no JSON.
    """
    rows = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"Line {number} of {path} is no JSON: {line[:60]!r}.") from error
    return rows


class TrainingLog:
    """Numbers of a run, in a file and in its tracker.

    Args:
        path (`Path`): File with a line per record. Without `resume` it starts empty; with it, lines behind the checkpoint go.
        accelerator (`Accelerator`): Of the run; the main process writes.
        state (`TrainingState`): Of the run, after a checkpoint was loaded.
        steps_per_epoch (`float`): Optimiser steps per epoch; infinite for a stream, whose log counts none.
        resume (`bool`): Go on with an earlier run.
    """

    def __init__(
        self, path: Path, accelerator: Accelerator, state: TrainingState, steps_per_epoch: float, resume: bool
    ):
        self.path, self.accelerator, self.state, self.steps_per_epoch = path, accelerator, state, steps_per_epoch
        if accelerator.is_main_process:
            rows = _complete_rows(path) if resume else []
            # A checkpoint stands behind its step's evaluation.
            kept = [row for row in rows if row["step"] <= state.step]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(to_json(row) + "\n" for row in kept), encoding="utf-8")

    def record(self, numbers: dict) -> None:
        """Add numbers of the current step."""
        step = self.state.step
        epoch = {"epoch": round(step / self.steps_per_epoch, 3)} if self.steps_per_epoch < math.inf else {}
        numbers = {"step": step, **epoch, **numbers}
        self.accelerator.log(numbers, step=step)
        if self.accelerator.is_main_process:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(to_json(numbers) + "\n")


__all__ = ["TrainingLog"]
