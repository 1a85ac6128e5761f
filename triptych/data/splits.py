"""The splits of any data set: read from a file, a folder or the Hub, and held out by picture where there is none to evaluate on."""

import random
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import datasets
from datasets import DatasetDict, load_dataset

from triptych.arguments import argument
from triptych.data.pictures import picture_ids
from triptych.data.rows import clean_texts
from triptych.data.statements import STATEMENTS


@dataclass
class DataArguments:
    """Which data a script reads; scripts add their columns."""

    dataset: str = argument(help="A folder, a parquet file, or the name of a Hub data set.")
    dataset_config: str | None = argument(default=None, help="Configuration of a Hub data set.")
    eval_split: str = argument(default="test", help="Split to evaluate on; held out if it does not exist.")
    group_column: str | None = argument(
        default=None,
        help="Rows of one value stay on one side when a split is held out. Default: those of one picture.",
    )
    on_bad_row: Literal["error", "skip"] = argument(
        default="error", help="Stop at a row whose texts cannot be read, or leave such rows out and count them."
    )
    dataset_license: str | None = argument(default=None, help="Licence of your data, for the card.")

    @property
    def data_name(self) -> str:
        """What the data are called, in cards and errors."""
        return self.dataset

    def __post_init__(self) -> None:
        if self.data_name in STATEMENTS:
            names = ["dataset_config", "dataset_license", "on_bad_row", *self.columns()]
            refuse_changed(self, names, f"is for data of your own; {self.data_name!r} has one form")
            splits = STATEMENTS[self.data_name].splits
            if self.eval_split not in splits:
                raise ValueError(
                    f"`eval_split` of {self.data_name!r} must be one of {', '.join(splits)}, got {self.eval_split!r}."
                )

    @classmethod
    def columns(cls) -> list[str]:
        """The arguments that name a column."""
        return [each.name for each in fields(cls) if each.name.endswith("_column")]

    def loading(self, *others: str) -> dict[str, Any]:
        """These arguments as the loaders of this room take them, some `others` of a script among them."""
        names = ("eval_split", "on_bad_row", *self.columns(), *others)
        options = {name: getattr(self, name) for name in names}
        return {"name": self.dataset, "config_name": self.dataset_config, **options}


def refuse_changed(args: Any, names: Iterable[str], reason: str) -> None:
    """Refuse arguments that would be ignored.

    Args:
        args: A dataclass of arguments.
        names (`Iterable[str]`): Arguments without a meaning beside the others.
        reason (`str`): Why, for the error.

    Raises:
        ValueError: If one of them is not at its default.
    """
    of_field = {each.name: each for each in fields(args)}
    for name in names:
        default: Any = of_field[name].default_factory
        default = of_field[name].default if default is MISSING else default()
        if getattr(args, name) != default:
            raise ValueError(f"`{name}={getattr(args, name)!r}` {reason}.")


def read_data_set(name: str, config_name: str | None = None) -> DatasetDict:
    """All splits of a file, a folder or a Hub data set, as [`load_splits`] knows them."""
    path = Path(name)
    if path.is_file():
        if path.suffix != ".parquet":
            raise ValueError(f"`dataset` {name!r} is a file of an unknown kind, expected .parquet or a folder.")
        return load_dataset("parquet", data_files=str(path))
    if path.is_dir():
        kinds = {"*.parquet": "parquet", "*.tar": "webdataset"}
        kind = next((kind for pattern, kind in kinds.items() if any(path.rglob(pattern))), "imagefolder")
        return load_dataset(kind, data_dir=str(path))
    return load_dataset(name, config_name)


def read_split(source: str, split: str) -> datasets.Dataset:
    """A split of what [`read_data_set`] reads.

    Raises:
        ValueError: If there is no such split.
    """
    splits = read_data_set(source)
    if split not in splits:
        raise ValueError(f"`split` {split!r} is not in {source!r}, which has {', '.join(splits)}.")
    return splits[split]


def hold_out(data: datasets.Dataset, groups: Sequence[Hashable], fraction: float, seed: int) -> DatasetDict:
    """Split off rows to evaluate on; rows of one group stay together.

    Args:
        data (`datasets.Dataset`): Rows.
        groups (`Sequence`): Of every row, e.g. its picture: what is asked of it in the test must not be known from training.
        fraction (`float`): Share of the groups that is held out; at least one.
        seed (`int`): Of the choice.

    Raises:
        ValueError: If there are fewer than two groups.
    """
    distinct = sorted(set(groups), key=str)
    if len(distinct) < 2:
        raise ValueError(
            f"The training split has {len(distinct)} picture; to hold some out, there must be at least two."
        )
    count = min(max(1, round(fraction * len(distinct))), len(distinct) - 1)
    chosen = set(random.Random(seed).sample(distinct, count))
    train = [row for row, group in enumerate(groups) if group not in chosen]
    test = [row for row, group in enumerate(groups) if group in chosen]
    return DatasetDict(train=data.select(train), test=data.select(test))


def load_splits(
    name: str,
    config_name: str | None = None,
    columns: Mapping[str, tuple[str, Callable[[Any], Any]]] | None = None,
    image_column: str | None = "image",
    eval_split: str = "test",
    group_column: str | None = None,
    on_bad_row: Literal["error", "skip"] = "error",
    eval_fraction: float = 0.05,
    seed: int = 0,
) -> DatasetDict:
    """Load a data set with the splits `train` and `test`.

    Args:
        name (`str`):
            A folder of images with `metadata.csv` or `metadata.jsonl`, of parquet files (or a single one) or of webdataset's tar
            files, whose columns are called as its files end ("jpg", "txt"); or a data set on the Hub.
        config_name (`str`, *optional*): Configuration of a Hub data set.
        columns (`dict`, *optional*): Columns with texts, by the argument that named them, and how to read each (`data/rows.py`).
        image_column (`str`, *optional*): Column with the images. `None`: there need not be any, and single rows are held out.
        eval_split (`str`): Split to evaluate on. If the data set has none of this name, a fixed share of the training split's
            groups is held out.
        group_column (`str`, *optional*): Column whose value says what belongs together. Default: rows of one picture do.
        on_bad_row (`"error"` or `"skip"`): What to do about a row whose texts cannot be read.
        eval_fraction (`float`): That share.
        seed (`int`): Seed of that split.

    Raises:
        ValueError: If the data set has no training split or lacks a column, a row cannot be read, or nothing can be held out.
    """
    data = read_data_set(name, config_name)
    if "train" not in data:
        raise ValueError(f"Data set {name!r} has no split 'train', only {', '.join(sorted(data))}.")
    columns = columns or {}
    wanted = {"image_column": image_column, "group_column": group_column}
    wanted |= {key: column for key, (column, _) in columns.items()}
    for split in ("train", *({eval_split} & data.keys())):
        found = data[split].column_names
        for key, column in wanted.items():
            if column is not None and column not in found and (key != "group_column" or split == "train"):
                raise ValueError(
                    f"`{key}={column!r}` is not a column of {name!r} (split {split!r}); it has {', '.join(found)}."
                )
    readers = dict(columns.values())
    if eval_split in data:
        rows = {"train": data["train"], "test": data[eval_split]}
        return DatasetDict({split: clean_texts(each, readers, name, on_bad_row) for split, each in rows.items()})
    train = clean_texts(data["train"], readers, name, on_bad_row)
    if group_column is not None:
        groups = list(train[group_column])
    else:
        groups = picture_ids(train, image_column) if image_column is not None else list(range(len(train)))
    return hold_out(train, groups, eval_fraction, seed)


__all__ = ["DataArguments", "hold_out", "load_splits", "read_data_set", "read_split", "refuse_changed"]
