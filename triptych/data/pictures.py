"""Pictures of a data set's rows, decoded one by one so that a bad file can be named."""

import hashlib
import io
import math
from pathlib import Path
from typing import Any

import datasets
from PIL import ExifTags, Image
from torch.utils.data import Dataset
from transformers import ProcessorMixin

from triptych.processing.pictures import to_rgb


class CorruptImageError(ValueError):
    """An image of the data set cannot be read."""


def decode_image(image: dict[str, Any] | None, row: int, decode_size: float | None = None) -> Image.Image:
    """An image of a `datasets` row that was not decoded yet (`datasets.Image(decode=False)`), upright, as RGB.

    Args:
        image (`dict`): With `bytes` or `path`.
        row (`int`): For the error.
        decode_size (`float`, *optional*): Height and width that suffice. A JPEG that is at least twice as large is decoded at a half,
            a quarter or an eighth of its size, which takes a fraction of the time; its pixels then differ a little from those of the
            whole picture reduced by the processor. Not for evaluation.

    Raises:
        CorruptImageError: If it cannot be read; names the file and the row.
    """
    try:
        source = image["path"] if image["bytes"] is None else io.BytesIO(image["bytes"])  # type: ignore[index]
        with Image.open(source) as opened:
            if decode_size is not None:
                side = math.ceil(decode_size)
                opened.draft(None, (side, side))  # type: ignore[arg-type]  # does nothing to other formats
            return to_rgb(opened)
    except Exception as error:  # Pillow's plugins raise what they like, decompression bombs included
        name = (image or {}).get("path") or "without a file name"
        raise CorruptImageError(f"Image {name} (row {row}) cannot be read: {error}") from error


class PictureRows(Dataset):
    """Rows that decode their pictures when they are asked for."""

    decode_size: float | None = None

    def set_decode_size(self, size: float) -> None:
        """Decode larger JPEGs faster, as [`decode_image`] does, since inputs have `size` pixels each way; to train on."""
        self.decode_size = size


def input_side(processor: ProcessorMixin) -> int | None:
    """The longest side of what a processor makes of a picture, in pixels, if it names sides."""
    image_processor: Any = processor.image_processor  # type: ignore[attr-defined]
    given = [dict(getattr(image_processor, name, None) or {}) for name in ("size", "crop_size")]
    names = ("height", "width", "shortest_edge", "longest_edge")
    return max((sides[name] for sides in given for name in names if sides.get(name) is not None), default=None)


def orientation_of(image: dict[str, Any]) -> int:
    """How a camera held a stored picture, as EXIF numbers it: 1 for upright, above 4 where width and height are exchanged."""
    source = image["path"] if image["bytes"] is None else io.BytesIO(image["bytes"])
    with Image.open(source) as opened:
        return opened.getexif().get(ExifTags.Base.Orientation, 1)


def picture_ids(data: datasets.Dataset, image_column: str) -> list[str]:
    """What tells the pictures of rows apart: a digest of their file, so that copies under another name are one picture."""

    def digest(row: dict[str, Any]) -> dict[str, str]:
        image = row[image_column] or {}
        content = image.get("bytes")
        if content is None:
            path = Path(image.get("path") or "")
            content = path.read_bytes() if path.is_file() else str(path).encode()
        return {"picture_id": hashlib.sha1(content, usedforsecurity=False).hexdigest()}

    images = data.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
    return list(images.map(digest, remove_columns=[image_column], desc="pictures")["picture_id"])


__all__ = ["CorruptImageError", "PictureRows", "decode_image", "input_side", "orientation_of", "picture_ids"]
