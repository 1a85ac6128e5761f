"""Images with boxes from any source, as the detector wants them: COCO and LVIS files, and data sets with an `objects` column."""

import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import DatasetDict, Features, List, Value
from PIL import ExifTags, Image, ImageOps
from torch.utils.data import Dataset
from transformers import ProcessorMixin
from transformers.utils import logging

from triptych.data.emoji_scenes import load_emoji_scenes, scene_concepts
from triptych.data.media_folder import MediaFolder
from triptych.data.pictures import decode_image, orientation_of
from triptych.data.splits import load_splits, read_split


logger = logging.get_logger(__name__)
_LEAST_VISIBLE = 0.2  # of an object's box, or a crop shows nobody what it is
_OBJECT_COLUMNS = ("bbox", "category", "area", "iscrowd", "segmentation")
_FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}


class DetectionData:
    """Splits with images and objects, and what their classes are called.

    Args:
        splits (`DatasetDict`): `train` and `test`, with columns `image` and `objects`: `bbox` (left, top, width, height in
            pixels), `category`, and optionally `area`, `iscrowd` and `segmentation`; optionally `negative` and `not_exhaustive`
            (LVIS).
        categories (`list[str]`): Name of every class, as it is shown to the model.
        groups (`dict[str, list[int]]`): Classes whose average precision is reported: `base` and `novel`, LVIS's `rare`, `common`
            and `frequent`.
        is_lvis (`bool`): Whether images say which classes were looked for in them, as LVIS's do.
    """

    def __init__(
        self, splits: DatasetDict, categories: list[str], groups: dict[str, list[int]], is_lvis: bool = False
    ):
        self.splits, self.categories, self.groups, self.is_lvis = splits, categories, groups, is_lvis

    @property
    def base(self) -> list[int]:
        """Classes with boxes in training."""
        return self.groups.get("base", list(range(len(self.categories))))


def _check_entry(entry: dict[str, Any], images: Any, categories: Any) -> None:
    """Refuse an annotation that says nothing, or something about nothing."""
    if entry.get("image_id") not in images:
        raise ValueError(f"`image_id` {entry.get('image_id')!r} is no image of the file")
    if entry.get("category_id") not in categories:
        raise ValueError(f"`category_id` {entry.get('category_id')!r} is no category of the file to evaluate on")
    bbox = entry.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(isinstance(side, (int, float)) for side in bbox):
        raise ValueError(f"`bbox` must be left, top, width and height, got {bbox!r}")
    if not all(map(math.isfinite, bbox)):
        raise ValueError(f"`bbox` must hold finite numbers, got {bbox}")


def _coco_rows(
    annotations: dict[str, Any], path: str, folder: str, category_index: dict[int, int], on_bad_row: str
) -> Iterator[dict[str, Any]]:
    objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in annotations["images"]}
    problems = []
    for position, entry in enumerate(annotations["annotations"]):
        try:
            _check_entry(entry, objects, category_index)
            objects[entry["image_id"]].append(entry)
        except ValueError as error:
            problems.append(f"{path}, annotation {entry.get('id', f'number {position}')}: {error}.")
            if on_bad_row == "error":
                raise ValueError(f"{problems[0]} `on_bad_row='skip'` leaves such annotations out.") from None
    if problems:
        logger.warning(f"{len(problems)} annotations of {path} were left out. The first: {problems[0]}")
    pictures = MediaFolder(Path(folder))
    for image in annotations["images"]:
        # LVIS names no file but a URL, whose last two parts are COCO's folder and file
        name = image.get("file_name") or "/".join(image["coco_url"].split("/")[-2:])
        file = pictures.find(name, Path(name).name)
        entries = [entry for entry in objects[image["id"]] if min(entry["bbox"][2:]) > 0]
        yield {
            "image": {"path": str(file), "bytes": None},
            "width": image.get("width"),
            "height": image.get("height"),
            "objects": {
                "bbox": [entry["bbox"] for entry in entries],
                "category": [category_index[entry["category_id"]] for entry in entries],
                "area": [entry.get("area", entry["bbox"][2] * entry["bbox"][3]) for entry in entries],
                "iscrowd": [bool(entry.get("iscrowd", 0)) for entry in entries],
                "segmentation": [json.dumps(entry.get("segmentation", [])) for entry in entries],
            },
            "negative": [category_index[each] for each in image.get("neg_category_ids", [])],
            "not_exhaustive": [category_index[each] for each in image.get("not_exhaustive_category_ids", [])],
        }


def _load_coco(paths: dict[str, str], folder: str, on_bad_row: str) -> DetectionData:
    """Splits, each a file in COCO's or LVIS's form; their classes are those of `test`."""
    found = {}
    for split, path in paths.items():
        try:
            found[split] = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"Annotations {path} cannot be read: {error}") from error
        missing = {"images", "annotations", "categories"} - found[split].keys()
        if missing:
            raise ValueError(f"Annotations {path} lack {', '.join(sorted(missing))}: expected COCO's or LVIS's form.")
    categories = sorted(found["test"]["categories"], key=lambda category: category["id"])
    index = {category["id"]: position for position, category in enumerate(categories)}
    features = Features(
        {
            "image": datasets.Image(),
            "width": Value("int64"),
            "height": Value("int64"),
            "objects": {
                "bbox": List(List(Value("float32"), length=4)),
                "category": List(Value("int64")),
                "area": List(Value("float32")),
                "iscrowd": List(Value("bool")),
                "segmentation": List(Value("string")),
            },
            "negative": List(Value("int64")),
            "not_exhaustive": List(Value("int64")),
        }
    )
    splits = {
        split: datasets.Dataset.from_list(list(_coco_rows(found[split], path, folder, index, on_bad_row)), features)
        for split, path in paths.items()
    }
    groups: dict[str, list[int]] = {}
    for position, category in enumerate(categories):
        if "frequency" in category:
            groups.setdefault(_FREQUENCIES[category["frequency"]], []).append(position)
    names = [category["name"].replace("_", " ") for category in categories]  # LVIS: "baseball_bat"
    is_lvis = any("neg_category_ids" in image for image in found["test"]["images"])
    return DetectionData(DatasetDict(splits), names, groups, is_lvis)


def _entries(objects: dict[str, list] | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The objects of an image one by one, also where a data set has columns of them."""
    if isinstance(objects, list):
        return objects
    columns = {name: objects[name] for name in _OBJECT_COLUMNS if objects.get(name) is not None}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _load_objects(data: DatasetDict, name: str) -> DetectionData:
    features = data["test"].features
    objects = features.get("objects")
    objects = getattr(objects, "feature", objects)  # a list of dicts reads like a dict of lists
    if "image" not in features or not isinstance(objects, dict) or not {"bbox", "category"} <= objects.keys():
        raise ValueError(
            f"Data set {name!r} needs the columns `image` and `objects` (with `bbox` and `category`), it has "
            f"{', '.join(features)}."
        )
    label: Any = getattr(objects["category"], "feature", objects["category"])
    if isinstance(label, datasets.ClassLabel):
        categories = list(label.names)
    elif label.dtype == "string":
        images = (objects for split in data.values() for objects in split["objects"])
        categories = sorted({entry["category"] for objects in images for entry in _entries(objects)})
    else:
        raise ValueError(
            f"`objects.category` of {name!r} must be a ClassLabel or a name, got {label}: numbers alone do not say what things are."
        )
    return DetectionData(data, categories, {})


def load_detection(
    name: str,
    config_name: str | None = None,
    train_annotations: str | None = None,
    eval_annotations: str | None = None,
    novel_classes: Sequence[str] | str | None = None,
    image_size: int = 288,
    num_scenes: int = 6000,
    **options: Any,
) -> DetectionData:
    """Load images with boxes.

    Args:
        name (`str`): `"emoji-scenes"` (built from installed packages); with annotations the folder of the images; otherwise a folder
            with `metadata.jsonl`, or a data set on the Hub, with the usual `objects` column.
        train_annotations, eval_annotations (`str`, *optional*): Files in COCO's or LVIS's form.
        novel_classes (`Sequence[str]` or `str`, *optional*): Classes, or a file with one per line, that lose their boxes in training. Default: the novel concepts of emoji
            scenes, LVIS's rare classes, and none elsewhere.
        image_size (`int`), num_scenes (`int`): Of emoji scenes.
        config_name, options: Of [`load_splits`].

    Raises:
        ValueError: If something is missing, or a novel class does not exist.
    """
    if (train_annotations is None) != (eval_annotations is None):
        raise ValueError("`train_annotations` and `eval_annotations` need one another.")
    if train_annotations is not None and eval_annotations is not None:
        paths = {"train": train_annotations, "test": eval_annotations}
        data = _load_coco(paths, name, options.get("on_bad_row", "error"))
        default = [data.categories[index] for index in data.groups.get("rare", [])]
    elif name == "emoji-scenes":
        concepts = scene_concepts()
        names = concepts["base"] + concepts["novel"]
        data = DetectionData(load_emoji_scenes(num_scenes, image_size=image_size), names, {})
        default = concepts["novel"]
    else:
        data = _load_objects(load_splits(name, config_name, **options), name)
        default = []
    return _with_novel(data, novel_classes, default, name)


def read_detection(
    source: str, split: str = "test", annotations: str | None = None, novel_classes: str | None = None
) -> DetectionData:
    """One split to evaluate, as `test`.

    Args:
        source (`str`): Folder of the pictures of `annotations`, or data with the usual `objects` column.
        split (`str`): Of data without annotations.
        annotations (`str`, *optional*): File in COCO's or LVIS's form.
        novel_classes (`str`, *optional*): File with classes that had no boxes in training. Default: LVIS's rare ones.

    Raises:
        ValueError: If something is missing, or a novel class does not exist.
    """
    if annotations is not None:
        data = _load_coco({"test": annotations}, source, "error")
        default = [data.categories[index] for index in data.groups.get("rare", [])]
        return _with_novel(data, novel_classes, default, source)
    return _with_novel(_load_objects(DatasetDict(test=read_split(source, split)), source), novel_classes, [], source)


def _with_novel(
    data: DetectionData, novel_classes: Sequence[str] | str | None, default: Sequence[str], name: str
) -> DetectionData:
    """The data, whose groups say which classes had boxes in training."""
    if isinstance(novel_classes, str):
        novel_classes = [line.strip() for line in Path(novel_classes).read_text(encoding="utf-8-sig").splitlines()]
    novel = default if novel_classes is None else [each for each in novel_classes if each]
    unknown = sorted(set(novel) - set(data.categories))
    if unknown:
        raise ValueError(f"`novel_classes` are not classes of {name!r}: {', '.join(unknown[:5])}.")
    if novel:
        held_out = set(novel)
        data.groups["base"] = [index for index, each in enumerate(data.categories) if each not in held_out]
        data.groups["novel"] = [index for index, each in enumerate(data.categories) if each in held_out]
        if not data.groups["base"]:
            raise ValueError("`novel_classes` are all classes there are: nothing is left to train on.")
    return data


def _mask(segmentation: str, height: int, width: int) -> Image.Image:
    from faster_coco_eval import mask as coco_mask

    content = json.loads(segmentation)
    if not content:
        raise ValueError("A mask head needs `segmentation` of every object.")
    runs = coco_mask.frPyObjects(content, height, width)
    runs = coco_mask.merge(runs) if isinstance(content, list) else runs
    return Image.fromarray(coco_mask.decode(runs) * 255)


def _turned(entry: dict[str, Any], turn: int, stored: tuple[int, int]) -> dict[str, Any]:
    """An object of a picture as it is stored, in the upright picture.

    Args:
        entry (`dict`): With `bbox`, and `mask` if there are masks.
        turn (`int`): EXIF orientation of the picture, 5 to 8: those that exchange width and height.
        stored (`tuple[int, int]`): Width and height of the picture as it is stored, in pixels.
    """
    left, top, width, height = entry["bbox"]
    x = top if turn in (5, 8) else stored[1] - top - height
    y = left if turn in (5, 6) else stored[0] - left - width
    changed = {**entry, "bbox": [x, y, height, width]}
    if "mask" in entry:
        entry["mask"].getexif()[ExifTags.Base.Orientation] = turn  # so that it is turned like its picture
        changed["mask"] = ImageOps.exif_transpose(entry["mask"])
    return changed


class DetectionDataset(Dataset):
    """Rows with decoded image and objects in COCO's form, for the processor; augmented while training.

    Large-scale jitter (arXiv 2012.07177): the image is scaled at random and a random window of it is kept, or it is padded.

    Args:
        data (`datasets.Dataset`): A split of [`DetectionData`].
        categories (`list[str]`): Its classes.
        classes (`list[int]`, *optional*): Classes to show, in the order of their new indices. Default: all.
        image_size (`int`): Height and width of augmented images, in pixels.
        scales (`tuple[float, float]`, *optional*): Range of the jitter, of the longer side relative to `image_size`. Default: the
            image as it is, without flips.
        with_masks (`bool`): Read segmentations.
        seed (`int`): Seed of the augmentation, which depends on seed, epoch and row only.
    """

    def __init__(
        self,
        data: datasets.Dataset,
        categories: list[str],
        classes: list[int] | None = None,
        image_size: int = 1024,
        scales: tuple[float, float] | None = None,
        with_masks: bool = False,
        seed: int = 0,
    ):
        self.data = data.cast_column("image", datasets.Image(decode=False))
        self.names = {name: index for index, name in enumerate(categories)}
        kept = list(range(len(categories))) if classes is None else classes
        self.index = {category: position for position, category in enumerate(kept)}
        self.image_size, self.scales, self.with_masks, self.seed, self.epoch = image_size, scales, with_masks, seed, 0

    def __len__(self) -> int:
        return len(self.data)

    def set_epoch(self, epoch: int) -> None:
        """Change the augmentation; call it before iterating."""
        self.epoch = epoch

    def _objects(self, row: dict[str, Any], size: tuple[int, int]) -> list[dict[str, Any]]:
        kept = []
        for entry in _entries(row["objects"]):
            category = entry["category"]
            category = self.names[category] if isinstance(category, str) else category
            if category not in self.index:
                continue
            bbox = list(entry["bbox"])
            area, is_crowd = entry.get("area", bbox[2] * bbox[3]), bool(entry.get("iscrowd", False))
            kept.append({"bbox": bbox, "category_id": self.index[category], "area": area, "iscrowd": is_crowd})
            if self.with_masks:
                if "segmentation" not in entry:
                    raise ValueError(
                        "A mask head needs `objects` with `segmentation`, which this data set does not have."
                    )
                kept[-1]["mask"] = _mask(entry["segmentation"], *size)
        return kept

    def _augment(
        self, image: Image.Image, entries: list[dict[str, Any]], rng: random.Random
    ) -> tuple[Image.Image, list[dict[str, Any]]]:
        size = self.image_size
        low, high = self.scales or (1.0, 1.0)
        factor = rng.uniform(low, high) * size / max(image.size)
        width, height = (max(1, round(factor * side)) for side in image.size)
        left, top = rng.randint(0, max(0, width - size)), rng.randint(0, max(0, height - size))
        flip = rng.random() < 0.5

        def place(picture: Image.Image, resample: Image.Resampling) -> Image.Image:
            # Only the window is resized. What lies outside the picture is black, as the padding of the processor.
            part = (left, top, min(left + size, width), min(top + size, height))
            sides = zip(part, picture.size * 2, (width, height) * 2, strict=True)
            box: Any = tuple(edge * own / scaled for edge, own, scaled in sides)
            shown = picture.resize((part[2] - part[0], part[3] - part[1]), resample, box=box, reducing_gap=2.0)
            if flip:
                shown = shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            canvas = Image.new(picture.mode, (size, size))
            canvas.paste(shown, (0, 0))
            return canvas

        shown_width, shown_height = min(size, width - left), min(size, height - top)
        kept = []
        for entry in entries:
            across, down = width / image.width, height / image.height
            x, box_width = (side * across for side in entry["bbox"][::2])
            y, box_height = (side * down for side in entry["bbox"][1::2])
            x0, x1 = (min(max(edge - left, 0), shown_width) for edge in (x, x + box_width))
            y0, y1 = (min(max(edge - top, 0), shown_height) for edge in (y, y + box_height))
            if (x1 - x0) * (y1 - y0) < _LEAST_VISIBLE * box_width * box_height or min(x1 - x0, y1 - y0) < 1:
                continue
            if flip:
                x0, x1 = shown_width - x1, shown_width - x0
            changed = {**entry, "bbox": [x0, y0, x1 - x0, y1 - y0]}
            if "mask" in entry:
                changed["mask"] = place(entry["mask"], Image.Resampling.NEAREST)
            kept.append(changed)
        return place(image, Image.Resampling.BILINEAR), kept

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.data[index]
        image = decode_image(row["image"], index)
        stated = (row.get("width") or image.width, row.get("height") or image.height)
        entries = self._objects(row, (stated[1], stated[0]))
        if stated != image.size:
            turn = orientation_of(row["image"])
            if turn < 5 or stated != image.size[::-1]:
                raise ValueError(
                    f"{row['image'].get('path') or f'The image of row {index}'} is {image.width} x {image.height} pixels, but its "
                    f"`width` and `height` are {stated[0]} x {stated[1]}."
                )
            entries = [_turned(entry, turn, stated) for entry in entries]
        if self.scales is not None:
            image, entries = self._augment(image, entries, random.Random(f"{self.seed}-{self.epoch}-{index}"))
        item = {"image": image, "annotations": entries}
        return item | {name: row[name] for name in ("negative", "not_exhaustive") if name in row}


class DetectionCollator:
    """Batch rows of [`DetectionDataset`] through the processor: `pixel_values` and `labels`.

    Args:
        processor (`ProcessorMixin`): Of the detector.
    """

    def __init__(self, processor: ProcessorMixin):
        self.processor = processor

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch = self.processor(
            images=[row["image"] for row in rows],
            annotations=[{"annotations": row["annotations"]} for row in rows],
            return_tensors="pt",
        )
        return {"pixel_values": batch["pixel_values"], "labels": batch["labels"]}


def reference_of(row: dict[str, Any]) -> dict[str, list]:
    """What average precision compares detections of a row with."""
    entries = row["annotations"]
    boxes = [entry["bbox"] for entry in entries]
    reference: dict[str, list] = {
        "boxes": [[left, top, left + width, top + height] for left, top, width, height in boxes],
        "labels": [entry["category_id"] for entry in entries],
        "areas": [entry["area"] for entry in entries],
        "is_crowd": [entry["iscrowd"] for entry in entries],
    }
    if "negative" in row:
        reference |= {"negative_labels": row["negative"], "not_exhaustive_labels": row["not_exhaustive"]}
    return reference


__all__ = [
    "DetectionCollator",
    "DetectionData",
    "DetectionDataset",
    "load_detection",
    "read_detection",
    "reference_of",
]
