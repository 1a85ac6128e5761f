"""Checkpoints of running trainings: complete or absent, the newest ones kept."""

import os
import shutil
from pathlib import Path

from accelerate import Accelerator
from transformers import ProcessorMixin


def save_checkpoint(folder: Path, accelerator: Accelerator, processor: ProcessorMixin, step: int, keep: int) -> Path:
    """Save everything an exact resume needs as `step-<number>`, then delete all but the newest `keep` checkpoints.

    Written under another name and renamed when complete, so a killed run leaves no checkpoint that looks whole.
    """
    target = folder / f"step-{step:08d}"
    staging = folder / f"incomplete-{step:08d}"
    accelerator.save_state(staging)
    if accelerator.is_main_process:
        processor.save_pretrained(staging / "processor")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(target, ignore_errors=True)
        os.replace(staging, target)
        for old in sorted(folder.glob("step-*"))[:-keep]:
            shutil.rmtree(old)
        for abandoned in folder.glob("incomplete-*"):
            shutil.rmtree(abandoned)
    accelerator.wait_for_everyone()
    return target


def refuse_old_checkpoints(folder: Path) -> None:
    """A run from scratch must not mix its checkpoints with those of an earlier one.

    Raises:
        ValueError: If there is a checkpoint.
    """
    if old := sorted(folder.glob("step-*")):
        raise ValueError(f"{old[-1]} is a checkpoint of an earlier run: pass `resume` to go on, or delete {folder}.")


def latest_checkpoint(folder: Path) -> Path:
    """The newest complete checkpoint.

    Raises:
        ValueError: If there is none.
    """
    checkpoints = sorted(folder.glob("step-*"))
    if not checkpoints:
        raise ValueError(f"There is no checkpoint to resume from in {folder}. Start without `resume`.")
    return checkpoints[-1]


__all__ = ["latest_checkpoint", "refuse_old_checkpoints", "save_checkpoint"]
