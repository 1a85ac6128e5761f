"""Train MaMMUT to answer questions about images with transformers' own Trainer.

    python examples/trainer_mammut.py --output_dir outputs/trainer-mammut
    python examples/trainer_mammut.py --output_dir outputs/mine --model_name_or_path outputs/demo --dataset name/of-questions

Every argument of `TrainingArguments` is accepted. `examples/finetune_vqa.py` does more: it answers the held-out questions, keeps
questions about one image together so that it is encoded once, and writes a model card.
"""

from dataclasses import dataclass

import datasets
import torch
from transformers import HfArgumentParser, Trainer, TrainingArguments, set_seed

from triptych.arguments import argument
from triptych.data.questions import load_questions, most_common_answer
from triptych.hardware import best_precision
from triptych.training.captioners import ModelArguments, config_of, load_or_build
from triptych.training.optimization import weight_decay_groups
from triptych.training.question_answering import texts_of
from triptych.training.transfer import layer_rates


SMALL_IMAGES = {"vision_config": {"image_size": 64, "patch_size": 8}}  # as easy-VQA's are


@dataclass
class DataArguments:
    dataset: str = argument(default="easy-vqa", help="'easy-vqa', a folder, or the name of a Hub data set.")
    num_eval_questions: int = argument(default=500, help="Questions that the evaluations look at.")


def main() -> None:
    parser = HfArgumentParser((DataArguments, ModelArguments, TrainingArguments))
    parser.set_defaults(
        per_device_train_batch_size=128,
        learning_rate=3e-4,
        weight_decay=0.1,
        num_train_epochs=8,
        eval_strategy="epoch",
        bf16=best_precision() == "bf16",
        use_cpu=not torch.accelerator.is_available(),
        remove_unused_columns=False,  # images, questions and answers become inputs in `collate`
        ddp_find_unused_parameters=True,  # the contrastive side has no gradient
    )
    args, model_args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)
    data = load_questions(args.dataset).cast_column("image", datasets.Image())
    is_small = model_args.model_name_or_path is None and args.dataset == "easy-vqa"
    fields = {"contrastive_loss_weight": 0.0, **(SMALL_IMAGES if is_small else {})}
    config = config_of("mammut", model_args, fields)
    model, processor = load_or_build("mammut", model_args, config, texts_of(data))

    def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
        return processor(
            images=[row["image"] for row in rows],
            questions=[row["question"] for row in rows],
            answers=[most_common_answer(row["answers"]) for row in rows],
            return_tensors="pt",
        )  # with `labels` that supervise the answers alone

    rates = layer_rates(model, training_args.learning_rate, model_args.layer_decay)
    groups = weight_decay_groups(model, training_args.weight_decay, training_args.learning_rate, rates)
    trainer = Trainer(
        model=model,
        args=training_args,
        data_collator=collate,
        optimizers=(torch.optim.AdamW(groups), None),  # transformers' own would let norms decay too
        train_dataset=data["train"],
        eval_dataset=data["test"].select(range(min(args.num_eval_questions, len(data["test"])))),
        processing_class=processor,
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()  # weights, code and processor: `from_pretrained` needs no more


if __name__ == "__main__":
    main()
