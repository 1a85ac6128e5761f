"""Texts of rows: what has one meaning is read, the rest is refused with its place, or left out and counted."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import datasets
from datasets.table import InMemoryTable
from transformers.utils import logging


logger = logging.get_logger(__name__)


def one_text(value: Any) -> str:
    """A text as it stands; a number as it is written.

    Raises:
        ValueError: If it is neither, or blank.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError("expected a text that is not blank, or a number")
    return value


def several_texts(value: Any) -> list[str]:
    """One text or a list of them, as a list. VQAv2's `{"answer": text}` counts as its text.

    Raises:
        ValueError: If there is none, or one is not a text.
    """
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if not values:
        raise ValueError("expected at least one text")
    return [one_text(each["answer"] if isinstance(each, dict) and "answer" in each else each) for each in values]


def text_or_texts(value: Any) -> str | list[str]:
    """[`several_texts`] of a list, [`one_text`] of anything else."""
    return several_texts(value) if isinstance(value, (list, tuple)) else one_text(value)


def place_of(data: datasets.Dataset, row: int, source: str) -> str:
    """Where a row stands, as its file numbers it: the line of a folder's metadata, else the row of the data set."""
    image = data.features.get("image")
    if isinstance(image, datasets.Image) and Path(source).is_dir():
        path = Path((data.cast_column("image", datasets.Image(decode=False))[row]["image"] or {}).get("path") or "")
        for metadata in Path(source).rglob("metadata.*"):
            number = _line_of(metadata, path)
            if number is not None:
                return f"{metadata}, line {number}"
    return f"{source}, row {row}"


def _line_of(metadata: Path, image: Path) -> int | None:
    """The line of a metadata file that describes an image."""
    if metadata.suffix not in (".csv", ".jsonl"):
        return None
    with metadata.open(encoding="utf-8-sig", newline="") as file:
        rows: Any = csv.DictReader(file) if metadata.suffix == ".csv" else map(json.loads, file)
        for number, row in enumerate(rows, 1):
            if (metadata.parent / row["file_name"]).resolve() == image.resolve():
                return rows.line_num if metadata.suffix == ".csv" else number
    return None


def clean_texts(
    data: datasets.Dataset,
    columns: dict[str, Callable[[Any], Any]],
    source: str,
    on_bad_row: Literal["error", "skip"] = "error",
) -> datasets.Dataset:
    """Rows whose texts are texts.

    Args:
        data (`datasets.Dataset`): Rows as they were stored: the place of one that is refused is counted in them.
        columns (`dict`): How to read each column: [`one_text`], [`several_texts`] or [`text_or_texts`].
        source (`str`): Name, file or folder of the data set.
        on_bad_row (`"error"` or `"skip"`): Stop at the first row that cannot be read, or leave such rows out and say how many.

    Raises:
        ValueError: If a row cannot be read, with its place, column and value; or none is left.
    """
    if not columns:
        return data
    read: dict[str, list[Any]] = {column: [] for column in columns}
    kept: list[int] = []
    first = ""
    for row, values in enumerate(zip(*(data[column] for column in columns), strict=True)):
        found = []
        for (column, reader), value in zip(columns.items(), values, strict=True):
            try:
                found.append(reader(value))
            except ValueError as error:
                problem = f"{place_of(data, row, source)}: `{column}` is {value!r}, {error}."
                if on_bad_row == "error":
                    raise ValueError(f"{problem} `on_bad_row='skip'` leaves such rows out.") from None
                first = first or problem
                break
        else:
            kept.append(row)
            for column, text in zip(columns, found, strict=True):
                read[column].append(text)
    if not kept:
        raise ValueError(f"{source} holds no row that can be read. {first}")
    if len(kept) < len(data):
        logger.warning(f"{len(data) - len(kept)} of {len(data)} rows were left out. The first: {first}")
        data = data.select(kept)
    changed = {column: texts for column, texts in read.items() if texts != data[column][:]}
    for column, texts in changed.items():
        data = data.remove_columns(column).add_column(column, texts)
    # One table: `datasets` loses rows when it casts a part of a table that several make up.
    return datasets.Dataset(InMemoryTable(data.data.table), data.info, data.split) if changed else data


__all__ = ["clean_texts", "one_text", "place_of", "several_texts", "text_or_texts"]
