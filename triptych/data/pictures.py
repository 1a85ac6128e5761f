"""Pictures of a data set's rows, decoded one by one so that a bad file can be named."""

import hashlib
import io
import math
import random
from pathlib import Path
from typing import Any

import datasets
from PIL import ExifTags, Image
from torch.utils.data import Dataset
from transformers import ProcessorMixin

from triptych.processing.pictures import to_rgb


class CorruptImageError(ValueError):
    """An image of the data set cannot be read."""


def _file_of(image: dict[str, Any]) -> Any:
    """Where a stored picture is read from."""
    return image["path"] if image["bytes"] is None else io.BytesIO(image["bytes"])


def decode_image(image: dict[str, Any] | None, place: int | str, decode_size: float | None = None) -> Image.Image:
    """An image of a `datasets` row that was not decoded yet (`datasets.Image(decode=False)`), upright, as RGB.

    Args:
        image (`dict`): With `bytes` or `path`.
        place (`int` or `str`): For the error: number of the row, or where the picture is.
        decode_size (`float`, *optional*): Height and width that suffice. A JPEG that is at least twice as large is decoded at a half,
            a quarter or an eighth of its size, which takes a fraction of the time; its pixels then differ a little from those of the
            whole picture reduced by the processor. Not for evaluation.

    Raises:
        CorruptImageError: If it cannot be read; names the file and the row.
    """
    try:
        with Image.open(_file_of(image)) as opened:  # type: ignore[arg-type]
            if decode_size is not None:
                side = math.ceil(decode_size)
                opened.draft(None, (side, side))  # type: ignore[arg-type]  # does nothing to other formats
            return to_rgb(opened)
    except Exception as error:  # Pillow's plugins raise what they like, decompression bombs included
        name = (image or {}).get("path") or "without a file name"
        place = f"row {place}" if isinstance(place, int) else place
        raise CorruptImageError(f"Image {name} ({place}) cannot be read: {error}") from error


class PictureRows(Dataset):
    """Rows that decode their pictures when they are asked for."""

    decode_size: float | None = None
    crop_scale: float = 1.0

    def set_decode_size(self, size: float) -> None:
        """Decode larger JPEGs faster, as [`decode_image`] does, since inputs have `size` pixels each way; to train on."""
        self.decode_size = size / self.crop_scale**0.5  # a crop still has `size` pixels


def random_crop(image: Image.Image, smallest_share: float, seed: str) -> Image.Image:
    """A part of a picture with its proportions.

    Args:
        image (`PIL.Image.Image`): The picture.
        smallest_share (`float`): Of its area; at 1.0 the whole picture comes back.
        seed (`str`): Which part; the same seed gives the same part.
    """
    if smallest_share >= 1.0:
        return image
    rng = random.Random(seed)
    side = rng.uniform(smallest_share, 1.0) ** 0.5
    width, height = max(1, round(side * image.width)), max(1, round(side * image.height))
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height))


def input_side(processor: ProcessorMixin) -> int | None:
    """The longest side of what a processor makes of a picture, in pixels, if it names sides."""
    image_processor: Any = processor.image_processor  # type: ignore[attr-defined]
    given = [dict(getattr(image_processor, name, None) or {}) for name in ("size", "crop_size")]
    names = ("height", "width", "shortest_edge", "longest_edge")
    return max((sides[name] for sides in given for name in names if sides.get(name) is not None), default=None)


def orientation_of(image: dict[str, Any]) -> int:
    """How a camera held a stored picture, as EXIF numbers it: 1 for upright, above 4 where width and height are exchanged."""
    with Image.open(_file_of(image)) as opened:
        return opened.getexif().get(ExifTags.Base.Orientation, 1)


def shorter_side(image: dict[str, Any]) -> int:
    """Of a stored picture, in pixels, without decoding it.

    Raises:
        CorruptImageError: If it cannot be read.
    """
    try:
        with Image.open(_file_of(image)) as opened:
            return min(opened.size)
    except Exception as error:
        raise CorruptImageError(f"Image {image['path']} cannot be read: {error}") from error


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


__all__ = [
    "CorruptImageError", "PictureRows", "decode_image", "input_side", "orientation_of", "picture_ids", "random_crop", "shorter_side",
]  # fmt: skip
