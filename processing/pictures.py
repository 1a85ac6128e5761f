"""Any picture as upright 8-bit RGB: one conversion for every entrance, so that all of them see the same pixels."""

import base64
import io
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps


# What Pillow converts rightly by itself, and what it would clip at 255.
_EIGHT_BIT = {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "LA", "PA", "RGBA", "RGBa"}
_DEEP = {"I", "I;16", "I;16L", "I;16B", "I;16N", "F"}


def flatten(images):
    """Single pictures out of one, a list of them, lists of lists, or an array of several."""
    if isinstance(images, (list, tuple)) or getattr(images, "ndim", None) == 4:
        for image in images:
            yield from flatten(image)
    else:
        yield images


def _levels(values: np.ndarray, largest: int, name: str) -> np.ndarray:
    """Numbers from 0 to `largest` as 8-bit levels."""
    if values.dtype == np.uint8:
        return values
    low, high = values.min(), values.max()
    slack = 1e-3 * (values.dtype.kind == "f")  # a rounding error, less than half a level
    if not (low >= -slack and high <= largest + slack):  # NaN fails too
        raise ValueError(f"`{name}` has {values.dtype} values from {low:g} to {high:g}; expected 0 to {largest}.")
    return np.rint(values.clip(0, largest) * (255 / largest)).astype(np.uint8)


def _from_array(image, name: str, data_format: str | None) -> Image.Image:
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()  # NumPy has no bfloat16
    values, shape = np.asarray(image), tuple(image.shape)
    axes = [0] if data_format == "channels_first" else [2] if data_format == "channels_last" else [0, 2]
    channels = [axis for count in (3, 1, 4) for axis in axes if len(shape) == 3 and shape[axis] == count]
    if 0 in shape or (len(shape) != 2 and not channels):
        raise ValueError(
            f"`{name}` has shape {shape}; expected (height, width), both at least 1, or that with 1, 3 or 4 channels before or "
            "behind."
        )
    if channels:
        values = np.moveaxis(values, channels[0], -1)
        values = values[..., 0] if values.shape[-1] == 1 else values
    largest = {"b1": 1, "u1": 255, "u2": 65535}.get(values.dtype.str[1:], 1 if values.dtype.kind == "f" else None)
    if largest is None:
        raise ValueError(f"`{name}` holds {values.dtype}; expected uint8, uint16, bool, or floats from 0 to 1.")
    return Image.fromarray(_levels(values, largest, name))


def _opened(source: str | Path, name: str, timeout: float | None) -> Image.Image:
    try:
        if str(source).startswith(("http://", "https://")):
            # Which HTTP client is installed depends on huggingface_hub; transformers names the right one.
            from transformers.image_utils import httpx

            response = httpx.get(str(source), timeout=timeout, follow_redirects=True)
            file = io.BytesIO(response.raise_for_status().content)
        elif isinstance(source, Path) or os.path.isfile(source):
            file = source
        else:
            file = io.BytesIO(base64.b64decode(source.rpartition(",")[2]))  # behind "data:image/png;base64,"
        with Image.open(file) as opened:
            opened.load()
            return opened
    except Exception as error:  # Pillow's plugins raise what they like
        raise ValueError(
            f"`{name}` {str(source)[:80]!r} cannot be read; expected a file, URL or base64 text of a picture: {error}"
        ) from error


def to_rgb(image, name: str = "image", timeout: float | None = None, data_format: str | None = None) -> Image.Image:
    """A picture as upright 8-bit RGB, transparent parts on white.

    Args:
        image: A PIL image of any mode; an array or tensor `(height, width)` or with 1, 3 or 4 channels before or behind, of
            uint8, uint16, bool, or floats from 0 to 1; or a path, URL or base64 text. Of an animation, the current frame.
        name (`str`): Of the argument, for messages.
        timeout (`float`, *optional*): Seconds to wait for a URL.
        data_format (`str`, *optional*): `"channels_first"` or `"channels_last"`, where an array's shape does not tell.

    Raises:
        ValueError: If it cannot be read, is empty, or holds numbers whose meaning nobody can know.
    """
    if isinstance(image, (str, Path)):
        image = _opened(image, name, timeout)
    elif hasattr(image, "ndim"):
        image = _from_array(image, name, data_format)
    elif not isinstance(image, Image.Image):
        raise ValueError(
            f"`{name}` is a {type(image).__name__}; expected a picture, an array, or a path, URL or base64 text."
        )
    if 0 in image.size:
        raise ValueError(f"`{name}` has size {image.size}; expected at least one pixel each way.")
    image = ImageOps.exif_transpose(image)
    if image.mode in _DEEP:
        values = np.asarray(image)
        levels = _levels(values, 1 if image.mode == "F" else 65535, name)
        levels[values == image.info.get("transparency", -1)] = 255
        image = Image.fromarray(levels)
    elif image.mode not in _EIGHT_BIT:
        raise ValueError(f"`{name}` has mode {image.mode!r}; expected one of {', '.join(sorted(_EIGHT_BIT | _DEEP))}.")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def rgb_pictures(images, name: str = "images", data_format: str | None = None):
    """`to_rgb` of every picture, nested as they came; an array of several becomes a list."""
    if isinstance(images, (list, tuple)) or getattr(images, "ndim", None) == 4:
        return [rgb_pictures(image, f"{name}[{index}]", data_format) for index, image in enumerate(images)]
    return to_rgb(images, name, data_format=data_format)


__all__ = ["flatten", "rgb_pictures", "to_rgb"]
