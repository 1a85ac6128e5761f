"""Training an open-vocabulary detector: scenes, data sets, augmentation, script."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from transformers import AutoProcessor

from tests.conftest import MAMMUT_VARIANTS, tiny_mammut_config
from tests.processes import kill_after, logged_losses
from tests.test_detection import (
    NAMES,
    SMALL,
    classes,
    needs_torchvision,
    pixels,
    save_detector,
    tiny_detector,
    tiny_processor,
)
from triptych import MammutConfig, MammutForObjectDetection
from triptych.data.detection import DetectionCollator, DetectionDataset, load_detection, reference_of
from triptych.data.emoji_scenes import EmojiPictures, compose, load_emoji_scenes, scene_concepts
from triptych.training.detectors import train_heads_and_tower
from triptych.training.optimization import weight_decay_groups


ROOT = Path(__file__).parents[1]


# Data


def test_scenes_have_exact_boxes_and_training_shows_no_novel_concept():
    concepts = scene_concepts()
    assert not set(concepts["base"]) & set(concepts["novel"])
    share = len(concepts["novel"]) / sum(map(len, concepts.values()))
    assert 0.15 < share < 0.25
    data = load_emoji_scenes(num_train=12, num_test=12, image_size=64)
    assert data["train"][0]["image"].size == (64, 64)
    names = data["train"].features["objects"]["category"].feature.names
    assert names == concepts["base"] + concepts["novel"]
    seen = {split: {c for row in rows["objects"] for c in row["category"]} for split, rows in data.items()}
    assert max(seen["train"]) < len(concepts["base"]) <= max(seen["test"])
    again = load_emoji_scenes(num_train=12, num_test=12, image_size=64)
    assert again["test"][3] == data["test"][3]
    picture, shown, boxes, masks = compose(random.Random(3), concepts["base"][:5], 128, (0.2, 0.5))
    assert picture.size == (128, 128)
    assert len(shown) == len(boxes) == len(masks) > 1
    for (left, top, right, bottom), mask in zip(boxes.astype(int), masks, strict=True):
        assert mask[top:bottom, left:right].sum() == mask.sum() > 0
        assert mask[top].any()
        assert mask[bottom - 1].any()
        assert mask[:, left].any()
        assert mask[:, right - 1].any()
    assert sum(mask.astype(int) for mask in masks).max() == 1  # every pixel has one owner


def test_captioned_pictures_name_what_they_show():
    pictures = EmojiPictures("train", 48, pair_share=1.0)
    first = pictures[0]
    assert first["image"].size == (48, 48)
    assert pictures.captions[0] in first["caption"]
    assert any(" and " in pictures[index]["caption"] for index in range(8))
    assert pictures[0]["caption"] == first["caption"]
    pictures.set_epoch(1)
    assert pictures[0]["image"].tobytes() != first["image"].tobytes()


def objects_data(category, as_list: bool = False) -> Dataset:
    """Two pictures, the first with two objects; `objects` is a dict of lists, or a list of dicts."""
    box = List(Value("float32"), length=4)
    objects = List({"bbox": box, "category": category}) if as_list else {"bbox": List(box), "category": List(category)}
    picture = Image.new("RGB", (100, 50), "black")
    picture.paste((255, 0, 0), (20, 10, 60, 30))
    labels = NAMES[:2] if getattr(category, "dtype", "") == "string" else [0, 1]
    boxes = [[20, 10, 40, 20], [0, 0, 5, 5]]
    rows = []
    for count in (2, 0):
        entry = {"bbox": boxes[:count], "category": labels[:count]}
        if as_list:
            entry = [{"bbox": boxes[index], "category": labels[index]} for index in range(count)]
        rows.append({"image": picture, "objects": entry})
    return Dataset.from_list(rows, features=Features({"image": ImageFeature(), "objects": objects}))


def test_augmented_boxes_follow_their_pixels():
    rows = DetectionDataset(objects_data(ClassLabel(names=NAMES[:2])), NAMES[:2], [0], 64, (0.4, 2.0), seed=1)
    seen = 0
    for epoch in range(30):
        rows.set_epoch(epoch)
        item = rows[0]
        assert item["image"].size == (64, 64)
        assert all(entry["category_id"] == 0 for entry in item["annotations"])  # the other is novel: no box
        for entry in item["annotations"]:
            seen += 1
            red = np.argwhere(np.asarray(item["image"])[..., 0] > 127)
            left, top, width, height = entry["bbox"]
            assert abs(red[:, 1].min() - left) <= 1.01
            assert abs(red[:, 0].min() - top) <= 1.01
            assert abs(red[:, 1].max() + 1 - left - width) <= 1.01
            assert abs(red[:, 0].max() + 1 - top - height) <= 1.01
    assert seen > 20
    assert rows[1]["annotations"] == []


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("category", [ClassLabel(names=NAMES[:2]), Value("string")])
def test_data_sets_with_objects(category, as_list, monkeypatch):
    data = DatasetDict(train=objects_data(category, as_list), test=objects_data(category, as_list))
    monkeypatch.setattr("triptych.data.splits.load_dataset", lambda name, config: data)
    loaded = load_detection("someone/objects", novel_classes=[NAMES[1]])
    assert loaded.categories == sorted(NAMES[:2], key=loaded.categories.index)
    assert [loaded.categories[index] for index in loaded.groups["novel"]] == [NAMES[1]]
    row = DetectionDataset(loaded.splits["test"], loaded.categories)[0]
    assert [loaded.categories[entry["category_id"]] for entry in row["annotations"]] == NAMES[:2]
    assert reference_of(row)["boxes"][0] == [20, 10, 60, 30]
    with pytest.raises(ValueError, match=r"not classes of.*zebra"):
        load_detection("someone/objects", novel_classes=["zebra"])
    with pytest.raises(ValueError, match="nothing is left"):
        load_detection("someone/objects", novel_classes=NAMES[:2])
    with pytest.raises(ValueError, match="must be at least two"):  # pictures, to hold one out
        load_detection("someone/objects", eval_split="val")


def write_coco(folder: Path, lvis: bool = False) -> tuple[str, str]:
    (folder / "images").mkdir()
    picture = Image.new("RGB", (100, 50), "blue")
    picture.save(folder / "images" / "1.jpg")
    categories = [{"id": 3, "name": "red_apple"}, {"id": 7, "name": "bus"}]
    image = {"id": 1, "file_name": "1.jpg", "width": 100, "height": 50}
    if lvis:
        for category, frequency in zip(categories, "fr", strict=True):
            category["frequency"] = frequency
        del image["file_name"]
        image |= {
            "coco_url": "http://images.cocodataset.org/val2017/1.jpg",
            "neg_category_ids": [7],
            "not_exhaustive_category_ids": [],
        }
    square = [[10, 10, 30, 10, 30, 30, 10, 30]]
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 10, 20, 20], "area": 400, "segmentation": square},
        {"id": 2, "image_id": 1, "category_id": 7, "bbox": [50, 10, 0, 20], "area": 0, "segmentation": square},
    ]
    content = {"images": [image], "annotations": annotations, "categories": categories}
    for split in ("train", "val"):
        (folder / f"{split}.json").write_text(json.dumps(content))
    return str(folder / "train.json"), str(folder / "val.json")


@pytest.mark.parametrize("lvis", [False, True])
def test_coco_and_lvis_files(tmp_path, lvis):
    train, val = write_coco(tmp_path, lvis)
    data = load_detection(str(tmp_path / "images"), train_annotations=train, eval_annotations=val)
    assert data.categories == ["red apple", "bus"]
    row = DetectionDataset(data.splits["test"], data.categories)[0]
    assert row["image"].size == (100, 50)
    assert [entry["category_id"] for entry in row["annotations"]] == [0]  # an empty box is none
    if lvis:
        assert data.groups == {"frequent": [0], "rare": [1], "base": [0], "novel": [1]}
        assert reference_of(row)["negative_labels"] == [1]
        assert data.is_lvis
    else:
        assert not data.is_lvis
        assert data.base == [0, 1]
    with pytest.raises(ValueError, match="need one another"):
        load_detection(str(tmp_path), train_annotations=train)
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(ValueError, match="lack annotations, categories, images"):
        load_detection(str(tmp_path), train_annotations=train, eval_annotations=str(tmp_path / "broken.json"))


@needs_torchvision
def test_segmentations_become_masks(tmp_path):
    train, val = write_coco(tmp_path)
    data = load_detection(str(tmp_path / "images"), train_annotations=train, eval_annotations=val)
    rows = DetectionDataset(data.splits["train"], data.categories, image_size=64, scales=(0.9, 1.1), with_masks=True)
    batch = DetectionCollator(tiny_processor())([rows[0]])
    (label,) = batch["labels"]
    assert label["masks"].shape == (1, 64, 64)
    where = label["masks"][0].nonzero()
    center_x, center_y, width, height = (64 * label["boxes"][0]).tolist()
    assert abs(where[:, 1].min() - (center_x - width / 2)) <= 1.5
    assert abs(where[:, 0].max() + 1 - (center_y + height / 2)) <= 1.5
    tiny_detector(use_mask_head=True, mask_pool_size=4, mask_conv_layers=1)(
        pixel_values=batch["pixel_values"], class_embeds=classes(2), labels=batch["labels"]
    ).loss.backward()


# Training


def write_squares(folder: Path) -> list[str]:
    """Ten pictures of a red or a blue square, in COCO's form, and what the script needs to know about them."""
    rng = random.Random(0)
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for index in range(10):
        side, left, top = rng.randint(20, 40), rng.randint(0, 24), rng.randint(0, 24)
        picture = Image.new("RGB", (64, 64), "white")
        picture.paste(("red", "blue")[index % 2], (left, top, left + side, top + side))
        picture.save(folder / "images" / f"{index}.png")
        images.append({"id": index, "file_name": f"{index}.png", "width": 64, "height": 64})
        box = {"bbox": [left, top, side, side], "area": side * side, "iscrowd": 0}
        annotations.append({"id": index, "image_id": index, "category_id": 1 + index % 2, **box})
    categories = [{"id": 1, "name": "red apple"}, {"id": 2, "name": "bus"}]
    path = folder / "squares.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    (folder / "novel.txt").write_text("bus\n")
    files = ["--train_annotations", str(path), "--eval_annotations", str(path)]
    return ["--dataset", str(folder / "images"), *files, "--novel_classes", str(folder / "novel.txt")]


@needs_torchvision
def test_the_script_trains_resumes_and_writes_a_repository(tmp_path):
    save_detector(tmp_path / "source")
    options = {
        "model_name_or_path": tmp_path / "source",
        "detection_config": json.dumps(SMALL),
        "num_epochs": 3,
        "batch_size": 2,
        "eval_epochs": 2,
        "num_eval_images": 3,
        "checkpoint_steps": 3,
        "num_workers": 0,
        "mixed_precision": "no",
        "num_pictures": 1,
        "templates": "a photo of a {}",
        "report_to": "tensorboard",  # which takes no lists, such as the templates
    }
    flags = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    command = [sys.executable, ROOT / "examples" / "finetune_detection.py", *flags, *write_squares(tmp_path / "data")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    settings = {"env": environment, "capture_output": True, "text": True, "timeout": 300}
    folder = tmp_path / "whole"
    done = subprocess.run([*command, "--output_dir", folder], **settings)
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "eval_results.json").read_text())
    assert {"ap50_base", "ap50_novel", "ap50_base_without_fusion", "ap50_novel_without_fusion"} <= results.keys()
    assert Image.open(folder / "pictures" / "0.png").size == (640, 640)
    card = (folder / "README.md").read_text()
    assert "zero-shot-object-detection" in card
    assert "from source)" in card
    assert str(tmp_path) not in card
    processor = AutoProcessor.from_pretrained(folder)
    assert processor.base_classes == ["red apple"]
    assert processor.class_templates == ["a photo of a {}"]
    assert len(logged_losses(folder)) == 15

    killed = tmp_path / "killed"
    kill_after([*command, "--output_dir", killed], killed, 8, environment)
    again = subprocess.run([*command, "--output_dir", killed, "--resume"], **settings)
    assert again.returncode == 0, again.stderr
    assert "at step" in again.stdout
    assert logged_losses(killed) == logged_losses(folder)
    assert json.loads((killed / "eval_results.json").read_text()) == pytest.approx(results, nan_ok=True)


@needs_torchvision
@pytest.mark.parametrize("variant", list(MAMMUT_VARIANTS))
def test_everything_that_is_trained_gets_a_gradient(variant, tmp_path):
    """Or training on several processes stops with an error."""
    values = {**tiny_mammut_config(variant).to_dict(), "detection_config": {**SMALL, "keep_image_text_tower": True}}
    model = MammutForObjectDetection(MammutConfig.from_dict(values)).train()
    model.copy_image_text_tower()
    model.save_pretrained(tmp_path)
    model = MammutForObjectDetection.from_pretrained(tmp_path).train()  # which thaws what was frozen
    groups = weight_decay_groups(model, 0.1, 1e-3, train_heads_and_tower(model, 3e-4))
    box = {"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]])}
    model(pixel_values=pixels(1), class_embeds=classes(2), labels=[box]).loss.backward()
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in model.parameters() if parameter.grad is not None}
    assert {group["lr"] for group in groups} == {1e-3, 3e-4}
