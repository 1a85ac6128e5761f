"""Fine-tune a checkpoint of any of the three models through PEFT, for captions or for questions, and publish the adapter.

    python examples/finetune_lora.py --model_name_or_path outputs/demo --task caption --output_dir outputs/captions-lora
    python examples/finetune_lora.py --model_name_or_path outputs/vw-lmm --task vqa --output_dir outputs/easy-vqa-lora \\
        --method dora --rank 32 --target_modules q_proj,v_proj
    python examples/finetune_lora.py --model_name_or_path name/of-a-vw-lmm --task vqa --dataset name/of-questions \\
        --output_dir outputs/mine --load_in 4bit --hub_model_id name/of-the-adapter --dataset_license cc-by-4.0

The card of the adapter compares the model without and with it on held-out rows.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import Subset
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, HfArgumentParser

from triptych.arguments import argument
from triptych.data.pairs import CaptionRequests, ImageCaptionDataset, PairCollator, load_pairs
from triptych.data.questions import QuestionCollator, QuestionDataset, load_questions
from triptych.data.splits import DataArguments, refuse_changed
from triptych.evaluation.answers import answer_questions
from triptych.evaluation.caption_scores import CaptionScores
from triptych.evaluation.captioner import generate_captions
from triptych.evaluation.vqa_accuracy import VqaAccuracy
from triptych.training.adapters import AdapterArguments, add_adapter
from triptych.training.cards import card_fields
from triptych.training.engine import Engine, Task
from triptych.training.run_arguments import RunArguments


# Arguments without a meaning, by task
UNREAD = {"caption": ("question_column", "answer_column"), "vqa": ("caption_column", "truncate_captions")}


@dataclass(kw_only=True)
class TaskArguments(DataArguments):
    model_name_or_path: str = argument(help="Checkpoint to adapt: a folder or Hub name.")
    task: Literal["caption", "vqa"] = argument(help="What to learn.")
    dataset: str = argument(default="", help="Folder, parquet or Hub name. Default: OpenMoji's captions, or easy-VQA.")
    image_column: str = argument(default="image", help="Column with the images.")
    caption_column: str = argument(default="caption", help="Column with the captions.")
    question_column: str = argument(default="question", help="Column with the questions.")
    answer_column: str = argument(default="answers", help="Column with the answers.")
    num_eval_rows: int = argument(default=500, help="Held-out rows for the card's table.")
    truncate_captions: bool = argument(default=False, help="Cut captions longer than the context.")

    def __post_init__(self) -> None:
        self.dataset = self.dataset or {"caption": "openmoji", "vqa": "easy-vqa"}[self.task]
        super().__post_init__()
        refuse_changed(self, UNREAD[self.task], f"says nothing about `task` {self.task!r}")


def load_sets(args: TaskArguments, chats: bool, seed: int) -> tuple[Any, Any]:
    """Training and held-out rows, in the form that the model learns from."""
    source = {name: value for name, value in args.loading().items() if name not in UNREAD[args.task]}
    if args.task == "vqa":
        data = load_questions(**source, seed=seed)
        return QuestionDataset(data["train"]), QuestionDataset(data["test"])
    data = load_pairs(**source, seed=seed)
    columns = {"image_column": args.image_column, "caption_column": args.caption_column}
    kind = CaptionRequests if chats else ImageCaptionDataset  # a model that chats is asked for a caption
    return kind(data["train"], **columns, all_captions=True, seed=seed), kind(data["test"], **columns)


def main() -> None:
    parser = HfArgumentParser((TaskArguments, AdapterArguments, RunArguments))
    parser.set_defaults(batch_size=16, eval_batch_size=16, learning_rate=2e-4, weight_decay=0.0, eval_epochs=0)
    args, adapter_args, run_args = parser.parse_args_into_dataclasses()
    engine = Engine(run_args)
    accelerator, source = engine.accelerator, args.model_name_or_path
    weights: dict[str, Any] = {"dtype": torch.float32}
    if adapter_args.load_in is not None:
        quantization = BitsAndBytesConfig(**{f"load_in_{adapter_args.load_in}": True})
        weights = {"dtype": "auto", "quantization_config": quantization}
    model = AutoModelForImageTextToText.from_pretrained(source, **weights)
    processor = AutoProcessor.from_pretrained(source)
    chats = getattr(processor, "chat_template", None) is not None
    asks = args.task == "vqa" or chats
    if chats:
        refuse_changed(args, ["truncate_captions"], "is for captioners, which read no chat template")
    collator = QuestionCollator(processor) if asks else PairCollator(processor, truncation=args.truncate_captions)
    with accelerator.main_process_first():
        train_set, test_set = load_sets(args, chats, run_args.seed)
    held_out = torch.randperm(len(test_set), generator=torch.Generator().manual_seed(run_args.seed))
    held_out = held_out[: args.num_eval_rows].tolist()
    all_references = test_set.references()
    references = [all_references[row] for row in held_out]

    def evaluate(model: nn.Module, is_last: bool) -> dict[str, float]:
        """BLEU and CIDEr-D of captions, or VQA accuracy of answers."""
        shown = (Subset(test_set, held_out), processor, accelerator, run_args.eval_batch_size, run_args.num_workers)
        if asks:
            texts = answer_questions(model, *shown, max_new_tokens=10 if args.task == "vqa" else 24)
        else:
            texts = [generated for generated, _ in generate_captions(model, *shown)]
        metric = VqaAccuracy() if args.task == "vqa" else CaptionScores()
        return metric.compute(predictions=texts, references=references)

    if chats:
        model.config.visual_loss = "none"
    elif args.task == "vqa":
        model.config.contrastive_loss_weight = 0.0  # questions do not describe their image
    adapted = add_adapter(model, adapter_args)
    tag = "visual-question-answering" if args.task == "vqa" else "image-to-text"
    tags = [tag if args.task == "vqa" else "image-captioning"]
    task = Task(
        name="adapter",
        model=adapted,
        processor=processor,
        train_set=train_set,
        collator=collator,
        loss_parts=("language_loss",) if chats else ("contrastive_loss", "caption_loss"),
        evaluate=evaluate,
        find_unused_parameters=True,  # a loss may leave one of the towers out
        headline=("vqa_accuracy", "bleu_4", "cider_d"),
        card=card_fields([args, adapter_args], run_args, tag, tags),
        base_model=adapter_args.base_model_id or source,
    )
    engine.train(task)
    after = engine.evaluate(task)
    with engine.trained.disable_adapter():
        before = evaluate(engine.trained, True)
    evaluation_data = f"{len(held_out)} rows of {task.card['evaluation_data']}"
    task.card |= {"metrics": after, "before": before, "evaluation_data": evaluation_data}
    engine.finish(task, {"without_adapter": before, "with_adapter": after})


if __name__ == "__main__":
    main()
