"""What the scripts that fine-tune on questions share: arguments, model, trainer, and the finished repository."""

import json
import math
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler
from transformers import AutoProcessor, CLIPImageProcessor, Trainer, TrainerCallback, TrainingArguments

from triptych.hub import save_repository
from triptych.modeling.configuration_base import merge_fields
from triptych.modeling.configuration_mammut import MammutConfig
from triptych.modeling.modeling_mammut import MammutForConditionalGeneration
from triptych.processing.processing_mammut import QUESTION_TEMPLATE, MammutProcessor
from triptych.training.card import question_card
from triptych.training.optimization import best_precision
from triptych.training.questions import GroupedSampler, QuestionCollator, answer_questions, evaluate_answers
from triptych.training.tokenizer import load_tokenizer, train_tokenizer


@dataclass
class ModelArguments:
    """Where the model comes from."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Fine-tune this MaMMUT checkpoint (weights and processor)."}
    )
    preset: str = field(default="mammut-tiny", metadata={"help": "Model to train from scratch otherwise."})
    config_overrides: str = field(
        default="{}",
        metadata={
            "help": 'JSON of configuration fields to change, e.g. \'{"text_config": {"bidirectional_prefix": true}}\'.'
        },
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "Tokenizer of a model from scratch. Default: one is trained on the questions."}
    )
    vocab_size: int = field(default=2048, metadata={"help": "Largest vocabulary of a tokenizer trained here."})
    attn_implementation: str | None = field(
        default=None,
        metadata={"help": "sdpa, eager, ... Default: sdpa; eager on a CPU, faster there on short inputs."},
    )
    max_answer_tokens: int = field(default=10, metadata={"help": "Longest answer, in tokens."})


@dataclass
class QuestionTrainingArguments(TrainingArguments):
    """transformers' own arguments, with defaults for small models from scratch."""

    learning_rate: float = 3e-4
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.05
    weight_decay: float = 0.1
    adam_beta2: float = 0.98
    per_device_train_batch_size: int = 256
    per_device_eval_batch_size: int = 256
    num_train_epochs: float = 8.0
    eval_strategy: str = "epoch"
    save_strategy: str = "epoch"
    save_total_limit: int | None = 1
    logging_steps: float = 50
    dataloader_num_workers: int = 1
    dataloader_drop_last: bool = True
    remove_unused_columns: bool = False
    report_to: str = "none"
    ddp_find_unused_parameters: bool | None = True  # the contrastive side has no gradient
    bf16: bool = best_precision() == "bf16"
    use_cpu: bool = not torch.accelerator.is_available()  # bf16 on a CPU has to be asked for
    seed: int = 0
    questions_per_image: int = field(
        default=5,
        metadata={"help": "Most questions of an image or clip that share it in a training batch; 1: fully shuffled."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_smoothing_factor:
            raise ValueError(
                f"`label_smoothing_factor` must be 0, got {self.label_smoothing_factor}: the model computes its own loss."
            )
        if self.n_gpu > 1:
            raise ValueError(
                f"{self.n_gpu} GPUs but one process, which would split images and questions apart: start the script with "
                "`accelerate launch`, or set CUDA_VISIBLE_DEVICES to one of them."
            )


def read_json(name: str, text: str) -> Any:
    """The value of the argument `name`, given as JSON."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"`{name}` is not JSON: {error}: {text!r}.") from error


def load_or_build(
    args: ModelArguments, texts: Iterable[str], overrides: dict[str, Any] | None = None
) -> tuple[MammutForConditionalGeneration, MammutProcessor]:
    """The checkpoint to fine-tune, or a fresh model with a tokenizer of its own; the contrastive loss is off.

    Args:
        args (`ModelArguments`): What was asked for.
        texts (`Iterable[str]`): Questions and answers to train a tokenizer on.
        overrides (`dict`, *optional*): Configuration fields of the task; `args.config_overrides` win over them.

    Raises:
        ValueError: If the checkpoint is not a MaMMUT model, a configuration field does not exist, or the JSON cannot be read.
    """
    asked = read_json("config_overrides", args.config_overrides)
    changes: dict[str, Any] = {"contrastive_loss_weight": 0.0, **(overrides or {})}
    changes = merge_fields(MammutConfig, changes, asked)
    if args.model_name_or_path is not None:
        model_type = MammutConfig.get_config_dict(args.model_name_or_path)[0].get("model_type")
        if model_type != MammutConfig.model_type:
            raise ValueError(
                f"`model_name_or_path` must be a MaMMUT checkpoint, but the `model_type` of {args.model_name_or_path} is "
                f"{model_type!r}. `examples/pretrain.py --model mammut` trains one."
            )
        config = MammutConfig.from_pretrained(args.model_name_or_path)
        had_tubes = config.vision_config.use_tubes
        config = MammutConfig.from_dict(merge_fields(MammutConfig, config.to_dict(), changes))
        model = MammutForConditionalGeneration.from_pretrained(
            args.model_name_or_path, config=config, dtype=torch.float32
        )
        if config.vision_config.use_tubes and not had_tubes:
            model.model.vision_model.inflate_tubes()
        processor = AutoProcessor.from_pretrained(args.model_name_or_path)
    else:
        config = MammutConfig.from_preset(args.preset, **changes)
        text, size = config.text_config, config.vision_config.image_size
        if args.tokenizer is None:
            tokenizer = train_tokenizer(
                [*texts, QUESTION_TEMPLATE.format(question="")], args.vocab_size, text.max_position_embeddings
            )
        else:
            tokenizer = load_tokenizer(args.tokenizer, text.max_position_embeddings)
        text.vocab_size = len(tokenizer)
        text.pad_token_id, text.bos_token_id = tokenizer.pad_token_id, tokenizer.bos_token_id
        text.eos_token_id = tokenizer.eos_token_id
        image_processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
        model = MammutForConditionalGeneration._from_config(config)
        processor = MammutProcessor(image_processor, tokenizer)
    return model, processor


class SamplerEpoch(TrainerCallback):
    """Tell the sampler its epoch: behind a resumed, sharded loader accelerate does not reach it."""

    def __init__(self, sampler: GroupedSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.sampler.set_epoch(int(state.epoch))


class QuestionTrainer(Trainer):
    """transformers' trainer, whose evaluation answers the questions and compares the words.

    Args:
        args (`QuestionTrainingArguments`): As usual.
        max_answer_tokens (`int`): Longest answer.
        kwargs: `model`, `processing_class`, `train_dataset`, `eval_dataset`, ...
    """

    args: QuestionTrainingArguments
    model: MammutForConditionalGeneration
    processing_class: MammutProcessor

    def __init__(self, *, args: QuestionTrainingArguments, max_answer_tokens: int = 10, **kwargs: Any):
        super().__init__(args=args, data_collator=QuestionCollator(kwargs["processing_class"]), **kwargs)
        self.max_answer_tokens = max_answer_tokens

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        sampler = GroupedSampler(dataset.groups(), self.args.questions_per_image, self.args.seed)
        self.add_callback(SamplerEpoch(sampler))
        return sampler

    def answer(self, dataset: Dataset) -> list[str]:
        """Answers to all questions of a data set, on every process."""
        return answer_questions(
            self.model,
            dataset,
            self.processing_class,
            self.args.per_device_eval_batch_size,
            self.accelerator,
            self.max_answer_tokens,
            self.args.dataloader_num_workers,
        )

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        results = evaluate_answers(self.answer(dataset), dataset.data)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in results.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def train_on_questions(
    model: MammutForConditionalGeneration,
    processor: MammutProcessor,
    train_set: Dataset,
    eval_set: Dataset,
    model_args: ModelArguments,
    training_args: QuestionTrainingArguments,
) -> QuestionTrainer:
    """Fine-tune, with an evaluation on `eval_set` wherever `training_args` asks for one."""
    on_cpu = training_args.device.type == "cpu"
    model.set_attn_implementation(model_args.attn_implementation or ("eager" if on_cpu else "sdpa"))
    model.generation_config.max_new_tokens = model_args.max_answer_tokens
    trainer = QuestionTrainer(
        args=training_args,
        max_answer_tokens=model_args.max_answer_tokens,
        model=model,
        processing_class=processor,
        train_dataset=train_set,
        eval_dataset=eval_set,
    )
    asked = training_args.resume_from_checkpoint
    last = str(asked).lower() == "true"  # `--resume_from_checkpoint True`: the last one in output_dir
    trainer.train(resume_from_checkpoint=True if last else asked)
    return trainer


def save_questions_repository(
    trainer: QuestionTrainer,
    answers: list[str],
    data: Any,
    results: dict[str, float],
    model_args: ModelArguments,
    arguments: dict[str, Any],
) -> Path | None:
    """The finished repository with its card, log, results and every answer; on the main process only."""
    if not trainer.is_world_process_zero():
        return None
    folder = Path(str(trainer.args.output_dir))
    rows = [
        {"question": question, "answer": answer, "true": true, "answer_type": kind}
        for question, answer, true, kind in zip(
            data["question"], answers, data["answers"], data["answer_type"], strict=True
        )
    ]
    log = trainer.state.log_history
    minutes = next((row["train_runtime"] for row in log if "train_runtime" in row), math.nan) / 60
    arguments = {**asdict(model_args), **arguments}
    extra_files = {
        "eval_results.json": results,
        "training_arguments.json": {**arguments, "seed": trainer.args.seed},
        "training_log.jsonl": "".join(json.dumps(row) + "\n" for row in log),
        "answers.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
    }
    card = question_card(trainer.model, results, arguments, trainer.args, trainer.state, minutes)
    save_repository(folder, trainer.model, trainer.processing_class, card, extra_files)
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    return folder


def answer_table(results: dict[str, float], num_questions: int) -> str:
    """Accuracies as a Markdown table, the whole first."""
    rows = [("all", results["vqa_accuracy"])]
    rows += [
        (name.removeprefix("vqa_accuracy_"), value)
        for name, value in results.items()
        if name.startswith("vqa_accuracy_")
    ]
    lines = [f"| answer type | accuracy ({num_questions} questions) |", "| --- | --- |"]
    return "\n".join(lines + [f"| {name} | {value:.4f} |" for name, value in rows])


__all__ = [
    "ModelArguments",
    "QuestionTrainer",
    "QuestionTrainingArguments",
    "answer_table",
    "load_or_build",
    "read_json",
    "save_questions_repository",
    "train_on_questions",
]
