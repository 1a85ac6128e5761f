"""Captions of pictures and clips, scored against several true ones by BLEU and CIDEr-D."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from triptych.data.media_folder import CLIPS, MediaFolder
from triptych.data.rows import several_texts
from triptych.data.splits import read_split
from triptych.evaluation.caption_scores import score_texts
from triptych.evaluation.generator import Generator
from triptych.tasks.layouts import (
    IMAGE_COLUMNS,
    VisualRows,
    field,
    find_column,
    find_file,
    read_json,
    read_tars,
    read_texts,
    refuse_columns,
    stored_image,
)


CAPTION_COLUMNS = ("captions", "caption", "sentences", "annotations_captions", "answer", "txt", "text")


def karpathy_rows(path: Path, split: str, folder: Path, most: int | None = None) -> list[dict[str, Any]]:
    """Pictures of a split of Karpathy's `dataset_coco.json` or `dataset_flickr30k.json`.

    Args:
        path (`Path`): The file.
        split (`str`): Its `train` holds `restval` too, as in the papers that train on it.
        folder (`Path`): Of the pictures.
        most (`int`, *optional*): Captions per picture, the first ones.

    Raises:
        ValueError: If there is no such split, or a picture is missing.
    """
    images = read_json(path, ["images"])["images"]
    wanted = {split, "restval"} if split == "train" else {split}
    found = [image for image in images if field(image, "split", path) in wanted]
    if not found:
        raise ValueError(
            f"`split` {split!r} is not in {path}, which has {', '.join(sorted({i['split'] for i in images}))}."
        )
    pictures = MediaFolder(folder)
    return [
        {
            "image": stored_image(
                pictures.find(str(Path(image.get("filepath", "")) / image["filename"]), image["filename"])
            ),
            "captions": [sentence["raw"].strip() for sentence in image["sentences"]][:most],
        }
        for image in found
    ]


def _coco_rows(path: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """COCO's `captions_val2017.json`, and NoCaps' file, whose images have a `domain`."""
    content = read_json(path, ["images", "annotations"])
    captions: dict[Any, list[str]] = defaultdict(list)
    for annotation in content["annotations"]:
        captions[field(annotation, "image_id", path)].append(field(annotation, "caption", path).strip())
    pictures = MediaFolder(folder)
    for image in content["images"]:
        if not captions[image["id"]]:
            raise ValueError(f"{path} has no caption for image {image['id']}.")
        row = {
            "image": stored_image(pictures.find(field(image, "file_name", path))),
            "captions": captions[image["id"]],
        }
        yield {**row, "group": image["domain"]} if "domain" in image else row


def _clip_rows(path: Path, split: str, folder: Path) -> Iterator[dict[str, Any]]:
    """MSR-VTT's `videodatainfo` file."""
    content = read_json(path, ["videos", "sentences"])
    captions: dict[str, list[str]] = defaultdict(list)
    for sentence in content["sentences"]:
        captions[field(sentence, "video_id", path)].append(field(sentence, "caption", path).strip())
    clips = MediaFolder(folder, CLIPS)
    found = [video for video in content["videos"] if field(video, "split", path) == split]
    if not found:
        known = ", ".join(sorted({video["split"] for video in content["videos"]}))
        raise ValueError(f"`split` {split!r} is not in {path}, which has {known}.")
    for video in found:
        name = field(video, "video_id", path)
        yield {"video": str(clips.find(name)), "captions": captions[name]}


def _table_rows(source: str, split: str, image_column: str | None, caption_column: str | None) -> Any:
    with_others = (Path(source) / split / "nshards.txt").is_file()
    data = read_tars(Path(source), split) if with_others else read_split(source, split)
    image_column = find_column(image_column, IMAGE_COLUMNS, data.column_names, "image_column", source)
    caption_column = find_column(caption_column, CAPTION_COLUMNS, data.column_names, "caption_column", source)
    captions = read_texts(data[caption_column], several_texts, caption_column)
    if caption_column == "txt":  # CLIP_benchmark writes one caption per line
        captions = [[line.strip() for line in text.splitlines() if line.strip()] for (text,) in captions]
    rows = data.select_columns([image_column])
    rows = rows if image_column == "image" else rows.rename_column(image_column, "image")
    return rows.add_column("captions", captions)


def read_captions(
    source: str,
    split: str = "test",
    image_column: str | None = None,
    caption_column: str | None = None,
    most: int | None = None,
) -> VisualRows:
    """Rows of `image` or `video` with `captions`, and `group` where the data have one.

    Args:
        source (`str`): A folder of Karpathy (`dataset_coco.json`, which goes first), COCO (`captions_val2017.json`), NoCaps
            (`nocaps_val_4500_captions.json`) or MSR-VTT (`videodatainfo_2016.json`) with its pictures or clips anywhere below; a folder of
            CLIP_benchmark with `test/*.tar`; or what [`read_data_set`] reads.
        split (`str`): To evaluate.
        image_column, caption_column (`str`, *optional*): Of tables. Default: the usual ones.
        most (`int`, *optional*): Captions per picture that Karpathy's split counts, the first ones.

    Raises:
        ValueError: If a file, picture, split or column is missing.
    """
    folder = Path(source)
    rows = _folder_rows(folder, split, most) if folder.is_dir() else None
    if rows is None:
        return VisualRows(_table_rows(source, split, image_column, caption_column))
    refuse_columns(folder, image_column=image_column, caption_column=caption_column)
    return VisualRows(rows)


def _folder_rows(folder: Path, split: str, most: int | None) -> list[dict[str, Any]] | None:
    """The rows of a folder in a benchmark's own layout, or nothing if it is in none."""
    if path := find_file(folder, [f"dataset_{name}.json" for name in ("coco", "flickr30k", "flickr8k")]):
        return karpathy_rows(path, split, folder, most)
    if path := find_file(folder, [f"captions_{split}*.json", f"nocaps_{split}*.json"]):
        return list(_coco_rows(path, folder))
    if path := find_file(folder, ["*videodatainfo*.json"]):
        return list(_clip_rows(path, split, folder))
    if any(folder.rglob("captions_*.json")) or any(folder.rglob("nocaps_*.json")):
        raise ValueError(
            f"There is no captions_{split}*.json or nocaps_{split}*.json below {folder}; is it another `split`?"
        )
    return None


class Captions:
    """The task.

    Args:
        source, split, image_column, caption_column: As of [`read_captions`].
        prompt (`str`, *optional*): As of [`Generator.captions`].
        max_new_tokens (`int`): Of a caption.
    """

    name = "captions"

    def __init__(
        self,
        source: str,
        split: str = "test",
        image_column: str | None = None,
        caption_column: str | None = None,
        prompt: str | None = None,
        max_new_tokens: int = 32,
    ):
        self.rows = read_captions(source, split, image_column, caption_column)
        self.prompt, self.max_new_tokens = prompt, max_new_tokens

    def predict(self, generator: Generator, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Of every picture or clip its caption, and the true ones."""
        kind = "video" if "video" in rows[0] else "image"
        visuals = [row[kind] for row in rows]
        written = generator.captions(visuals, kind, self.prompt, max_new_tokens=self.max_new_tokens)
        return [
            {
                "caption": caption,
                "references": row["captions"],
                **({"group": row["group"]} if row.get("group") else {}),
            }
            for caption, row in zip(written, rows, strict=True)
        ]

    def score(self, samples: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """`bleu_1` to `bleu_4` and `cider_d`, and the latter of every group by itself; CIDEr-D also per picture."""
        found, by_image = _scores(samples)
        for group in sorted({sample["group"] for sample in samples if "group" in sample}):
            own, _ = _scores([sample for sample in samples if sample.get("group") == group])
            found[f"cider_d_{group}"] = own["cider_d"]
        return found, {"cider_d": by_image}


def _scores(samples: list[dict[str, Any]]) -> tuple[dict[str, float], np.ndarray]:
    return score_texts([sample["caption"] for sample in samples], [sample["references"] for sample in samples])


__all__ = ["CAPTION_COLUMNS", "Captions", "karpathy_rows", "read_captions"]
