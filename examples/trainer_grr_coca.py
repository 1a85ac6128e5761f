"""Train GRR-CoCa on image-caption pairs with transformers' own Trainer.

    python examples/trainer_grr_coca.py --output_dir outputs/trainer-grr-coca
    python examples/trainer_grr_coca.py --output_dir outputs/mine --dataset path/to/folder --num_train_epochs 30
    accelerate launch examples/trainer_grr_coca.py --output_dir outputs/mine --dataset name/of-pairs

Every argument of `TrainingArguments` is accepted. `examples/pretrain.py` does more: retrieval and captions in its evaluations,
random crops, a model card.
"""

import random
from dataclasses import dataclass

import torch
from transformers import HfArgumentParser, Trainer, TrainingArguments, set_seed

from triptych.arguments import argument
from triptych.data.pairs import load_pairs
from triptych.hardware import best_precision
from triptych.training.captioners import ModelArguments, config_of, load_or_build
from triptych.training.optimization import weight_decay_groups
from triptych.training.transfer import layer_rates


@dataclass
class DataArguments:
    dataset: str = argument(default="openmoji", help="'openmoji', a folder, a parquet file or a Hub name.")


def main() -> None:
    parser = HfArgumentParser((DataArguments, ModelArguments, TrainingArguments))
    parser.set_defaults(
        per_device_train_batch_size=32,
        learning_rate=5e-4,
        weight_decay=0.1,
        num_train_epochs=14,
        eval_strategy="epoch",
        bf16=best_precision() == "bf16",
        use_cpu=not torch.accelerator.is_available(),
        remove_unused_columns=False,  # images and captions become inputs in `collate`
    )
    args, model_args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)
    data = load_pairs(args.dataset)
    captions_of = [[row] if isinstance(row, str) else row for row in data["train"]["caption"]]
    texts = [caption for captions in captions_of for caption in captions]
    model, processor = load_or_build("grr-coca", model_args, config_of("grr-coca", model_args), texts)

    def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
        images, captions = [row["image"] for row in rows], [row["caption"] for row in rows]
        captions = [caption if isinstance(caption, str) else random.choice(caption) for caption in captions]
        batch = processor(images=images, text=captions, padding="longest", return_tensors="pt")
        return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}

    rates = layer_rates(model, training_args.learning_rate, model_args.layer_decay)
    groups = weight_decay_groups(model, training_args.weight_decay, training_args.learning_rate, rates)
    trainer = Trainer(
        model=model,
        args=training_args,
        data_collator=collate,
        optimizers=(torch.optim.AdamW(groups), None),  # transformers' own would let norms decay too
        train_dataset=data["train"],
        eval_dataset=data["test"],
        processing_class=processor,
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()  # weights, code and processor: `from_pretrained` needs no more


if __name__ == "__main__":
    main()
