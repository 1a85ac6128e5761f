"""The pairs that a captioner is pretrained on and evaluated on, whichever way they come."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch.utils.data import Dataset

from triptych.arguments import argument
from triptych.data.emoji_scenes import EmojiPictures
from triptych.data.pairs import ImageCaptionDataset, load_pairs
from triptych.data.splits import DataArguments, refuse_changed
from triptych.data.statements import STATEMENTS, title_of
from triptych.data.streams import StreamArguments, load_streams, mixture_entry
from triptych.modeling.configuration_base import check_positive


# Rows of a stream whose captions a tokenizer is trained on
_NUM_TOKENIZER_ROWS = 20_000


@dataclass
class PairArguments(StreamArguments, DataArguments):
    """Which pairs a script reads, and how."""

    dataset: str = argument(
        default="openmoji",
        help="'openmoji'; 'drawings', 'game-icons', 'healthicons' or 'tuxpaint-stamps', fetched from npm and Debian; a folder, a "
        "parquet file, a Hub name, shards (see streaming); or 'openmoji-scenes': the drawings at all sizes on varied backgrounds, for "
        "detection.",
    )
    image_column: str = argument(default="image", help="Column with the images. Of tar files: their ending.")
    caption_column: str = argument(
        default="caption",
        help="Column with a caption or a list of captions. Of tar files: their ending, or a field of JSON as in json.title.",
    )
    truncate_captions: bool = argument(default=False, help="Cut captions longer than the context.")
    on_corrupt_image: Literal["error", "skip"] = argument(
        default="error", help="Stop at an unreadable image or shard, or go on behind it and count."
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

    @property
    def data_name(self) -> str:
        parts = [f"{title_of(name)} ({weight:g})" for name, weight in map(mixture_entry, self.mixture)]
        return " + ".join(parts) or self.dataset

    def __post_init__(self) -> None:
        if self.mixture:
            refuse_changed(self, ("dataset",), "and `mixture` both say what to read")
            refuse_changed(self, ("eval_split", "dataset_config"), "is of one data set, `mixture` reads several")
        super().__post_init__()
        tables = ("max_train_rows", "validation_split", "also_evaluate")
        if self.dataset == "openmoji-scenes":
            reason = "is for pictures that are read, scenes are drawn"
            refuse_changed(self, ("crop_scale", "on_corrupt_image", *tables), reason)
        sizes = ("min_image_size", "min_caption_length", "max_caption_length")
        check_positive(self, "max_train_rows", "max_eval_rows", "shuffle_buffer", *sizes)
        if not self.streaming:
            refuse_changed(self, stream_options(), "is for `streaming`")
        elif self.data_name in STATEMENTS:
            raise ValueError(
                f"`streaming` reads shards, {self.data_name!r} is none; `examples/write_shards.py` makes shards of it."
            )
        else:
            refuse_changed(
                self, (*tables, "group_column"), "is for data sets that fit into a table, not for `streaming`"
            )


def stream_options() -> list[str]:
    """Arguments that only a stream honours."""
    return [name for name in StreamArguments.__dataclass_fields__ if name != "streaming"]


def load_sets(args: PairArguments, image_size: int, seed: int) -> tuple[Dataset, dict[str, Dataset], Iterable[str]]:
    """What a captioner is trained and evaluated on.

    Args:
        args ([`PairArguments`]): Which pairs.
        image_size (`int`): Of the model, in pixels.
        seed (`int`): Of crops, orders and what is held out.

    Returns:
        The training pairs; the held-out ones by what their numbers' names begin with; and captions to train a tokenizer on.
    """
    options: dict[str, Any] = {"on_corrupt_image": args.on_corrupt_image}
    crops: dict[str, Any] = {"crop_scale": args.crop_scale, "seed": seed}
    if args.streaming:
        source = args.loading()
        del source["group_column"]
        stream, table = load_streams(args, **source, **options, **crops)
        return stream, {"": ImageCaptionDataset(table, **options)}, stream.captions(_NUM_TOKENIZER_ROWS)
    is_scenes = args.dataset == "openmoji-scenes"
    source = args.loading() | ({"name": "openmoji"} if is_scenes else {})
    others = [split for split in (args.validation_split, args.also_evaluate) if split is not None]
    data = load_pairs(**source, image_size=image_size, others=others, seed=seed)
    options |= {"image_column": args.image_column, "caption_column": args.caption_column}
    rows = data["train"].select(range(min(len(data["train"]), args.max_train_rows or len(data["train"]))))
    train_set = ImageCaptionDataset(rows, **options, all_captions=True, **crops)
    captions = train_set.captions()
    if is_scenes:
        scenes = EmojiPictures("test", image_size, pair_share=0.0, thing_repeats=1)
        return EmojiPictures("train", image_size, seed=seed), {"": scenes}, captions
    splits = {"": "test", **{f"{split}_": split for split in others}}
    return (
        train_set,
        {prefix: ImageCaptionDataset(data[split], **options) for prefix, split in splits.items()},
        captions,
    )


__all__ = ["PairArguments", "load_sets", "stream_options"]
