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
from triptych.evaluation.captioner import caption_overlap, evaluate_pairs, generate_captions
from triptych.training.captioners import ModelArguments, config_of, load_or_build
from triptych.training.cards import card_fields
from triptych.training.engine import Engine, RunArguments, Task


@dataclass
class PairArguments(DataArguments):
    model: Literal["grr-coca", "mammut"] = argument(default="grr-coca", help="Family to train.")
    dataset: str = argument(
        default="openmoji",
        help="'openmoji', a folder, a parquet file, a Hub name, or 'openmoji-scenes': the drawings at all sizes on "
        "varied backgrounds, for detection.",
    )
    image_column: str = argument(default="image", help="Column with the images.")
    caption_column: str = argument(default="caption", help="Column with a caption or a list of captions.")
    truncate_captions: bool = argument(default=False, help="Cut captions longer than the context.")
    on_corrupt_image: Literal["error", "skip"] = argument(
        default="error", help="Stop at an unreadable image, or take the next pair and count."
    )
    crop_scale: float = argument(default=0.8, help="Smallest area that a random training crop keeps.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset == "openmoji-scenes":
            refuse_changed(self, ("crop_scale", "on_corrupt_image"), "is for pictures that are read, scenes are drawn")


def load_sets(args: PairArguments, image_size: int, seed: int) -> tuple[Any, Any, list[str]]:
    """Training and held-out pairs, and the captions to train a tokenizer on."""
    is_scenes = args.dataset == "openmoji-scenes"
    source = args.loading() | ({"name": "openmoji"} if is_scenes else {})
    data = load_pairs(**source, image_size=image_size, seed=seed)
    reading = {"image_column": args.image_column, "caption_column": args.caption_column}
    reading["on_corrupt_image"] = args.on_corrupt_image
    crops = {"crop_scale": args.crop_scale, "seed": seed}
    train_set = ImageCaptionDataset(data["train"], **reading, all_captions=True, **crops)
    captions = train_set.captions()
    if is_scenes:
        held_out = EmojiPictures("test", image_size, pair_share=0.0, thing_repeats=1)
        return EmojiPictures("train", image_size, seed=seed), held_out, captions
    return train_set, ImageCaptionDataset(data["test"], **reading), captions


def main() -> None:
    parser = HfArgumentParser((PairArguments, ModelArguments, RunArguments))
    parser.set_defaults(num_epochs=14, eval_epochs=4, num_checkpoints=2)
    data_args, model_args, run_args = parser.parse_args_into_dataclasses()
    config = config_of(data_args.model, model_args)
    engine = Engine(run_args)
    accelerator, size = engine.accelerator, config.vision_config.image_size
    with accelerator.main_process_first():
        train_set, eval_set, captions = load_sets(data_args, size, run_args.seed)
    model, processor = load_or_build(data_args.model, model_args, config, captions)
    processor = engine.restored(processor)
    model.generation_config.max_new_tokens = min(24, config.max_position_embeddings - 1)
    collator = PairCollator(processor, truncation=data_args.truncate_captions)
    reading = (accelerator, run_args.eval_batch_size, run_args.num_workers)

    def evaluate(model: nn.Module, is_last: bool) -> dict[str, float]:
        results = evaluate_pairs(model, eval_set, collator, *reading)
        if is_last:
            generated = generate_captions(model, eval_set, processor, *reading)
            results |= caption_overlap([one for one, _ in generated], [true for _, true in generated])
        return results

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
        headline=("perplexity", "contrastive_loss", "text_to_image_recall@1"),
        card={**card, "loss_weights": weights},
    )
    engine.train(task)
    engine.finish(task, engine.evaluate(task))


if __name__ == "__main__":
    main()
