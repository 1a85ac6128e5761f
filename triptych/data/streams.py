"""Image-caption pairs that come as a stream of shards: shared out, shuffled, mixed, filtered, and exactly resumable.

Every process and every worker of its loader reads shards of its own. A pass over them is a sequence of blocks: so many rows in the order
of the shards, shuffled. All choices depend on the seed and on places alone, so the state of a stream is a few numbers, and to go on
means to read one block again.
"""

import copy
import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import datasets
from torch.utils.data import IterableDataset, get_worker_info
from tqdm.auto import tqdm

from triptych.arguments import argument
from triptych.data.pictures import CorruptImageError, PictureRows, decode_image, random_crop, shorter_side
from triptych.data.rows import text_or_texts
from triptych.data.shards import ShardError, Shards, open_shards, shard_files


@dataclass
class StreamArguments:
    """How a stream of shards is read."""

    streaming: bool = argument(
        default=False,
        help="Read the data set as a stream of tar or parquet shards: a pattern (cc12m-{00000..01242}.tar, local or s3://...), a folder or "
        "a Hub name. Needs max_steps; eval_steps says when to evaluate.",
    )
    mixture: list[str] = field(
        default_factory=list,
        metadata={"help": "Several streams instead of dataset, each as address:weight; pairs come in these shares."},
    )
    eval_shards: str | None = argument(
        default=None,
        help="Shards to evaluate a stream on. Default: eval_split of a folder or Hub data set, or one shard in twenty, held out.",
    )
    max_eval_rows: int = argument(default=2000, help="Rows of them that are evaluated, and kept in memory.")
    shuffle_buffer: int = argument(
        default=1000, help="Rows that a worker shuffles at a time; 1: only shards are shuffled."
    )
    min_image_size: int | None = argument(
        default=None, help="Leave out pictures of a stream with a shorter side, in pixels."
    )
    min_caption_length: int | None = argument(
        default=None, help="Leave out shorter captions of a stream, in characters."
    )
    max_caption_length: int | None = argument(
        default=None, help="Leave out longer captions of a stream, in characters."
    )


def mixture_entry(entry: str) -> tuple[str, float]:
    """Address and weight of an entry of `mixture`.

    Raises:
        ValueError: If it has no positive weight.
    """
    name, _, weight = entry.rpartition(":")
    try:
        if name and float(weight) > 0:
            return name, float(weight)
    except ValueError:
        pass
    raise ValueError(
        f"`mixture` holds {entry!r}; expected address:weight with a positive weight, e.g. shards/*.tar:0.7."
    )


class PairStream(PictureRows, IterableDataset):
    """Pairs of one or several data sets in shards, without end unless `num_passes` is given.

    Each worker of a `DataLoader` reads shards of its own; [`divide`] says which process this is. Where several data sets are mixed, a pass
    over each is as long as that one.

    Args:
        sources (`Sequence[Shards]`): The data sets.
        weights (`Sequence[float]`, *optional*): Their shares of the pairs. Default: equal ones.
        shuffle_buffer (`int`): Rows of a block.
        crop_scale (`float`): Smallest share of the area that a random crop keeps.
        on_corrupt_image (`"error"` or `"skip"`): Stop at a picture or shard that cannot be read, or go on behind it and count.
        on_bad_row (`"error"` or `"skip"`): The same for a caption that is none.
        min_image_size, min_caption_length, max_caption_length (`int`, *optional*): Pairs beyond these are left out.
        seed (`int`): Of all orders and choices.
        num_passes (`int`, *optional*): After which the stream ends.
    """

    def __init__(
        self,
        sources: Sequence[Shards],
        weights: Sequence[float] | None = None,
        shuffle_buffer: int = 1000,
        crop_scale: float = 1.0,
        on_corrupt_image: Literal["error", "skip"] = "error",
        on_bad_row: Literal["error", "skip"] = "error",
        min_image_size: int | None = None,
        min_caption_length: int | None = None,
        max_caption_length: int | None = None,
        seed: int = 0,
        num_passes: int | None = None,
    ):
        self.sources, self.weights = sources, [1.0] * len(sources) if weights is None else list(weights)
        self.shuffle_buffer, self.crop_scale, self.seed, self.num_passes = shuffle_buffer, crop_scale, seed, num_passes
        self.on_corrupt_image, self.on_bad_row = on_corrupt_image, on_bad_row
        self.min_image_size = min_image_size
        self.min_caption_length, self.max_caption_length = min_caption_length, max_caption_length
        self.process, self.num_processes = 0, 1
        self._state = self._beginning()

    @property
    def shard_names(self) -> list[str]:
        """Of all data sets."""
        return [name for source in self.sources for name in source.names]

    @property
    def facts(self) -> dict[str, Any]:
        """What the order and the content of the stream depend on, beside its seed; of addresses the last part, as shards may move."""
        sets = []
        for source in self.sources:
            names = [name.rpartition("/")[2] for name in source.names]
            digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]
            sets.append(f"{len(names)} shards, {names[0]} the first (digest of their names: {digest})")
        columns = [f"{source.image_column}, {source.caption_column}" for source in self.sources]
        options = ("weights", "shuffle_buffer", "crop_scale", "on_corrupt_image", "on_bad_row")
        filters = ("min_image_size", "min_caption_length", "max_caption_length")
        return {
            "data set": " + ".join(sets),
            "columns": " + ".join(columns),
            **{name: getattr(self, name) for name in (*options, *filters)},
        }

    def divide(self, process: int, num_processes: int, num_workers: int) -> None:
        """Read the share of one process.

        Args:
            process (`int`), num_processes (`int`): Which one, of how many.
            num_workers (`int`): Workers of its loader.

        Raises:
            ValueError: If a data set has fewer shards than there are readers.
        """
        readers = num_processes * max(1, num_workers)
        for source in self.sources:
            if len(source.names) < readers:
                raise ValueError(
                    f"{num_processes} processes with {num_workers} workers each (`num_workers`) need at least {readers} shards; "
                    f"{source.names[0]} and others are {len(source.names)}. Take fewer workers, or write more shards."
                )
        self.process, self.num_processes = process, num_processes

    def _beginning(self) -> dict[str, Any]:
        place = {"pass": 0, "shard": 0, "row": 0, "block": 0, "index": 0}
        return {"draws": 0, "num_skipped": 0, "places": [dict(place) for _ in self.sources]}

    def state_dict(self) -> dict[str, Any]:
        """Where this reader stands, for `StatefulDataLoader`."""
        return copy.deepcopy(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there."""
        self._state = copy.deepcopy(state)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        num_workers = 1 if worker is None else worker.num_workers
        reader = self.process * num_workers + (0 if worker is None else worker.id)
        state = self._state
        streams = {
            source: self._pairs(source, place, reader, self.num_processes * num_workers)
            for source, place in enumerate(state["places"])
        }
        while streams:
            rng = random.Random(f"{self.seed}-{reader}-{state['draws']}")
            (source,) = rng.choices(list(streams), [self.weights[each] for each in streams])
            state["draws"] += 1
            pair = next(streams[source], None)
            if pair is None:
                del streams[source]
                continue
            num_skipped, state["num_skipped"] = state["num_skipped"], 0
            yield pair | {"num_skipped": num_skipped}
        self._state = self._beginning()

    def _pairs(self, source: int, place: dict[str, int], reader: int, num_readers: int) -> Iterator[dict[str, Any]]:
        """The pairs of one data set that one reader gets; `place` follows."""
        shards = self.sources[source]
        while self.num_passes is None or place["pass"] < self.num_passes:
            seed = f"{self.seed}-{source}-{place['pass']}"
            names = random.Random(seed).sample(shards.names, len(shards.names))[reader::num_readers]
            items = _items(shards, names, place["shard"], place["row"])
            is_whole, num_pairs = place["block"] == place["index"] == 0, 0
            while block := list(islice(items, self.shuffle_buffer)):
                shard, row, *_ = block[-1]
                random.Random(f"{seed}-{reader}-{place['block']}").shuffle(block)
                for index in range(place["index"], len(block)):
                    place["index"] = index + 1
                    _, _, where, item = block[index]
                    block[index] = (0, 0, "", {})  # pictures that were read go
                    # by the shard's own name: elsewhere the same shards give the same pictures
                    if (pair := self._pair(item, where, f"{seed}-{where.rpartition('/')[2]}")) is not None:
                        num_pairs += 1
                        yield pair
                place |= {"shard": shard, "row": row, "block": place["block"] + 1, "index": 0}
            if is_whole and not num_pairs and self.num_passes is None:
                raise ValueError(
                    f"No pair in {', '.join(names[:3])}{' and others' if len(names) > 3 else ''} can be used: all were left out."
                )
            place |= {"pass": place["pass"] + 1, "shard": 0, "row": 0, "block": 0, "index": 0}

    def _pair(self, item: dict[str, Any] | ShardError, where: str, seed: str) -> dict[str, Any] | None:
        """A pair, or nothing if it is left out."""
        try:
            if isinstance(item, ShardError):
                raise item
            if item["image"] is None:
                raise CorruptImageError(f"{where} has no picture.")
            if (caption := self._caption(item["caption"], where, seed)) is None:
                return None
            if self.min_image_size is not None and shorter_side(item["image"]) < self.min_image_size:
                return None
            image = decode_image(item["image"], where, self.decode_size)
        except (CorruptImageError, ShardError):
            if self.on_corrupt_image == "error":
                raise
            self._state["num_skipped"] += 1
            return None
        return {"image": random_crop(image, self.crop_scale, seed), "caption": caption}

    def _caption(self, value: Any, where: str, seed: str) -> str | None:
        texts = _texts(value, where, self.on_bad_row)
        if texts is None:
            self._state["num_skipped"] += 1
            return None
        caption = random.Random(seed).choice(texts)
        shortest, longest = self.min_caption_length or 0, self.max_caption_length or len(caption)
        return caption if shortest <= len(caption) <= longest else None

    def captions(self, num_rows: int) -> Iterator[str]:
        """Captions of the first rows, of all data sets in turn, e.g. to train a tokenizer on."""
        for source in self.sources:  # the stream itself says what is wrong
            for where, row in islice(_all_rows(source, "skip"), num_rows // len(self.sources)):
                yield from _texts(row["caption"], where, "skip") or ()


def _texts(value: Any, where: str, on_bad_row: Literal["error", "skip"]) -> list[str] | None:
    """The captions of a row; nothing if it has none and that is to be skipped."""
    try:
        texts = text_or_texts(value)
    except ValueError as error:
        if on_bad_row == "error":
            raise ValueError(
                f"The caption of {where} is {value!r}, {error}. `on_bad_row='skip'` leaves such rows out."
            ) from None
        return None
    return [texts] if isinstance(texts, str) else texts


def _items(
    shards: Shards, names: Sequence[str], first: int, start: int
) -> Iterator[tuple[int, int, str, dict[str, Any] | ShardError]]:
    """Rows of several shards from some row of one of them on, each behind the place where the next one is; and what could not be read."""
    for position in range(first, len(names)):
        number = start if position == first else 0
        try:
            for row in shards.rows(names[position], number):
                number += 1
                yield position, number, f"{names[position]}, sample {row['key']}", row
        except ShardError as error:
            yield position + 1, 0, names[position], error


def _all_rows(shards: Shards, on_corrupt_image: Literal["error", "skip"]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of all shards in their order, each with its place; what is left of a shard that cannot be read may be skipped."""
    for _, _, where, item in _items(shards, shards.names, 0, 0):
        if isinstance(item, dict):
            yield where, item
        elif on_corrupt_image == "error":
            raise item


def table_of(
    shards: Shards,
    num_rows: int,
    on_corrupt_image: Literal["error", "skip"] = "error",
    on_bad_row: Literal["error", "skip"] = "error",
) -> datasets.Dataset:
    """The first rows of shards, in memory, with the columns `image` and `caption` (a list).

    Args:
        shards (`Shards`), num_rows (`int`): Which, and how many.
        on_corrupt_image, on_bad_row: As of [`PairStream`], of shards and of captions.

    Raises:
        ValueError: If there is none, or one that is not to be skipped.
    """
    kept: list[dict[str, Any]] = []
    with tqdm(desc="held-out pairs", unit="pair", total=num_rows, leave=False) as progress:
        for where, row in _all_rows(shards, on_corrupt_image):
            if (texts := _texts(row["caption"], where, on_bad_row)) is not None:
                kept.append({"image": row["image"], "caption": texts})
                progress.update()
            if len(kept) == num_rows:
                break
    if not kept:
        raise ValueError(f"{shards.names[0]} holds no pair to evaluate on.")
    # In parts: an array of Arrow's holds 2 GiB
    parts = [datasets.Dataset.from_list(kept[start : start + 100]) for start in range(0, len(kept), 100)]
    return datasets.concatenate_datasets(parts).cast_column("image", datasets.Image(decode=False))


def load_streams(
    args: StreamArguments,
    name: str,
    config_name: str | None = None,
    image_column: str = "image",
    caption_column: str = "caption",
    eval_split: str = "test",
    eval_fraction: float = 0.05,
    **options: Any,
) -> tuple[PairStream, datasets.Dataset]:
    """Training pairs as a stream, and the held-out ones as of [`table_of`].

    Args:
        args ([`StreamArguments`]): How to read.
        name (`str`), config_name (`str`, *optional*), image_column (`str`), caption_column (`str`): Of [`shard_files`] and [`open_shards`];
            `name` is not read where several are mixed.
        eval_split (`str`): Of a folder or Hub data set, evaluated if it is there.
        eval_fraction (`float`): Share of the shards that is held out where there is nothing else to evaluate on.
        options: Of [`PairStream`]; `seed` among them.

    Raises:
        ValueError: If there is nothing to evaluate on, or it would be trained on.
    """
    columns = (image_column, caption_column)
    entries = [mixture_entry(entry) for entry in args.mixture] or [(name, 1.0)]
    files = [shard_files(address, config_name) for address, _ in entries]
    if missing := [address for (address, _), each in zip(entries, files, strict=True) if "train" not in each]:
        raise ValueError(f"Data set {missing[0]!r} has no split 'train' to stream.")
    train = [each["train"] for each in files]
    if args.eval_shards is not None:
        held_out = files_of_split(args.eval_shards, eval_split)
    elif args.mixture:
        raise ValueError("`mixture` needs `eval_shards`: on which of several data sets are they to be evaluated?")
    elif eval_split in files[0]:
        held_out = files[0][eval_split]
    else:
        train[0], held_out = _hold_out(train[0], eval_fraction, options.get("seed", 0))
    if both := {file for each in train for file in each} & set(held_out):
        raise ValueError(f"`eval_shards` are trained on: {', '.join(sorted(both)[:3])}, {len(both)} in all.")
    sources = [open_shards(each, *columns) for each in train]
    policy = (options.get("on_corrupt_image", "error"), options.get("on_bad_row", "error"))
    table = table_of(open_shards(held_out, *columns), args.max_eval_rows, *policy)
    stream = PairStream(
        sources,
        [weight for _, weight in entries],
        args.shuffle_buffer,
        min_image_size=args.min_image_size,
        min_caption_length=args.min_caption_length,
        max_caption_length=args.max_caption_length,
        **options,
    )
    return stream, table


def files_of_split(address: str, split: str) -> list[str]:
    """Files of shards to evaluate on: the split of this name, or the only one that there is.

    Raises:
        ValueError: If there are several, and none of this name.
    """
    files = shard_files(address)
    if split not in files and len(files) > 1:
        raise ValueError(
            f"{address!r} has the splits {', '.join(files)}; say with `eval_split` which one to evaluate."
        )
    return files[split] if split in files else next(iter(files.values()))


def _hold_out(files: Sequence[str], fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """Shards to train on, and others to evaluate on."""
    if len(files) < 2:
        raise ValueError(
            f"{files[0]} is the only shard: to evaluate on others, name them with `eval_shards`, or write more shards."
        )
    held_out = random.Random(seed).sample(list(files), max(1, round(fraction * len(files))))
    return [file for file in files if file not in held_out], sorted(held_out)


__all__ = ["PairStream", "StreamArguments", "files_of_split", "load_streams", "mixture_entry", "table_of"]
