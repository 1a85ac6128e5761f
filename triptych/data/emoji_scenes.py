"""Emoji scenes: OpenMoji's animals, foods, plants and vehicles on varied backgrounds, with exact boxes.

Drawings differ in size, turn, overlap and leave the picture. A fifth of the concepts is novel: no training scene shows one. The
same composer makes captioned pictures of one or two drawings, from which an image-text model learns what scenes look like without
ever seeing a box.
"""

import io
import math
import random
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PILImage
from torch.utils.data import Dataset as TorchDataset

from triptych.data.drawings import picture_of, share_of_hash
from triptych.data.openmoji import named_drawings


# Unicode's blocks of animals, foods, plants and vehicles
_THINGS = (
    (0x1F32D, 0x1F37F), (0x1F400, 0x1F43D), (0x1F680, 0x1F6A4), (0x1F6E9, 0x1F6FC), (0x1F950, 0x1F96F), (0x1F980, 0x1F9AE),
    (0x1F9C0, 0x1F9CB), (0x1FAB0, 0x1FABF), (0x1FAD0, 0x1FADF),
)  # fmt: skip
_SPRITE_SIZE = 144
_LEAST_VISIBLE = 0.6


def _is_thing(file_name: str) -> bool:
    first, *rest = file_name.removesuffix(".svg").split("-")
    return rest in ([], ["FE0F"]) and any(start <= int(first, 16) <= end for start, end in _THINGS)


@cache
def scene_concepts() -> dict[str, list[str]]:
    """Names of the `base` and the `novel` concepts, four to one by a hash of the name, in alphabetical order.

    All are of the training split of [`named_drawings`]: an image-text model pretrained on OpenMoji knows their names.
    """
    names = sorted(each.caption for each in named_drawings()["train"] if _is_thing(each.file_name))
    return {
        "base": [name for name in names if share_of_hash("novel? " + name) >= 0.2],
        "novel": [name for name in names if share_of_hash("novel? " + name) < 0.2],
    }


@cache
def _drawings() -> dict[str, str]:
    return {each.caption: str(each.source) for drawings in named_drawings().values() for each in drawings}


@lru_cache(maxsize=4000)
def _sprite(name: str) -> PILImage.Image:
    """A drawing on a transparent ground, cut to what is drawn."""
    picture = picture_of(_drawings()[name], _SPRITE_SIZE)
    return picture.crop(picture.getchannel("A").getbbox())


def _background(rng: random.Random, size: int) -> PILImage.Image:
    """A plain, graded, cloudy, striped, checked or dotted ground in random colours."""
    first, second = (np.array([rng.randint(0, 255) for _ in range(3)], dtype=np.float32) for _ in range(2))
    if rng.random() < 0.5:  # alike, as most real grounds are
        second = first + (second - first) * 0.3
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    angle, period = rng.uniform(0, math.pi), rng.uniform(0.08, 0.3)
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    kind = rng.choice(["plain", "gradient", "clouds", "stripes", "checks", "dots"])
    if kind == "plain":
        weight = np.zeros_like(x)
    elif kind == "gradient":
        weight = (along - along.min()) / np.ptp(along)
    elif kind == "clouds":
        cells = rng.randint(2, 12)
        coarse = np.frombuffer(rng.randbytes(cells * cells), dtype=np.uint8).reshape(cells, cells)
        smooth = PILImage.fromarray(coarse).resize((size, size), PILImage.Resampling.BICUBIC)
        weight = np.asarray(smooth, dtype=np.float32) / 255
    elif kind == "stripes":
        weight = (np.floor(along / period) % 2).astype(np.float32)
    elif kind == "checks":
        weight = ((np.floor(along / period) + np.floor(across / period)) % 2).astype(np.float32)
    else:
        weight = ((along % period - period / 2) ** 2 + (across % period - period / 2) ** 2 < (period / 3) ** 2) * 1.0
    pixels = first + weight[..., None] * (second - first)
    grain = np.frombuffer(rng.randbytes(size * size), dtype=np.uint8).reshape(size, size, 1) / 255.0 - 0.5
    return PILImage.fromarray((pixels + rng.uniform(0, 30) * grain).clip(0, 255).astype(np.uint8))


def compose(
    rng: random.Random, names: list[str], size: int, scales: tuple[float, float]
) -> tuple[PILImage.Image, list[str], np.ndarray, list[np.ndarray]]:
    """Place drawings on a background, one after the other; where one would hide too much of another it is left out.

    Args:
        rng (`random.Random`): Decides everything.
        names (`list[str]`): Drawings, by caption.
        size (`int`): Height and width of the picture, in pixels.
        scales (`tuple[float, float]`): Smallest and largest longer side of a drawing, as shares of `size`.

    Returns:
        The picture, the names of what it shows, their boxes of shape `(objects, 4)` as left, top, right and bottom of the visible
        pixels, and the visible pixels of each, boolean, of shape `(size, size)`.
    """
    picture = _background(rng, size)
    owner = np.full((size, size), -1)  # whose pixel it is
    shown: list[str] = []
    areas: list[int] = []
    for name in names:
        sprite = _sprite(name)
        for _ in range(10):
            side = size * scales[0] * (scales[1] / scales[0]) ** rng.random()
            factor = side / max(sprite.size)
            width, height = (max(1, round(factor * length)) for length in sprite.size)
            drawn = sprite.resize((width, height), PILImage.Resampling.BILINEAR)
            drawn = drawn.rotate(rng.uniform(-30, 30), PILImage.Resampling.BILINEAR, expand=True)
            left = round(rng.uniform(-0.15, 1.15) * size - drawn.width / 2)
            top = round(rng.uniform(-0.15, 1.15) * size - drawn.height / 2)
            layer = PILImage.new("L", (size, size))
            layer.paste(drawn.getchannel("A"), (left, top))
            mask = np.asarray(layer) > 127
            visible = np.where(mask, len(shown), owner)
            whole = (np.asarray(drawn.getchannel("A")) > 127).sum()
            kept = [(visible == index).sum() for index in range(len(shown))]
            is_seen = all(left_over >= _LEAST_VISIBLE * area for left_over, area in zip(kept, areas, strict=True))
            if is_seen and mask.sum() >= _LEAST_VISIBLE * whole and mask.any():
                picture.paste(drawn, (left, top), drawn)
                owner = visible
                shown.append(name)
                areas.append(int(whole))
                break
    masks = [owner == index for index in range(len(shown))]
    boxes = [PILImage.fromarray(mask).getbbox() for mask in masks]
    return picture, shown, np.array(boxes, dtype=np.float32).reshape(-1, 4), masks


def _scenes(keys: list[str], concepts: tuple[str, ...], size: int) -> Iterator[dict[str, Any]]:
    for key in keys:
        rng = random.Random(key)
        names = [rng.choice(concepts) for _ in range(rng.randint(1, 6))]
        picture, shown, boxes, masks = compose(rng, names, size, (0.15, 0.5))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=92)
        yield {
            "image": {"bytes": file.getvalue(), "path": f"{key}.jpg"},
            "objects": {
                "bbox": [[left, top, right - left, bottom - top] for left, top, right, bottom in boxes.tolist()],
                "category": shown,
                "area": [float(mask.sum()) for mask in masks],
            },
        }


def load_emoji_scenes(num_train: int = 6000, num_test: int = 600, image_size: int = 288, seed: int = 0) -> DatasetDict:
    """Build the emoji scenes; a second call finds them in the cache of `datasets`.

    Training scenes show up to six drawings of base concepts, test scenes of base and novel ones.

    Args:
        num_train, num_test (`int`): Scenes in the two splits.
        image_size (`int`): Height and width, in pixels.
        seed (`int`): Seed of the scenes.

    Returns:
        `DatasetDict` with splits `train` and `test` and columns `image` and `objects`: `bbox` (left, top, width, height in
        pixels), `category` (a `ClassLabel`, base concepts first) and `area` (visible pixels).

    Raises:
        ImportError: If a package that holds the drawings is missing (`pip install triptych[demo]`).
    """
    concepts = scene_concepts()
    categories = concepts["base"] + concepts["novel"]
    features = Features(
        {
            "image": Image(),
            "objects": {
                "bbox": List(List(Value("float32"), length=4)),
                "category": List(ClassLabel(names=categories)),
                "area": List(Value("float32")),
            },
        }
    )
    splits = {}
    for split, count, shown in (("train", num_train, concepts["base"]), ("test", num_test, categories)):
        keys = [f"{seed}-{split}-{index}" for index in range(count)]
        arguments = {"keys": keys, "concepts": tuple(shown), "size": image_size}
        splits[split] = Dataset.from_generator(_scenes, features=features, gen_kwargs=arguments)
    return DatasetDict(splits)


class EmojiPictures(TorchDataset):
    """Captioned pictures of one or two drawings of a split on varied backgrounds: "red apple", "bus and tiger".

    Skin tones and flags are left out: they are more than half of all drawings, and differ by little but a colour.

    Args:
        split (`str`): Of [`named_drawings`]; every drawing is the first one of a picture at least once per epoch.
        image_size (`int`): Height and width, in pixels.
        pair_share (`float`): Share of the pictures with a second drawing.
        thing_repeats (`int`): How often per epoch animals, foods, plants and vehicles are the first one, which scenes show.
        seed (`int`): Pictures depend on seed, epoch and index only.
    """

    def __init__(self, split: str, image_size: int, pair_share: float = 0.3, thing_repeats: int = 5, seed: int = 0):
        self.captions: list[str] = []
        for each in named_drawings()[split]:
            if "skin tone" not in each.caption and not each.caption.startswith("flag: "):
                self.captions += [each.caption] * (thing_repeats if _is_thing(each.file_name) else 1)
        self.split, self.image_size, self.pair_share, self.seed, self.epoch = split, image_size, pair_share, seed, 0

    def __len__(self) -> int:
        return len(self.captions)

    def set_epoch(self, epoch: int) -> None:
        """Make other pictures; call it before iterating."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = random.Random(f"{self.split}-{self.seed}-{self.epoch}-{index}")
        names = [self.captions[index]]
        if rng.random() < self.pair_share:
            names.append(rng.choice(self.captions))
        picture, shown, *_ = compose(rng, names, self.image_size, (0.4, 0.7) if len(names) == 2 else (0.4, 1.0))
        if not shown:  # every try left the picture
            picture, shown, *_ = compose(rng, names[:1], self.image_size, (0.4, 0.41))
        return {"image": picture, "caption": " and ".join(shown or names[:1]), "num_skipped": 0}


__all__ = ["EmojiPictures", "compose", "load_emoji_scenes", "scene_concepts"]
