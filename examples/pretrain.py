"""Pretrain (or go on training) a contrastive captioner, GRR-CoCa or MaMMUT, on image-caption pairs.

Two minutes on OpenMoji:            python examples/pretrain.py --output_dir outputs/try --num_epochs 4
The other model, all else equal:    python examples/pretrain.py --output_dir outputs/try --num_epochs 4 --model mammut
A folder of images and captions:    python examples/pretrain.py --output_dir outputs/mine --dataset path/to/folder
A data set on the Hub, two GPUs:    accelerate launch --num_processes 2 examples/pretrain.py \
                                        --output_dir outputs/large --dataset name/of-pairs --caption_column text \
                                        --preset grr-coca-base --tokenizer openai/clip-vit-base-patch32
Go on after a stop:                 the same command with --resume
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from transformers import HfArgumentParser

from triptych.arguments import argument
from triptych.data.emoji_scenes import EmojiPictures
from triptych.data.pairs import ImageCaptionDataset, PairCollator, load_pairs
from triptych.data.splits import DataArguments, refuse_changed
from triptych.evaluation.captioner import (
    evaluate_pairs,
    generate_captions,
    score_captions,
    score_pairs,
    summarize_pairs,
)
from triptych.modeling.configuration_base import check_positive
from triptych.training.captioners import ModelArguments, config_of, load_or_build
from triptych.training.cards import card_fields
from triptych.training.engine import Engine, Task
from triptych.training.run_arguments import RunArguments


@dataclass
class PairArguments(DataArguments):
    model: Literal["grr-coca", "mammut"] = argument(default="grr-coca", help="Family to train.")
    dataset: str = argument(
        default="openmoji",
        help="'openmoji'; 'drawings', 'game-icons', 'healthicons' or 'tuxpaint-stamps', fetched from npm and Debian; a folder, a "
        "parquet file, a Hub name; or 'openmoji-scenes': the drawings at all sizes on varied backgrounds, for detection.",
    )
    image_column: str = argument(default="image", help="Column with the images.")
    caption_column: str = argument(default="caption", help="Column with a caption or a list of captions.")
    truncate_captions: bool = argument(default=False, help="Cut captions longer than the context.")
    on_corrupt_image: Literal["error", "skip"] = argument(
        default="error", help="Stop at an unreadable image, or take the next pair and count."
    )
    crop_scale: float = argument(default=0.8, help="Smallest area that a random training crop keeps.")
    max_train_rows: int | None = argument(
        default=None, help="Train on the first rows only; packages' come in random order."
    )
    validation_split: str | None = argument(
        default=None,
        help="Split of a package's data set to evaluate while training, instead of eval_split, and at the end too; its numbers begin "
        "with its name, as in --metric_for_best_model validation_coca_loss.",
    )
    also_evaluate: str | None = argument(
        default=None, help="Another split to evaluate at the end: new_style of 'drawings'."
    )
    log_samples: bool = argument(
        default=False, help="Write the final numbers of every held-out pair: eval_samples.json."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset == "openmoji-scenes":
            names = ("crop_scale", "on_corrupt_image", "max_train_rows", "validation_split", "also_evaluate")
            refuse_changed(self, names, "is for pictures that are read, scenes are drawn")
        check_positive(self, "max_train_rows")


def load_sets(args: PairArguments, image_size: int, seed: int) -> tuple[Any, dict[str, Any], list[str]]:
    """Training pairs, the held-out ones by what their numbers' names begin with, and the captions to train a tokenizer on."""
    is_scenes = args.dataset == "openmoji-scenes"
    source = args.loading() | ({"name": "openmoji"} if is_scenes else {})
    others = [split for split in (args.validation_split, args.also_evaluate) if split is not None]
    data = load_pairs(**source, image_size=image_size, others=others, seed=seed)
    reading = {"image_column": args.image_column, "caption_column": args.caption_column}
    reading["on_corrupt_image"] = args.on_corrupt_image
    crops = {"crop_scale": args.crop_scale, "seed": seed}
    rows = data["train"].select(range(min(len(data["train"]), args.max_train_rows or len(data["train"]))))
    train_set = ImageCaptionDataset(rows, **reading, all_captions=True, **crops)
    captions = train_set.captions()
    if is_scenes:
        held_out = EmojiPictures("test", image_size, pair_share=0.0, thing_repeats=1)
        return EmojiPictures("train", image_size, seed=seed), {"": held_out}, captions
    splits = {"": "test", **{f"{split}_": split for split in others}}
    held_out = {prefix: ImageCaptionDataset(data[split], **reading) for prefix, split in splits.items()}
    return train_set, held_out, captions


def main() -> None:
    parser = HfArgumentParser((PairArguments, ModelArguments, RunArguments))
    parser.set_defaults(num_epochs=14, eval_epochs=4, num_checkpoints=2)
    data_args, model_args, run_args = parser.parse_args_into_dataclasses()
    config = config_of(data_args.model, model_args)
    engine = Engine(run_args)
    accelerator, size = engine.accelerator, config.vision_config.image_size
    with accelerator.main_process_first():
        train_set, eval_sets, captions = load_sets(data_args, size, run_args.seed)
    model, processor = load_or_build(data_args.model, model_args, config, captions)
    processor = engine.restored(processor)
    model.generation_config.max_new_tokens = min(24, config.max_position_embeddings - 1)
    collator = PairCollator(processor, truncation=data_args.truncate_captions)
    reading = (accelerator, run_args.eval_batch_size, run_args.num_workers)

    samples: dict[str, list[float]] = {}
    chooser = "" if data_args.validation_split is None else f"{data_args.validation_split}_"

    def evaluate(model: nn.Module, is_last: bool) -> dict[str, float]:
        if not is_last:
            numbers = evaluate_pairs(model, eval_sets[chooser], collator, *reading)
            return {chooser + name: value for name, value in numbers.items()}
        results = {}
        for prefix, eval_set in eval_sets.items():
            scores = score_pairs(model, eval_set, collator, *reading)
            scores |= score_captions(generate_captions(model, eval_set, processor, *reading))
            numbers = summarize_pairs(scores, config, run_args.eval_batch_size)
            results |= {prefix + name: value for name, value in numbers.items()}
            samples.update({prefix + name: values.round(5).tolist() for name, values in scores.items()})
        return results

    headline = ("perplexity", "contrastive_loss", "text_to_image_recall@1")
    tags = ["image-captioning", "image-text-retrieval"]
    card = card_fields([data_args, model_args], run_args, "image-to-text", tags)
    weights = (config.contrastive_loss_weight, config.caption_loss_weight)
    task = Task(
        name="pretrain",
        model=model,
        processor=processor,
        train_set=train_set,
        collator=collator,
        loss_parts=("contrastive_loss", "caption_loss"),
        evaluate=evaluate,
        find_unused_parameters=config.contrastive_loss_weight == 0,
        headline=(*headline, *(chooser + name for name in headline if chooser)),
        card={**card, "loss_weights": weights},
    )
    engine.train(task)
    results = engine.evaluate(task)
    engine.finish(task, results, {"eval_samples.json": samples} if data_args.log_samples else None)


if __name__ == "__main__":
    main()
