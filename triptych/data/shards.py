"""Shards: the files of a data set that is too large for a table, read one after another.

Tar files are those of webdataset, as img2dataset writes them: `000123.jpg`, `000123.txt` and `000123.json` are one sample. Parquet
files are those of the Hub. Both lie in a folder, or wherever fsspec reaches: `s3://`, `hf://`, `https://`.
"""

import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet
from braceexpand import braceexpand
from datasets import load_dataset_builder
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from webdataset.tariterators import group_by_keys, tar_file_expander


# What the usual names of columns mean in a tar file, whose columns are the endings of its files.
TAR_ENDINGS = {"image": ("jpg", "jpeg", "png", "webp"), "caption": ("txt",)}


class ShardError(ValueError):
    """A shard cannot be read, from its beginning or from some sample on."""


class Shards:
    """Files of one kind; a subclass says how one is read.

    Args:
        names (`Sequence[str]`): Their addresses.
        image_column, caption_column (`str`): Where pictures and captions are; `None` of captions: they are not read.
    """

    def __init__(self, names: Sequence[str], image_column: str = "image", caption_column: str | None = "caption"):
        self.names, self.image_column, self.caption_column = list(names), image_column, caption_column

    def rows(self, name: str, start: int = 0) -> Iterator[dict[str, Any]]:
        """The rows of a shard, from the one with the number `start` on.

        Returns:
            Iterator of `key` (`str`), `image` (`{"bytes": ..., "path": ...}`) and `caption`; the last two are `None` where there are none.

        Raises:
            ShardError: If the file cannot be read.
        """
        raise NotImplementedError


class TarShards(Shards):
    """Tar files. `"image"` stands for any of the usual endings, `"caption"` for `.txt`, and `"json.title"` for a field of `.json`."""

    def rows(self, name: str, start: int = 0) -> Iterator[dict[str, Any]]:
        image_endings = TAR_ENDINGS["image"] if self.image_column == "image" else (self.image_column,)
        ending, _, field = (self.caption_column or "").partition(".")
        if self.caption_column == "caption":
            (ending,) = TAR_ENDINGS["caption"]
        number = start - 1
        try:
            with fsspec.open(name, "rb") as file:
                samples = group_by_keys(tar_file_expander([{"url": name, "stream": file}]))
                for number, sample in enumerate(samples):
                    if number < start:
                        continue
                    found = next((each for each in image_endings if each in sample), None)
                    image = found and {"bytes": sample[found], "path": f"{sample['__key__']}.{found}"}
                    caption = sample.get(ending)
                    if caption is not None:
                        caption = caption.decode("utf-8", "replace")
                        caption = _field_of(caption, field) if field else caption.strip()
                    yield {"key": sample["__key__"], "image": image, "caption": caption}
        except (ValueError, OSError, EOFError, tarfile.TarError) as error:
            reason = error if isinstance(error, OSError) else error.args[0]  # to which webdataset adds more
            raise ShardError(f"Shard {name} cannot be read behind its sample {number}: {reason}") from error


def _field_of(text: str, field: str) -> Any:
    """A field of a JSON object; nothing if it is none."""
    try:
        content = json.loads(text)
    except ValueError:
        return None
    return content.get(field) if isinstance(content, dict) else None


class ParquetShards(Shards):
    """Parquet files. Pictures are bytes, or structs of bytes and path, as `datasets` writes them."""

    def rows(self, name: str, start: int = 0) -> Iterator[dict[str, Any]]:
        number = start
        try:
            with fsspec.open(name, "rb") as file, pyarrow.parquet.ParquetFile(file) as table:
                columns = table.schema_arrow.names
                wanted = {"image_column": self.image_column, "caption_column": self.caption_column}
                for key, column in wanted.items():
                    if column is not None and column not in columns:
                        raise ShardError(f"`{key}={column!r}` is no column of {name}; it has {', '.join(columns)}.")
                sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
                first, passed = 0, 0
                while first < len(sizes) and passed + sizes[first] <= start:  # whole groups are not read
                    first, passed = first + 1, passed + sizes[first]
                groups = list(range(first, len(sizes)))
                skip = start - passed
                read = [column for column in wanted.values() if column is not None]
                for batch in table.iter_batches(batch_size=64, row_groups=groups, columns=read):
                    for row in batch.to_pylist()[skip:]:
                        image = row[self.image_column]
                        if isinstance(image, bytes):
                            image = {"bytes": image, "path": None}
                        elif isinstance(image, str):
                            image = {"bytes": None, "path": image}
                        yield {"key": str(number), "image": image, "caption": row.get(self.caption_column)}
                        number += 1
                    skip = max(0, skip - len(batch))
        except (OSError, pyarrow.ArrowException) as error:
            raise ShardError(f"Shard {name} cannot be read from its row {number} on: {error}") from error


_KINDS = {".tar": TarShards, ".parquet": ParquetShards}


def _matches(name: str) -> list[str]:
    """The files that an address or a pattern of addresses stands for."""
    found = []
    for address in braceexpand(name):
        system, path = url_to_fs(address)
        if any(character in path for character in "*?["):
            matches = sorted(system.glob(path))
            found += [system.unstrip_protocol(each) for each in matches] if "://" in address else matches
        elif isinstance(system, LocalFileSystem) and not system.exists(path):
            raise ValueError(f"Shard {path} of {name!r} does not exist.")
        else:
            found.append(path if isinstance(system, LocalFileSystem) else address)
    return found


def shard_files(name: str, config_name: str | None = None) -> dict[str, list[str]]:
    """Addresses of the files of a data set, by split.

    Args:
        name (`str`): The address of a shard, or a pattern with braces or stars ("cc12m-{00000..01242}.tar",
            "s3://bucket/part-*.parquet"), which is all `train`; or a folder, or the name of a Hub data set.
        config_name (`str`, *optional*): Configuration of a Hub data set.

    Raises:
        ValueError: If no file matches.
    """
    if name.endswith(tuple(_KINDS)) or "://" in name or any(character in name for character in "*?[{"):
        files = {"train": _matches(name)}
    else:
        kind, options = name, {}
        if Path(name).is_dir():  # img2dataset writes parquet files of metadata beside its tar files
            kind, options = "webdataset" if any(Path(name).rglob("*.tar")) else "parquet", {"data_dir": name}
        data_files = load_dataset_builder(kind, config_name, **options).config.data_files or {}
        files = {str(split): list(each) for split, each in data_files.items()}
        if options:  # which names whatever lies there
            ending = ".tar" if kind == "webdataset" else ".parquet"
            files = {split: [file for file in each if file.endswith(ending)] for split, each in files.items()}
    if not any(files.values()):
        raise ValueError(f"No shard matches {name!r}.")
    return files


def open_shards(files: Sequence[str], image_column: str = "image", caption_column: str | None = "caption") -> Shards:
    """Shards by their addresses.

    Args:
        files (`Sequence[str]`): Tar files or parquet files.
        image_column, caption_column (`str`): Of parquet files; of tar files see [`TarShards`]. `None`: captions are not read.

    Raises:
        ValueError: If they are of several kinds, or of another.
    """
    endings = {Path(file.partition("?")[0]).suffix for file in files}
    if len(endings) != 1 or not endings <= _KINDS.keys():
        raise ValueError(
            f"Shards all end in {' or all in '.join(_KINDS)}; {files[0]} and {len(files) - 1} others end in "
            f"{', '.join(sorted(endings))}."
        )
    return _KINDS[endings.pop()](files, image_column, caption_column)


__all__ = ["TAR_ENDINGS", "ParquetShards", "ShardError", "Shards", "TarShards", "open_shards", "shard_files"]
