"""Train VW-LMM through its four stages, and compare: language loss alone, with visual words, with pseudo image features.

    python examples/pretrain.py --output_dir outputs/grr-coca
    python examples/train_vw_lmm.py --output_dir outputs/vw-lmm --vision outputs/grr-coca
    accelerate launch --config_file examples/accelerate/fsdp2.yaml examples/train_vw_lmm.py --output_dir outputs/vw-lmm-7b \\
        --vision openai/clip-vit-large-patch14-336 --text lmsys/vicuna-7b-v1.5 --chat_template vicuna_v1 \\
        --dataset llava_v1_5_mix665k.json --image_folder images --steps '{"align": 2180, "instruct": 5200}'

By default the language model is SmolLM2-135M-Instruct and the questions are about OpenMoji drawings and easy-VQA's shapes. Every
finished stage is a checkpoint, and the same command goes on behind the last one.
"""

import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import ConcatDataset, Dataset
from transformers import HfArgumentParser, Trainer, TrainingArguments, set_seed

from triptych import VwLmmForCausalLM, VwLmmProcessor
from triptych.hub import save_repository
from triptych.training.card import visual_words_card
from triptych.training.conversations import ConversationCollator, QuestionConversations, ask, load_conversations
from triptych.training.easy_vqa import load_easy_vqa
from triptych.training.finetuning import read_json
from triptych.training.openmoji_questions import OpenMojiQuestions
from triptych.training.optimization import best_precision
from triptych.training.questions import evaluate_answers
from triptych.training.smollm2 import CHAT_TEMPLATE, smollm2_checkpoint
from triptych.training.stages import STAGES, prepare_stage


@dataclass
class VwLmmArguments:
    vision: str = field(
        metadata={"help": "Vision tower: a folder or Hub name; also of a CLIP, GRR-CoCa or MaMMUT model."}
    )
    text: str | None = field(default=None, metadata={"help": "Language model. Default: SmolLM2-135M-Instruct."})
    chat_template: str | None = field(
        default=None, metadata={"help": "vicuna_v1, mistral, or Jinja. Default: the language model's own."}
    )
    dataset: str = field(
        default="openmoji-questions",
        metadata={
            "help": "'openmoji-questions', a JSON file in LLaVA's layout or with `messages`, or a Hub data set."
        },
    )
    image_folder: str | None = field(default=None, metadata={"help": "Where the paths of a JSON file's images start."})
    pictures_per_drawing: int = field(
        default=4, metadata={"help": "Pictures of every OpenMoji drawing in the training split."}
    )
    stages: str = field(default="align,instruct,fit_vm_head,joint", metadata={"help": "Stages to train, in order."})
    steps: str = field(
        default='{"align": 100, "instruct": 300, "fit_vm_head": 60, "joint": 80}',
        metadata={"help": "JSON: optimiser steps of every stage."},
    )
    learning_rates: str = field(
        default='{"align": 1e-3, "instruct": 3e-4, "fit_vm_head": 1e-3, "joint": 1e-4}',
        metadata={"help": "JSON: peak learning rate of every stage. The defaults suit the small model."},
    )
    lora_rank: int | None = field(
        default=None, metadata={"help": "Train the language model through LoRA of this rank."}
    )
    compare: bool = field(
        default=True,
        metadata={
            "help": "Train the last stage also without the visual loss and with pseudo image features, and print the table."
        },
    )
    num_eval_pictures: int = field(default=120, metadata={"help": "Held-out pictures of the final evaluation."})


@dataclass
class VwLmmTrainingArguments(TrainingArguments):
    """transformers' own arguments, with defaults for the small model."""

    per_device_train_batch_size: int = 8
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.05
    adam_beta2: float = 0.98
    logging_steps: float = 20
    save_strategy: str = "no"
    dataloader_num_workers: int = 1
    dataloader_drop_last: bool = True
    remove_unused_columns: bool = False
    report_to: str = "none"
    bf16: bool = best_precision() == "bf16"
    use_cpu: bool = not torch.accelerator.is_available()
    seed: int = 0


def training_set(args: VwLmmArguments, seed: int) -> Dataset:
    if args.dataset != "openmoji-questions":
        return load_conversations(args.dataset, args.image_folder)
    drawings = OpenMojiQuestions("train", args.pictures_per_drawing, seed)
    return ConcatDataset([drawings, QuestionConversations(load_easy_vqa()["train"], questions_per_image=3)])


def run_stage(
    name: str,
    model: VwLmmForCausalLM,
    processor: VwLmmProcessor,
    data: Dataset,
    args: VwLmmArguments,
    training_args: TrainingArguments,
    visual_loss: str | None = None,
) -> list[dict[str, Any]]:
    """Train one stage; returns its log."""
    set_seed(training_args.seed)
    stage = STAGES[name] if visual_loss is None else replace(STAGES[name], visual_loss=visual_loss)
    trained = prepare_stage(model, stage, args.lora_rank)
    stage_args = replace(
        training_args,
        max_steps=read_json("steps", args.steps)[name],
        learning_rate=read_json("learning_rates", args.learning_rates)[name],
    )
    trainer = Trainer(trained, stage_args, data_collator=ConversationCollator(processor), train_dataset=data)
    trainer.train()
    if trained is not model:
        trained.merge_and_unload()
    return trainer.state.log_history


def evaluate(
    model: VwLmmForCausalLM,
    processor: VwLmmProcessor,
    test_set: OpenMojiQuestions,
    num_pictures: int,
    with_images: bool = True,
) -> dict[str, float]:
    """Accuracy on held-out drawings, in all and per kind of question."""
    questions = test_set.questions()
    questions = questions.filter(lambda row: row["picture"] < num_pictures)
    pictures = [test_set[index]["images"][0] for index in range(min(num_pictures, len(test_set)))]
    images = [pictures[index] for index in questions["picture"]] if with_images else None
    return evaluate_answers(ask(model, processor, questions["question"], images), questions)


def build(args: VwLmmArguments) -> tuple[VwLmmForCausalLM, VwLmmProcessor]:
    """A model of the two checkpoints, with its processor."""
    text, text_kwargs = (args.text, {}) if args.text is not None else smollm2_checkpoint()
    chat_template = args.chat_template or (CHAT_TEMPLATE if args.text is None else None)
    model = VwLmmForCausalLM.from_vision_text_pretrained(
        args.vision, text, text_kwargs={**text_kwargs, "dtype": torch.float32}
    )
    processor = VwLmmProcessor.from_vision_text_pretrained(
        args.vision, text, model.config.image_seq_length, chat_template, text_kwargs
    )
    model.config.image_token_id = processor.image_token_id
    if not torch.accelerator.is_available():
        model.set_attn_implementation("eager")  # faster than sdpa on a CPU for short texts
    return model, processor


# What the last stage is compared with: `pseudo_image_features` and `visual_loss` of each.
COMPARISON = {
    "language loss only": (False, "none"),
    "visual words": (False, "visual_words"),
    "visual words, pseudo image features": (True, "visual_words"),
}


RELEASED = "visual words"


def table(rows: dict[str, dict[str, float]]) -> str:
    """Accuracies as a Markdown table."""
    kinds = [key for key in next(iter(rows.values())) if key.startswith("vqa_accuracy")]
    heads = ["all", *(key.removeprefix("vqa_accuracy_") for key in kinds[1:])]
    lines = [f"| model | {' | '.join(heads)} |", "| --- |" + " --- |" * len(heads)]
    return "\n".join(
        lines + [f"| {name} | {' | '.join(f'{row[key]:.3f}' for key in kinds)} |" for name, row in rows.items()]
    )


def save_stage(folder: Path, model: VwLmmForCausalLM, processor: VwLmmProcessor, log: list[dict[str, Any]]) -> None:
    """A checkpoint; its log comes last and says that the stage is finished."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log), encoding="utf-8")


def main() -> None:
    parser = HfArgumentParser((VwLmmArguments, VwLmmTrainingArguments))
    args, training_args = parser.parse_args_into_dataclasses()
    started = time.perf_counter()
    output = Path(training_args.output_dir)
    *before, last = args.stages.split(",")
    if unknown := [name for name in (*before, last) if name not in STAGES]:
        raise ValueError(f"`stages` holds {unknown[0]!r}; expected some of {', '.join(STAGES)}.")
    for argument in ("steps", "learning_rates"):
        missing = [name for name in (*before, last) if name not in read_json(argument, getattr(args, argument))]
        if missing:
            raise ValueError(f"`{argument}` says nothing about the stage {missing[0]!r}: {getattr(args, argument)}.")
    data = training_set(args, training_args.seed)
    test_set = OpenMojiQuestions("test", 1, training_args.seed) if args.dataset == "openmoji-questions" else None
    results: dict[str, dict[str, float]] = {}

    def measure(name: str, with_images: bool = True) -> None:
        if test_set is not None:
            results[name] = evaluate(model, processor, test_set, args.num_eval_pictures, with_images)
            print(f"\n{table(results)}\n", flush=True)

    model, processor = build(args)
    measure("the language model before, without images", with_images=False)
    for name in before:
        folder = output / name
        if (folder / "log.jsonl").exists():
            print(f"{folder} is finished; going on behind it.")
            model = VwLmmForCausalLM.from_pretrained(folder, dtype=torch.float32)
        else:
            save_stage(folder, model, processor, run_stage(name, model, processor, data, args, training_args))
    start = {key: value.clone() for key, value in model.state_dict().items()}
    for name, (pseudo, visual_loss) in COMPARISON.items():
        if not args.compare and name != RELEASED:
            continue
        model.load_state_dict(start)
        model.config.pseudo_image_features = pseudo
        log = run_stage(last, model, processor, data, args, training_args, visual_loss if last == "joint" else None)
        measure(name)
        if name == RELEASED:
            measure(f"{name}, asked without images", with_images=False)
        save_stage(output / "comparison" / name.replace(",", "").replace(" ", "-"), model, processor, log)

    model = VwLmmForCausalLM.from_pretrained(output / "comparison" / RELEASED.replace(" ", "-"), dtype=torch.float32)
    minutes = (time.perf_counter() - started) / 60
    extra_files = {
        "eval_results.json": results,
        "training_arguments.json": {**asdict(args), "seed": training_args.seed},
    }
    card = visual_words_card(model, results.get(RELEASED, {}), asdict(args), training_args, minutes)
    save_repository(output, model, processor, card, extra_files)
    print(f"The repository is in {output}, after {minutes:.1f} minutes.")


if __name__ == "__main__":
    main()
