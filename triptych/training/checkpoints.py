"""Checkpoints of running trainings: complete or absent, the newest ones kept."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import ProcessorMixin


_ORDER_FILE = "order.json"
_ADAPTER_FILE = "adapter.safetensors"


def save_checkpoint(
    folder: Path, accelerator: Accelerator, processor: ProcessorMixin, step: int, keep: int, order: dict[str, int]
) -> Path:
    """Save everything an exact resume needs as `step-<number>`, then delete all but the newest `keep` checkpoints.

    Written under another name and renamed when complete, so a killed run leaves no checkpoint that looks whole.

    Args:
        folder, accelerator, processor: Where, and of what.
        step (`int`), keep (`int`): Number of the checkpoint, and how many may stay.
        order (`dict[str, int]`): What the order of the data and the schedule depend on.
    """
    target = folder / f"step-{step:08d}"
    staging = folder / f"incomplete-{step:08d}"
    accelerator.save_state(staging)
    if accelerator.is_main_process:
        processor.save_pretrained(staging / "processor")
        (staging / _ORDER_FILE).write_text(json.dumps(order), encoding="utf-8")
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


def load_checkpoint(checkpoint: Path, accelerator: Accelerator, order: dict[str, int]) -> None:
    """Go on exactly where a checkpoint was made.

    Raises:
        ValueError: If its run went through the data in another order, or along another schedule.
    """
    saved = json.loads((checkpoint / _ORDER_FILE).read_text(encoding="utf-8"))
    for name, value in order.items():
        if saved[name] != value:
            raise ValueError(
                f"`{name}` was {saved[name]} when {checkpoint} was made and is {value} now: the run could not go on exactly. Give "
                "it as it was, or start anew from the finished model with `model_name_or_path`."
            )
    accelerator.load_state(checkpoint)


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


def checkpoint_to_resume(folder: Path, resume: bool) -> Path | None:
    """The newest complete checkpoint, or `None` for a run from scratch, which must not mix its checkpoints with earlier ones.

    Raises:
        ValueError: If there is none to go on from; or one, but the run is from scratch.
    """
    checkpoints = sorted(folder.glob("step-*"))
    if resume and not checkpoints:
        raise ValueError(f"There is no checkpoint to resume from in {folder}. Start without `resume`.")
    if checkpoints and not resume:
        raise ValueError(
            f"{checkpoints[-1]} is a checkpoint of an earlier run: pass `resume` to go on, or delete {folder}."
        )
    return checkpoints[-1] if resume else None


__all__ = ["checkpoint_to_resume", "keep_adapters_only", "load_checkpoint", "save_checkpoint"]
