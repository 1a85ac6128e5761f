"""Fine-tune a checkpoint of any of the three models through PEFT, for captions or for questions, and publish the adapter.

    python examples/finetune_lora.py --model_name_or_path outputs/demo --task caption --output_dir outputs/captions-lora
    python examples/finetune_lora.py --model_name_or_path outputs/vw-lmm --task vqa --output_dir outputs/easy-vqa-lora \\
        --method dora --rank 32 --target_modules q_proj,v_proj
    python examples/finetune_lora.py --model_name_or_path name/of-a-vw-lmm --task vqa --dataset name/of-questions \\
        --output_dir outputs/mine --load_in 4bit --push_to_hub --hub_model_id name/of-the-adapter --dataset_license cc-by-4.0

Every argument of `TrainingArguments` is accepted. The card of the adapter compares the model without and with it on held-out rows.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import datasets
import torch
from peft import IA3Config, LoraConfig, PeftConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    HfArgumentParser,
    ProcessorMixin,
    Trainer,
    TrainingArguments,
    set_seed,
)

from triptych import pipeline
from triptych.hub import publish, save_adapter
from triptych.metrics.caption_scores import CaptionScores
from triptych.metrics.vqa_accuracy import VqaAccuracy
from triptych.training.card import adapter_card
from triptych.training.data import load_pairs
from triptych.training.optimization import best_precision
from triptych.training.questions import load_questions, most_common_answer


CAPTION_REQUEST = "What is this?"  # what a model that chats is asked for a caption


@dataclass
class AdapterArguments:
    model_name_or_path: str = field(metadata={"help": "Checkpoint to adapt: a folder or Hub name."})
    task: Literal["caption", "vqa"] = field(metadata={"help": "What to learn."})
    dataset: str | None = field(
        default=None, metadata={"help": "Folder, parquet or Hub name. Default: OpenMoji's captions, or easy-VQA."}
    )
    dataset_license: str | None = field(default=None, metadata={"help": "Licence of the data, for the card."})
    image_column: str = field(default="image", metadata={"help": "Column with the images."})
    caption_column: str = field(default="caption", metadata={"help": "Column with the captions."})
    question_column: str = field(default="question", metadata={"help": "Column with the questions."})
    answer_column: str = field(default="answers", metadata={"help": "Column with the answers."})
    method: Literal["lora", "dora", "ia3"] = field(default="lora", metadata={"help": "Kind of adapter."})
    rank: int = field(default=16, metadata={"help": "Rank of LoRA and DoRA."})
    alpha: int | None = field(default=None, metadata={"help": "Scale of LoRA and DoRA. Default: twice the rank."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout of LoRA and DoRA."})
    target_modules: str = field(
        default="all-linear", metadata={"help": "'all-linear', or the ends of module names, with commas between them."}
    )
    load_in: Literal["4bit", "8bit"] | None = field(
        default=None, metadata={"help": "Quantise the base with bitsandbytes (GPU)."}
    )
    num_eval_rows: int = field(default=500, metadata={"help": "Held-out rows for the card's table."})
    truncate_captions: bool = field(default=False, metadata={"help": "Cut captions longer than the context."})
    base_model_id: str | None = field(
        default=None, metadata={"help": "The base's name on the Hub, if `model_name_or_path` is a folder."}
    )


def load_rows(args: AdapterArguments, seed: int) -> datasets.DatasetDict:
    """Splits `train` and `test` with `image`, `question` and `answers`."""
    if args.task == "vqa":
        columns = (args.image_column, args.question_column, args.answer_column)
        return load_questions(args.dataset or "easy-vqa", None, *columns, seed=seed).cast_column(
            "image", datasets.Image()
        )
    data = load_pairs(args.dataset or "openmoji", None, args.image_column, args.caption_column, seed=seed)

    def as_questions(rows: dict[str, list]) -> dict[str, list]:
        captions = [[one] if isinstance(one, str) else one for one in rows[args.caption_column]]
        return {"question": [CAPTION_REQUEST] * len(captions), "answers": captions}

    def one_by_one(rows: dict[str, list]) -> dict[str, list]:
        pairs = zip(rows["image"], rows["answers"], strict=True)
        found = [(image, answer) for image, answers in pairs for answer in answers]
        return {
            "image": [image for image, _ in found],
            "question": [CAPTION_REQUEST] * len(found),
            "answers": [[answer] for _, answer in found],
        }

    data = data.select_columns([args.image_column, args.caption_column])
    if args.image_column != "image":
        data = data.rename_column(args.image_column, "image")
    data = data.cast_column("image", datasets.Image(decode=False))
    data = data.map(as_questions, batched=True, remove_columns=args.caption_column, desc="captions")
    data["train"] = data["train"].map(one_by_one, batched=True, desc="a row per caption")  # of an image with several
    return data.cast_column("image", datasets.Image())


class Collator:
    """Rows as inputs with labels, in the form that the processor's model reads."""

    def __init__(self, processor: ProcessorMixin, task: str, truncation: bool = False):
        self.processor, self.task, self.truncation = processor, task, truncation
        self.chats = getattr(processor, "chat_template", None) is not None
        if task == "vqa" and not self.chats and not hasattr(processor, "question_template"):
            raise ValueError(
                f"`task` is 'vqa', but {type(processor).__name__} knows no questions: take a MaMMUT or a VW-LMM checkpoint."
            )

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        images, answers = [row["image"] for row in rows], [most_common_answer(row["answers"]) for row in rows]
        if self.chats:
            conversations = [
                [{"role": "user", "content": f"<image>\n{row['question']}"}, {"role": "assistant", "content": answer}]
                for row, answer in zip(rows, answers, strict=True)
            ]
            return self.processor.encode_conversations(
                conversations, [[image] for image in images], padding=True, padding_side="right", return_tensors="pt"
            )
        if self.task == "vqa":
            questions = [row["question"] for row in rows]
            return self.processor(images=images, questions=questions, answers=answers, return_tensors="pt")
        options = {"padding": "longest", "truncation": self.truncation, "return_tensors": "pt"}
        batch = self.processor(images=images, text=answers, **options)
        return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


def evaluate(
    model: torch.nn.Module, processor: ProcessorMixin, rows: datasets.Dataset, args: AdapterArguments, batch_size: int
) -> dict[str, float]:
    """BLEU and CIDEr-D of captions, or VQA accuracy of answers, greedily decoded by the task's pipeline."""
    options = {"batch_size": batch_size, "generate_kwargs": {"num_beams": 1, "do_sample": False}}
    references = list(rows["answers"])
    if args.task == "caption":
        describe = pipeline("image-to-text", model, processor=processor)
        texts = [found[0]["generated_text"] for found in describe(list(rows["image"]), **options)]
        return CaptionScores().compute(predictions=texts, references=references)
    answer = pipeline("visual-question-answering", model, processor=processor)
    pairs = [{"image": row["image"], "question": row["question"]} for row in rows]
    texts = [found[0]["answer"] for found in answer(pairs, **options)]
    return VqaAccuracy().compute(predictions=texts, references=references)


def adapter_config(args: AdapterArguments, model_type: str) -> PeftConfig:
    """What PEFT is to add."""
    # VW-LMM's VM head takes no part in the language loss.
    exclude = ["vm_head"] if model_type == "vw_lmm" else None
    named = args.target_modules != "all-linear"
    targets: Any = args.target_modules.split(",") if named else "all-linear"
    if args.method == "ia3":
        return IA3Config(target_modules=targets, feedforward_modules=[], exclude_modules=exclude)
    alpha = args.alpha or 2 * args.rank
    use_dora = args.method == "dora"
    return LoraConfig(
        r=args.rank,
        lora_alpha=alpha,
        lora_dropout=args.dropout,
        target_modules=targets,
        exclude_modules=exclude,
        use_dora=use_dora,
    )


def main() -> None:
    parser = HfArgumentParser((AdapterArguments, TrainingArguments))
    parser.set_defaults(
        per_device_train_batch_size=16,
        per_device_eval_batch_size=16,
        learning_rate=2e-4,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        num_train_epochs=1,
        logging_steps=20,
        save_strategy="no",
        bf16=best_precision() == "bf16",
        use_cpu=not torch.accelerator.is_available(),
        remove_unused_columns=False,  # the collator turns images and texts into inputs
        ddp_find_unused_parameters=True,  # a loss may leave one of the towers out
    )
    args, training_args = parser.parse_args_into_dataclasses()
    base_model = args.base_model_id or args.model_name_or_path
    push, training_args.push_to_hub = training_args.push_to_hub, False  # once, at the end, with the card
    if push and (not training_args.hub_model_id or (not args.dataset_license and args.dataset is not None)):
        raise ValueError(
            "`push_to_hub` needs `hub_model_id`, and `dataset_license` for the card of a data set of yours."
        )
    if push and Path(base_model).exists():
        raise ValueError(
            f"`push_to_hub` needs `base_model_id`: {base_model} is a folder here, from which nobody else can load the base."
        )
    set_seed(training_args.seed)
    with training_args.main_process_first(desc="data"):
        data = load_rows(args, training_args.seed)
    held_out = data["test"].shuffle(seed=training_args.seed)
    held_out = held_out.select(range(min(args.num_eval_rows, len(held_out))))

    quantization = BitsAndBytesConfig(**{f"load_in_{args.load_in}": True}) if args.load_in else None
    model = AutoModelForImageTextToText.from_pretrained(
        args.model_name_or_path, dtype="auto" if args.load_in else torch.float32, quantization_config=quantization
    )
    processor = AutoProcessor.from_pretrained(args.model_name_or_path)
    collator = Collator(processor, args.task, args.truncate_captions)
    if model.config.model_type == "vw_lmm":
        model.config.visual_loss = "none"
    elif args.task == "vqa":
        model.config.contrastive_loss_weight = 0.0  # questions do not describe their image
    if quantization is not None:
        model = prepare_model_for_kbit_training(model)
    adapted = get_peft_model(model, adapter_config(args, model.config.model_type))
    adapted.print_trainable_parameters()

    trainer = Trainer(
        model=adapted,
        args=training_args,
        data_collator=collator,
        train_dataset=data["train"],
        processing_class=processor,
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    if trainer.is_world_process_zero():
        adapted.save_pretrained(training_args.output_dir)  # before an evaluation can fail
        adapted.eval()
        batch_size = training_args.per_device_eval_batch_size
        with adapted.disable_adapter():
            before = evaluate(model, processor, held_out, args, batch_size)
        after = evaluate(model, processor, held_out, args, batch_size)
        card = adapter_card(asdict(args), training_args, trainer.state, before, after, len(held_out))
        results = {"without_adapter": before, "with_adapter": after}
        folder = save_adapter(training_args.output_dir, adapted, base_model, card, {"eval_results.json": results})
        print(json.dumps(results, indent=2))
        print(f"The adapter is in {folder}.")
        if push:
            commit = publish(folder, training_args.hub_model_id, private=bool(training_args.hub_private_repo))
            print(commit.commit_url)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
