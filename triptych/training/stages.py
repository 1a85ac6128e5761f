"""The four training stages of VW-LMM: what each one trains, and towards what.

The authors published no training code. What is known of the stages, and what is our choice, is in `docs/vw_lmm.md`.
"""

import gc
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from triptych.arguments import argument
from triptych.data.conversations import ConversationCollator
from triptych.data.orders import LengthGroupedSampler
from triptych.hub import describe_machine, staged, to_json
from triptych.modeling.modeling_vw_lmm import VwLmmForCausalLM
from triptych.processing.processing_vw_lmm import VwLmmProcessor
from triptych.training.captioners import read_json
from triptych.training.cards import run_facts
from triptych.training.checkpoints import remove_folder
from triptych.training.engine import Engine, Task
from triptych.training.run_arguments import RunArguments
from triptych.training.smollm2 import CHAT_TEMPLATE, smollm2_checkpoint


ADAPTER = "model.multi_modal_projector"
LANGUAGE_MODEL = "model.language_model"


@dataclass(frozen=True)
class Stage:
    """One stage.

    Args:
        trained (`tuple[str, ...]`): Modules that are trained; all others are frozen, the vision tower always.
        visual_loss (`str`): `visual_loss` of the configuration during the stage.
        detach_visual_target (`bool`): `detach_visual_target` of the configuration during the stage.
    """

    trained: tuple[str, ...]
    visual_loss: Literal["visual_words", "fit_vm_head", "none"]
    detach_visual_target: bool = False


STAGES = {
    "align": Stage((ADAPTER,), "none"),
    "instruct": Stage((ADAPTER, LANGUAGE_MODEL, "lm_head"), "none"),
    "fit_vm_head": Stage(("vm_head",), "fit_vm_head"),
    # Not detached, as in the released code, the adapter soon gives every patch the same word: that is easiest to predict.
    "joint": Stage((ADAPTER, LANGUAGE_MODEL, "lm_head"), "visual_words", detach_visual_target=True),
}


# What the joint stage is compared with.
COMPARISON: dict[str, dict[str, Any]] = {
    "language loss only": {"visual_loss": "none"},
    "visual words, pseudo image features": {"pseudo_image_features": True},
}


@dataclass
class StageArguments:
    """What VW-LMM is made of, and its stages."""

    vision: str = argument(help="Vision tower: a folder or Hub name; also of a CLIP, GRR-CoCa or MaMMUT model.")
    text: str | None = argument(default=None, help="Language model. Default: SmolLM2-135M-Instruct.")
    chat_template: str | None = argument(
        default=None, help="vicuna_v1, mistral, or Jinja. Default: the language model's own."
    )
    stages: str = argument(default="align,instruct,fit_vm_head,joint", help="Stages to train, in order.")
    steps: str = argument(
        default='{"align": 60, "instruct": 560, "fit_vm_head": 150, "joint": 70}',
        help="JSON: optimiser steps of every stage.",
    )
    learning_rates: str = argument(
        default='{"align": 1e-3, "instruct": 2e-4, "fit_vm_head": 1e-3, "joint": 2e-4}',
        help="JSON: peak learning rate of every stage. The defaults suit the small model.",
    )
    lora_rank: int | None = argument(default=None, help="Train the language model through LoRA of this rank.")
    packing: bool = argument(
        default=False,
        help="Put short conversations of a batch into one row, where they do not see one another: less padding.",
    )

    def __post_init__(self) -> None:
        if unknown := [name for name in self.names if name not in STAGES]:
            raise ValueError(f"`stages` holds {unknown[0]!r}; expected some of {', '.join(STAGES)}.")
        for key in ("steps", "learning_rates"):
            text = getattr(self, key)
            if missing := [name for name in self.names if name not in read_json(key, text)]:
                raise ValueError(f"`{key}` says nothing about the stage {missing[0]!r}: {text}.")

    @property
    def names(self) -> list[str]:
        """Names of the stages."""
        return self.stages.split(",")

    def run(self, name: str, args: RunArguments, folder: Path) -> RunArguments:
        """Arguments of one stage's run, in a folder of its own."""
        steps, rate = read_json("steps", self.steps)[name], read_json("learning_rates", self.learning_rates)[name]
        return replace(
            args, output_dir=str(folder), max_steps=steps, learning_rate=rate, hub_model_id=None, hub_private=False
        )


def prepare_stage(
    model: VwLmmForCausalLM,
    stage: Stage,
    lora_rank: int | None = None,
    visual_loss: str | None = None,
    pseudo_image_features: bool = False,
) -> nn.Module:
    """Freeze and unfreeze the model for a stage, and set its loss.

    Args:
        model ([`VwLmmForCausalLM`]): The model; changed in place.
        stage ([`Stage`]): What to train.
        lora_rank (`int`, *optional*): Train the language model through LoRA adapters of this rank; `merge_and_unload` of the
            returned model ends the stage.
        visual_loss (`str`, *optional*): Another loss than the stage's.
        pseudo_image_features (`bool`): Show the language model words in place of the adapter's features.

    Returns:
        `nn.Module`: What to train: the model, or a `PeftModel` around it.

    Raises:
        ValueError: If the stage trains a module that the model does not have.
    """
    known = dict(model.named_modules())
    if unknown := [name for name in stage.trained if name not in known]:
        raise ValueError(f"The stage trains `{unknown[0]}`, which the model does not have.")
    modules = {name: known[name] for name in stage.trained}
    if not modules:
        raise ValueError(f"The stage trains nothing: {stage}.")
    model.config.visual_loss = visual_loss or stage.visual_loss
    model.config.pseudo_image_features = pseudo_image_features
    model.config.detach_visual_target = stage.detach_visual_target
    model.requires_grad_(False)
    if lora_rank is not None and LANGUAGE_MODEL in modules:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=lora_rank,
            lora_alpha=2 * lora_rank,
            target_modules=r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
            # trained whole, and part of every checkpoint
            modules_to_save=[name for name in modules if name not in (LANGUAGE_MODEL, "lm_head")],
        )
        return get_peft_model(model, config)  # type: ignore[arg-type]
    for module in modules.values():
        module.requires_grad_(True)
    return model


def build_vw_lmm(args: StageArguments) -> tuple[VwLmmForCausalLM, VwLmmProcessor]:
    """A model of two checkpoints, with its processor."""
    source, options = (args.text, {}) if args.text is not None else smollm2_checkpoint()
    chat_template = args.chat_template or (CHAT_TEMPLATE if args.text is None else None)
    processor = VwLmmProcessor.from_vision_text_pretrained(args.vision, source, 1, chat_template, options)
    model = VwLmmForCausalLM.from_vision_text_pretrained(
        args.vision,
        source,
        text_kwargs={**options, "dtype": torch.float32},
        image_token_id=processor.image_token_id,
    )
    processor.image_seq_length = model.config.image_seq_length
    return model, processor


def load_stage(folder: Path) -> tuple[VwLmmForCausalLM, VwLmmProcessor]:
    """Model, in fp32, and processor of a finished stage."""
    # On a CPU eager attention is faster than sdpa for short texts.
    attention = "sdpa" if torch.accelerator.is_available() else "eager"
    model = VwLmmForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
    return model, VwLmmProcessor.from_pretrained(folder)


def run_stage(
    name: str,
    args: RunArguments,
    start: Path,
    data: Any,
    lora_rank: int | None,
    packing: bool = False,
    **changes: Any,
) -> None:
    """Train one stage up to the checkpoint in `args.output_dir`; one that is finished already is left as it is.

    Args:
        name (`str`): Of the stage.
        args ([`RunArguments`]): Of this stage. If there are checkpoints, it goes on from the last.
        start (`Path`): Folder of the stage before.
        data (`Dataset`): Conversations, with `lengths()`.
        lora_rank (`int`, *optional*), changes: As of [`prepare_stage`].
        packing (`bool`): As of [`ConversationCollator`].
    """
    folder = Path(args.output_dir)
    if (folder / "config.json").exists():
        print(f"{folder} is finished; going on behind it.")
        return
    # Another order of the data in every stage.
    seed, resume = args.seed + list(STAGES).index(name), any(folder.glob("checkpoints/step-*"))
    engine = Engine(replace(args, seed=seed, resume=resume))
    accelerator = engine.accelerator
    model, processor = load_stage(start)
    rows_per_step = args.batch_size * args.gradient_accumulation_steps * accelerator.num_processes
    task = Task(
        name=f"visual_words_{name}",
        model=prepare_stage(model, STAGES[name], lora_rank, **changes),
        processor=processor,
        train_set=data,
        collator=ConversationCollator(processor, packing),
        loss_parts=("language_loss", "visual_loss"),
        order=LengthGroupedSampler(data.lengths(), rows_per_step, seed),
        find_unused_parameters=True,  # a batch without images leaves the adapter out
    )
    engine.train(task)
    trained = engine.whole_model()
    if accelerator.is_main_process:
        if not isinstance(trained, PreTrainedModel):
            trained = trained.merge_and_unload()
        with staged(folder, last="config.json") as staging:
            trained.save_pretrained(staging)
            processor.save_pretrained(staging)
            (staging / "stage.json").write_text(json.dumps(run_facts(engine) | {"seconds": engine.state.seconds}))
        remove_folder(engine.checkpoints)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    accelerator.free_memory()
    del engine, task, model, trained
    gc.collect()  # else the next stage's data workers are forks of this one's weights and optimiser state too


def stages_facts(folders: list[Path]) -> tuple[dict[str, Any], str]:
    """How finished stages went: the lines of the last one's card, with the time of all; and their logs as one."""
    facts, lines, seconds = {}, [], 0.0
    for folder in folders:
        facts = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
        seconds += facts.pop("seconds")
        for line in (folder / "training_log.jsonl").read_text(encoding="utf-8").splitlines():
            lines.append(to_json({"stage": folder.name, **json.loads(line)}) + "\n")
    time = f"{seconds / 60:.1f} min on {describe_machine()}, all stages"
    return {**facts, "stages": ", ".join(folder.name for folder in folders), "time": time}, "".join(lines)


__all__ = [
    "COMPARISON", "STAGES", "Stage", "StageArguments", "build_vw_lmm", "load_stage", "prepare_stage", "run_stage",
    "stages_facts",
]  # fmt: skip
