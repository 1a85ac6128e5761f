"""Checkpoints of running trainings: complete or absent, the newest ones kept."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal, Protocol

from accelerate import Accelerator
from transformers import ProcessorMixin


_ORDER_FILE = "order.json"
_ADAPTER_FILE = "adapter.safetensors"


class Batches(Protocol):
    """What a checkpoint must know of `triptych.training.batches`."""

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


def save_checkpoint(
    folder: Path,
    accelerator: Accelerator,
    batches: Batches,
    processor: ProcessorMixin,
    step: int,
    keep: int,
    order: dict[str, Any],
) -> Path:
    """Save everything an exact resume needs as `step-<number>`, then delete all but the newest `keep` checkpoints.

    Written under another name and renamed when complete, so a killed run leaves no checkpoint that looks whole.

    Args:
        folder, accelerator, batches, processor: Where, and of what.
        step (`int`), keep (`int`): Number of the checkpoint, and how many may stay.
        order (`dict`): What the order of the data and the schedule depend on.

    Raises:
        OSError: If it cannot be written, as on a full disk; earlier checkpoints stay.
    """
    target = folder / f"step-{step:08d}"
    staging = folder / f"incomplete-{step:08d}"
    try:
        accelerator.save_state(staging)
        batches.save(staging)
        if accelerator.is_main_process:
            processor.save_pretrained(staging / "processor")
            (staging / _ORDER_FILE).write_text(json.dumps(order), encoding="utf-8")
    except Exception as error:  # torch, safetensors and Python each have their own for a full disk
        shutil.rmtree(staging, ignore_errors=True)
        earlier = sorted(folder.glob("step-*"))
        raise OSError(
            f"The checkpoint of step {step} could not be written to {folder}: {error}. "
            + (
                f"{earlier[-1].name} is whole: make room, and go on with `resume`."
                if earlier
                else "There is no earlier one."
            )
        ) from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _write_through(staging)  # the files of all processes
        remove_folder(target)
        os.replace(staging, target)
        for old in sorted(folder.glob("step-*"))[:-keep]:
            remove_folder(old)
        for abandoned in folder.glob("incomplete-*"):
            shutil.rmtree(abandoned)
    accelerator.wait_for_everyone()
    return target


def remove_folder(folder: Path) -> None:
    """Delete a folder under another name, so that what a kill leaves of it does not look whole."""
    if folder.exists():
        going = folder.with_name(f"incomplete-{folder.name}")
        shutil.rmtree(going, ignore_errors=True)
        folder.rename(going)
        shutil.rmtree(going)


def _write_through(folder: Path) -> None:
    """Have all files of a folder on the disk before anything older is deleted: a machine may die, too."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def load_checkpoint(checkpoint: Path, accelerator: Accelerator, batches: Batches, order: dict[str, Any]) -> None:
    """Go on exactly where a checkpoint was made.

    Raises:
        ValueError: If its run went through the data in another order, or along another schedule.
    """
    saved = json.loads((checkpoint / _ORDER_FILE).read_text(encoding="utf-8"))
    for name in order | saved:
        if saved.get(name) != order.get(name):
            raise ValueError(
                f"`{name}` was {saved.get(name)} when {checkpoint} was made and is {order.get(name)} now: the run could not go on exactly. "
                "Give it as it was, or start anew from the finished model with `model_name_or_path`."
            )
    accelerator.load_state(checkpoint)
    batches.load(checkpoint)


def keep_adapters_only(accelerator: Accelerator) -> None:
    """Let checkpoints of a `PeftModel` hold the adapter alone; its base does not change."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file, save_file

    def save(models: list[Any], weights: list[Any], output_dir: str) -> None:
        if weights and accelerator.is_main_process:
            adapter = get_peft_model_state_dict(accelerator.unwrap_model(models[0]))
            save_file({name: value.contiguous() for name, value in adapter.items()}, Path(output_dir) / _ADAPTER_FILE)
        weights.clear()

    def load(models: list[Any], input_dir: str) -> None:
        adapter = load_file(Path(input_dir) / _ADAPTER_FILE)
        set_peft_model_state_dict(accelerator.unwrap_model(models.pop()), adapter)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def checkpoint_to_resume(folder: Path, resume: bool | Literal["auto"]) -> Path | None:
    """The newest complete checkpoint, or `None` for a run from scratch, which must not mix its checkpoints with earlier ones.

    Args:
        folder (`Path`): Of the checkpoints.
        resume (`bool` or `"auto"`): Whether to go on from one; "auto": if there is one.

    Raises:
        ValueError: If there is none to go on from; or one, but the run is from scratch.
    """
    checkpoints = sorted(folder.glob("step-*"))
    if resume is True and not checkpoints:
        raise ValueError(
            f"There is no checkpoint to resume from in {folder}. Start without `resume`, or with `resume auto`."
        )
    if checkpoints and not resume:
        raise ValueError(
            f"{checkpoints[-1]} is a checkpoint of an earlier run: pass `resume` to go on, or delete {folder}."
        )
    return checkpoints[-1] if checkpoints else None


__all__ = ["checkpoint_to_resume", "keep_adapters_only", "load_checkpoint", "remove_folder", "save_checkpoint"]
