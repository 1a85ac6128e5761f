"""How benchmarks lie on a disk: files that are known by their names, tables whose columns have usual ones, pictures beside them."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
from torch.utils.data import Dataset

from triptych.data.pictures import decode_image
from triptych.data.shards import TAR_ENDINGS


IMAGE_COLUMNS = ("image", "img", *TAR_ENDINGS["image"])


def _undecoded(rows: datasets.Dataset) -> datasets.Dataset:
    """With pictures as they are stored, one per row or a list of them."""
    feature = rows.features.get("image")
    if isinstance(feature, datasets.Image):
        return rows.cast_column("image", datasets.Image(decode=False))
    if isinstance(getattr(feature, "feature", None), datasets.Image):
        return rows.cast_column("image", datasets.List(datasets.Image(decode=False)))
    return rows


class VisualRows(Dataset):
    """Rows whose `image` is decoded when they are asked for; several of a row stay a list. A `video` stays a path, which processors read.

    Args:
        rows (`datasets.Dataset` or `Sequence[dict]`): With `image` as it is stored, or `video`.
    """

    def __init__(self, rows: datasets.Dataset | Sequence[dict[str, Any]]):
        self.stored: Any = _undecoded(rows) if isinstance(rows, datasets.Dataset) else rows

    def __len__(self) -> int:
        return len(self.stored)

    def column(self, name: str) -> list[Any]:
        """A field of all rows; no picture is looked at."""
        whole = isinstance(self.stored, datasets.Dataset)
        return list(self.stored[name]) if whole else [row[name] for row in self.stored]

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.stored[index]
        if "image" not in row:
            return dict(row)
        stored = row["image"]
        if not isinstance(stored, list):
            return {**row, "image": decode_image(stored, index)}
        pictures = [decode_image(each, index) for each in stored]
        return {**row, "image": pictures[0] if len(pictures) == 1 else pictures}


def find_file(folder: Path, patterns: Iterable[str]) -> Path | None:
    """The only file below a folder whose name fits one of the patterns; the first pattern that any fits.

    Raises:
        ValueError: If several do.
    """
    for pattern in patterns:
        found = sorted(folder.rglob(pattern))
        if len(found) > 1:
            names = ", ".join(str(path.relative_to(folder)) for path in found[:3])
            raise ValueError(
                f"{folder} holds {len(found)} files {pattern} ({names}); expected one: name a folder below."
            )
        if found:
            return found[0]
    return None


def read_json(path: Path, needs: Iterable[str] = ()) -> Any:
    """What a JSON file holds.

    Args:
        path (`Path`): The file.
        needs (`Iterable[str]`): Keys that it must have.

    Raises:
        ValueError: If it is no JSON or lacks one.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if needs:
        missing = sorted({*needs} - (content.keys() if isinstance(content, dict) else set()))
        if missing:
            raise ValueError(f"{path} lacks {', '.join(missing)}.")
    return content


def field(entry: dict[str, Any], name: str, path: Path) -> Any:
    """A field of an entry of a file.

    Raises:
        ValueError: If it is not there.
    """
    if name not in entry:
        raise ValueError(f"An entry of {path} has no `{name}`, only {', '.join(map(str, entry))}.")
    return entry[name]


def stored_image(path: Path) -> dict[str, Any]:
    """A picture as `datasets` stores it in a row."""
    return {"path": str(path), "bytes": None}


def refuse_columns(source: Path, **columns: str | None) -> None:
    """Refuse names of columns for data that have none.

    Raises:
        ValueError: If one is given.
    """
    for name, value in columns.items():
        if value is not None:
            raise ValueError(f"`{name}` {value!r} is for tables; {source} is read by its annotation files.")


def read_tars(folder: Path, split: str) -> datasets.Dataset:
    """A split of a folder of CLIP_benchmark, in which other files lie beside the tar files.

    Raises:
        ValueError: If there is no tar file.
    """
    files = sorted((folder / split).glob("*.tar"))
    if not files:
        raise ValueError(f"There is no tar file in {folder / split}.")
    return datasets.load_dataset("webdataset", data_files={split: [str(file) for file in files]}, split=split)


def find_column(given: str | None, usual: Sequence[str], columns: Sequence[str], name: str, source: str) -> str:
    """The column that is asked for, or the first usual one.

    Raises:
        ValueError: If there is none.
    """
    found = next((each for each in ([given] if given else usual) if each in columns), None)
    if found is None:
        asked = f"`{name}` {given!r} is not a column of" if given else f"`{name}` must be given for"
        raise ValueError(f"{asked} {source!r}, which has {', '.join(columns)}.")
    return found


def read_texts(values: Iterable[Any], reader: Callable[[Any], Any], column: str) -> list[Any]:
    """A column of texts, each as one of the readers of `data/rows.py` reads it.

    Raises:
        ValueError: If one cannot be read, with its row.
    """
    found = []
    for row, value in enumerate(values):
        try:
            found.append(reader(value))
        except ValueError as error:
            raise ValueError(f"`{column}` of row {row} is {value!r}, {error}.") from None
    return found


__all__ = [
    "IMAGE_COLUMNS", "VisualRows", "field", "find_column", "find_file", "read_json", "read_tars", "read_texts", "refuse_columns", "stored_image",
]  # fmt: skip
