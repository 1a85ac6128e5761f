"""Open-vocabulary detection: parts, model, processor, pipeline, command."""

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import AutoModel, AutoModelForZeroShotObjectDetection, Owlv2ImageProcessor, pipeline
from typer.testing import CliRunner

from tests.conftest import CAPTIONS, tiny_mammut, tiny_mammut_config
from tests.test_hub import ask_a_stranger
from triptych import MammutConfig, MammutDetectionConfig, MammutForObjectDetection, MammutProcessor
from triptych.cli import app
from triptych.detection import Detector, draw_detections
from triptych.hub import save_repository
from triptych.modeling import detection
from triptych.modeling.detection import Targets, fuse_scores, suppress
from triptych.processing.detection_inputs import select_detections
from triptych.training.tokenizer import train_tokenizer


ROOT = Path(__file__).parents[1]
needs_torchvision = pytest.mark.skipif(detection.torchvision is None, reason="torchvision's operators are not there")

SMALL = {
    "image_size": 64,
    "window_size": 4,
    "num_global_layers": 1,
    "pyramid_scales": [2, 1, 0.5],
    "channels": 16,
    "rpn_samples": 32,
    "num_proposals": 24,
    "box_conv_layers": 1,
    "box_hidden_size": 32,
    "box_samples": 16,
    "max_detections": 12,
}
NAMES = ["red apple", "bus", "tiger", "key", "rose"]


def tiny_processor(**kwargs) -> MammutProcessor:
    tokenizer = train_tokenizer([*CAPTIONS, *NAMES, "a photo of a"], 300, 40)
    return MammutProcessor(Owlv2ImageProcessor(size={"height": 64, "width": 64}), tokenizer, **kwargs)


def tiny_detector(processor: MammutProcessor | None = None, **fields) -> MammutForObjectDetection:
    torch.manual_seed(0)
    config = tiny_mammut_config()
    values = {**config.to_dict(), "detection_config": {**SMALL, **fields}}
    if processor is not None:
        tokenizer = processor.tokenizer
        values["text_config"] |= {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": tokenizer.model_max_length,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
    return MammutForObjectDetection(MammutConfig.from_dict(values)).eval()


def pixels(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def classes(count: int, seed: int = 2) -> torch.Tensor:
    found = torch.randn(
        count, tiny_mammut_config().text_config.hidden_size, generator=torch.Generator().manual_seed(seed)
    )
    return torch.nn.functional.normalize(found, dim=-1)


# Score fusion


def random_probabilities(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).softmax(-1)


def test_fusion_with_exponents_of_zero_is_the_detector_and_scores_sum_to_one():
    own, image_text = random_probabilities(2, 7, 6).double(), random_probabilities(2, 8, 6)[:, :7].double()
    is_base = torch.tensor([True, False, True, False, False])
    found = fuse_scores(own.log(), image_text.log(), is_base, 0.0, 0.0)
    torch.testing.assert_close(found, own, atol=1e-7, rtol=0)
    for known in (is_base, None):
        fused = fuse_scores(own.log(), image_text.log(), known, 0.35, 0.65)
        torch.testing.assert_close(fused.sum(-1), torch.ones(2, 7, dtype=torch.float64))


def test_fusion_is_the_geometric_mean_with_an_exponent_for_each_kind():
    own, image_text = torch.tensor([0.2, 0.3, 0.5]).log(), torch.tensor([0.1, 0.8, 0.1]).log()
    wanted = torch.tensor([0.2, 0.3**0.65 * 0.8**0.35, 0.5**0.35 * 0.1**0.65])  # background, base, novel
    found = fuse_scores(own, image_text, torch.tensor([True, False]), 0.35, 0.65)
    torch.testing.assert_close(found, wanted / wanted.sum())
    all_novel = torch.tensor([0.2, 0.3**0.35 * 0.8**0.65, 0.5**0.35 * 0.1**0.65])
    torch.testing.assert_close(fuse_scores(own, image_text, None, 0.35, 0.65), all_novel / all_novel.sum())


def test_fusion_of_opinions_that_exclude_one_another_is_a_number():
    own, image_text = torch.tensor([0.0, 300.0, 0.0]), torch.tensor([0.0, 0.0, 300.0])
    found = fuse_scores(own, image_text, None, 0.35, 0.65)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0, 1.0]), atol=1e-6, rtol=0)


def test_bad_configurations_are_named():
    for fields, message in (
        ({"pyramid_scales": [3.0, 1.0]}, "powers of two"),
        ({"pyramid_scales": [4.0, 1.0]}, "halve"),
        ({"pyramid_scales": []}, "powers of two"),
        ({"novel_exponent": 1.5}, "novel_exponent.*between 0 and 1"),
        ({"temperature": 0.0}, "temperature.*above 0"),
        ({"box_coder_weights": [1.0, 1.0]}, "four positive"),
        ({"num_proposals": 0}, "num_proposals.*at least 1"),
    ):
        with pytest.raises(StrictDataclassError, match=message):
            MammutDetectionConfig(**fields)


def test_only_detectors_have_a_detection_config():
    assert tiny_mammut_config().detection_config is None
    assert "detection_config" not in json.loads(tiny_mammut_config().to_json_string()) or (
        json.loads(tiny_mammut_config().to_json_string())["detection_config"] is None
    )


def test_without_torchvision_everything_else_works_and_detection_says_what_to_install(tmp_path):
    code = """
import importlib.util
import sys

find_spec = importlib.util.find_spec

def is_hidden(name):
    return name.partition(".")[0] in ("torchvision", "faster_coco_eval")

class Nobody:
    def find_spec(self, name, path=None, target=None):
        if is_hidden(name):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Nobody())
importlib.util.find_spec = lambda name, package=None: None if is_hidden(name) else find_spec(name, package)
import triptych, triptych.detection, triptych.data.detection, triptych.evaluation.detector
from triptych.evaluation.detection_average_precision import DetectionAveragePrecision

config = triptych.MammutConfig.from_preset("mammut-tiny")
triptych.MammutModel._from_config(config)
try:
    triptych.MammutForObjectDetection(config)
except ImportError as error:
    print(error)
box = {"boxes": [[0.0, 0.0, 1.0, 1.0]], "labels": [0]}
try:
    DetectionAveragePrecision(cache_dir=sys.argv[1]).compute(
        predictions=[{**box, "scores": [1.0]}], references=[{**box, "areas": [1.0], "is_crowd": [False]}]
    )
except ImportError as error:
    print(error)
"""
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("pip install 'triptych[detection]'") == 2


# Parts


@needs_torchvision
def test_box_codes_round_trip():
    head = tiny_detector().box_head
    boxes = torch.tensor([[2.0, 3, 20, 30], [0, 0, 64, 64], [10, 10, 11, 12]])
    gold = torch.tensor([[4.0, 1, 30, 22], [5, 5, 60, 20], [9, 8, 14, 16]])
    codes = head.coder.encode_single(gold, boxes)
    torch.testing.assert_close(head.decode(codes, boxes, (64, 64)), gold, atol=1e-4, rtol=0)
    proposals = tiny_detector().proposals
    anchors = torch.tensor([[0.0, 0, 16, 16], [8, 8, 24, 24]])
    distances = proposals.coder.encode(anchors, gold[:2])
    torch.testing.assert_close(proposals.coder.decode(distances, anchors), gold[:2])


@needs_torchvision
def test_anchors_lie_around_the_middle_of_their_locations():
    proposals = tiny_detector().proposals
    maps = [torch.zeros(1, 16, size, size) for size in (32, 16, 8)]
    anchors = proposals.anchors(maps)
    assert len(anchors) == 32**2 + 16**2 + 8**2
    centers, sides = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
    torch.testing.assert_close(centers[1], torch.tensor([3.0, 1.0]))  # second column of the first row at stride 2
    assert sides[0].tolist() == [16, 16]
    assert sides[-1].tolist() == [64, 64]


@needs_torchvision
def test_the_proposal_losses_are_zero_at_their_targets():
    proposals = tiny_detector(rpn_samples=400).proposals
    anchors = proposals.anchors([torch.zeros(1, 16, size, size) for size in (32, 16, 8)])
    gold = torch.tensor([[8.0, 8, 40, 40]])
    targets = [Targets(gold, torch.tensor([0]))]
    boxes = gold.expand(1, len(anchors), 4)
    left, top, right, bottom = proposals.coder.encode(anchors, gold.expand_as(anchors)).unbind(-1)
    shares = torch.minimum(left, right) / torch.maximum(left, right) * torch.minimum(top, bottom)
    centerness = (shares / torch.maximum(top, bottom)).clamp(1e-4, 1 - 1e-4).sqrt()
    at_target, box = proposals.losses(anchors, centerness.logit()[None], boxes, targets)
    worse, _ = proposals.losses(anchors, centerness.logit()[None] + 1, boxes, targets)
    assert at_target < worse
    assert box < 1e-6
    # No object and no background: nothing to learn, and still a loss that can be differentiated
    logits = torch.zeros(1, len(anchors), requires_grad=True)
    none = proposals.losses(anchors, logits, boxes, [Targets(gold[:0], torch.tensor([], dtype=torch.long))])
    sum(none).backward()
    assert all(loss == 0 for loss in none)


@needs_torchvision
def test_suppression_keeps_the_best_box_of_every_class():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [30, 30, 40, 40]])
    scores = torch.tensor([[0.9, 0.2], [0.8, 0.7], [0.3, 0.1]])
    kept = suppress(boxes, scores, 0.5, 100)
    torch.testing.assert_close(kept, torch.tensor([[0.9, 0.0], [0.0, 0.7], [0.3, 0.1]]))
    assert (suppress(boxes, scores, 0.5, 2) > 0).sum() == 1  # of the two best pairs
    # An IoU of 0.395 stays below the threshold whatever the number of the class
    near = torch.tensor([[1000.0, 1000, 1006, 1006], [1002.6, 1000, 1008.6, 1006]])
    for label in (0, 19_999):
        scores = torch.zeros(2, 20_000)
        scores[:, label] = torch.tensor([0.9, 0.8])
        assert (suppress(near, scores, 0.4, 2) > 0).sum() == 2


@needs_torchvision
def test_windows_see_nothing_of_one_another():
    model = tiny_detector(num_global_layers=1)
    one = pixels(1)
    other = one.clone()
    other[..., 32:] += 1  # the right half
    tower = model.model.vision_model
    first, second = (model._feature_map(tower, image) for image in (one, other))
    assert not torch.allclose(first[..., :4], second[..., :4])  # the last block sees everything
    tower.layers[-1].forward = lambda states, **kwargs: states
    first, second = (model._feature_map(tower, image) for image in (one, other))
    torch.testing.assert_close(first[..., :4], second[..., :4])
    whole = tiny_detector(window_size=None)
    tower = whole.model.vision_model
    states = tower(one, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states[-1]
    found = whole._feature_map(tower, one).flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, states[:, int(whole.config.vision_config.use_cls_token) :])


# Model


@needs_torchvision
def test_scores_are_fused_probabilities_times_objectness():
    model = tiny_detector()
    outputs = model(pixel_values=pixels(), class_embeds=classes(5))
    assert outputs.logits.shape == (2, 12, 5)
    assert outputs.pred_boxes.shape == (2, 12, 4)
    torch.testing.assert_close(outputs.class_probabilities.sum(-1), torch.ones(2, 12))
    scores = outputs.logits.sigmoid()
    wanted = outputs.objectness[..., None] ** 3 * outputs.class_probabilities[..., 1:]
    kept = scores > 0
    assert kept.any()
    torch.testing.assert_close(scores[kept], wanted[kept])
    best = scores.max(-1).values
    assert (best.diff() <= 0).all()  # the best box first


@needs_torchvision
def test_a_kept_tower_goes_on_scoring_as_before(tmp_path):
    model = tiny_detector(keep_image_text_tower=True)
    model.copy_image_text_tower()
    before = model.get_regions(pixels())
    with torch.no_grad():
        for parameter in model.model.vision_model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    box = [before.boxes[0]]
    kept = model._image_text_embeds(
        model.image_text_tower, model._feature_map(model.image_text_tower, pixels()[:1]), box
    )
    torch.testing.assert_close(kept, before.image_text_embeds[0])
    assert not torch.allclose(model.get_regions(pixels()).embeds, before.embeds)
    changed = pixels()[:1]
    changed[..., 32:, :] += 1  # another window
    maps = [model._feature_map(model.image_text_tower, image) for image in (pixels()[:1], changed)]
    torch.testing.assert_close(maps[0][..., :8, :], maps[1][..., :8, :])
    assert not any(parameter.requires_grad for parameter in model.image_text_tower.parameters())
    model.save_pretrained(tmp_path)
    again = MammutForObjectDetection.from_pretrained(tmp_path)
    torch.testing.assert_close(
        again.get_regions(pixels()).image_text_embeds, model.get_regions(pixels()).image_text_embeds
    )
    with pytest.raises(ValueError, match="keep_image_text_tower"):
        tiny_detector().copy_image_text_tower()


@needs_torchvision
def test_half_precision_finds_the_same():
    model = tiny_detector()
    with torch.no_grad():
        wanted = model(pixel_values=pixels(), class_embeds=classes(4))
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(pixel_values=pixels(), class_embeds=classes(4))
        half = model.to(torch.bfloat16)(pixel_values=pixels().bfloat16(), class_embeds=classes(4))
    for found in (mixed, half):
        assert found.logits.dtype == torch.float32
        difference = found.logits.sigmoid().max() - wanted.logits.sigmoid().max()
        assert abs(difference) < 0.02


@needs_torchvision
def test_classes_do_not_change_one_another():
    model = tiny_detector(nms_threshold=1.0, max_detections=24)
    regions, embeds = model.get_regions(pixels()), classes(6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])

    def by_region(outputs):
        """Scores in an order of the boxes that does not depend on the classes."""
        place = outputs.pred_boxes.sum(-1).argsort(dim=1)[..., None]
        return outputs.logits.sigmoid().take_along_dim(place, dim=1)

    plain = by_region(model.classify(regions, embeds))
    shuffled = by_region(model.classify(regions, embeds[order]))
    torch.testing.assert_close(shuffled, plain[..., order])
    # Fewer classes share the same mass, in the same order within a region
    fewer = by_region(model.classify(regions, embeds[:3]))
    assert torch.equal(fewer.argsort(-1), plain[..., :3].argsort(-1))


@needs_torchvision
def test_regions_serve_other_classes_and_classes_per_image():
    processor = tiny_processor()
    model = tiny_detector(processor)
    together = processor(text=[NAMES[:2], NAMES[2:4]], return_tensors="pt")
    first = model(pixel_values=pixels(), **together)
    again = model(regions=first.regions, **together)
    torch.testing.assert_close(again.logits, first.logits)
    for index, names in enumerate((NAMES[:2], NAMES[2:4])):
        alone = model(pixel_values=pixels()[index : index + 1], **processor(text=[names], return_tensors="pt"))
        torch.testing.assert_close(alone.logits[0], first.logits[index], atol=1e-4, rtol=1e-4)


@needs_torchvision
def test_duplicate_classes_have_equal_scores_and_thousands_are_possible():
    processor = tiny_processor()
    model = tiny_detector(processor)
    names = ["bus", "tiger", "bus"]
    outputs = model(pixel_values=pixels(1), **processor(text=[names], return_tensors="pt"))
    torch.testing.assert_close(outputs.class_probabilities[..., 1], outputs.class_probabilities[..., 3])
    many = model(pixel_values=pixels(1), class_embeds=classes(3000))
    assert many.logits.shape == (1, 12, 3000)
    torch.testing.assert_close(many.class_probabilities.sum(-1), torch.ones(1, 12))


@needs_torchvision
def test_templates_are_averaged_and_embeddings_cached(monkeypatch):
    templates = ["{}", "a photo of a {}"]
    processor = tiny_processor(class_templates=templates)
    model = tiny_detector(processor)
    found = model.get_class_embeds(**processor(text=[NAMES], return_tensors="pt"))
    single = [
        model.get_class_embeds(**tiny_processor(class_templates=[each])(text=[NAMES], return_tensors="pt"))
        for each in templates
    ]
    wanted = torch.nn.functional.normalize(sum(single) / 2, dim=-1)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    # In chunks or at once, the same
    chunked = model.get_class_embeds(**processor(text=[NAMES], return_tensors="pt"), chunk_size=3)
    torch.testing.assert_close(chunked, found, atol=1e-5, rtol=0)

    detector = Detector(model, processor)
    first = detector.class_embeds(NAMES)
    monkeypatch.setattr(model, "get_class_embeds", lambda **inputs: pytest.fail("encoded again"))
    torch.testing.assert_close(detector.class_embeds(NAMES[::-1]), first.flip(0))


@needs_torchvision
def test_base_classes_get_the_base_exponent():
    processor = tiny_processor(base_classes=NAMES[:2])
    model = tiny_detector(processor)
    inputs = processor(text=[NAMES], return_tensors="pt")
    assert inputs["is_base"].tolist() == [[True, True, False, False, False]]
    regions, embeds = (
        model.get_regions(pixels(1)),
        model.get_class_embeds(inputs["input_ids"], inputs["attention_mask"]),
    )
    known = model(regions=regions, class_embeds=embeds, is_base=inputs["is_base"])
    unknown = model(regions=regions, class_embeds=embeds)
    assert not torch.allclose(known.class_probabilities, unknown.class_probabilities)
    torch.testing.assert_close(Detector(model, processor).is_base(NAMES)[None], inputs["is_base"])


def labels_of(*boxes: tuple[float, ...], number: int = 0) -> dict[str, torch.Tensor]:
    return {
        "class_labels": torch.full((len(boxes),), number, dtype=torch.long),
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
    }


@needs_torchvision
@pytest.mark.parametrize(
    "boxes",
    [
        [],
        [(0.5, 0.5, 0.001, 0.001)],  # less than a pixel
        [(0.5, 0.5, 0.03, 0.03)],  # two pixels
        [(1.2, 1.2, 0.6, 0.6)],  # hangs over the edge
        [(2.0, 2.0, 0.1, 0.1)],  # outside
        [(0.5, 0.5, 1.0, 1.0), (0.5, 0.5, 1.0, 1.0)],  # the same twice
    ],
)
def test_odd_boxes_are_learned_from_or_left_out(boxes):
    model = tiny_detector().train()
    loss = model(pixel_values=pixels(), class_embeds=classes(3), labels=[labels_of(*boxes), labels_of()])
    assert loss.loss.isfinite()
    assert set(loss.loss_dict) == {"rpn_centerness", "rpn_box", "classification", "box"}
    loss.loss.backward()
    # Every process of DDP must have every gradient, whatever its images show
    heads = {name: p.grad for name, p in model.named_parameters() if not name.startswith("model.")}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in heads.values())


@needs_torchvision
def test_a_detector_learns_one_image_by_heart():
    torch.manual_seed(0)
    model = tiny_detector(num_proposals=50, channels=32).train()
    picture = torch.zeros(1, 3, 64, 64)
    picture[..., 8:32, 8:40] = 2.0
    picture[:, 0, 40:60, 30:60] = -2.0
    objects = [labels_of((24 / 64, 20 / 64, 32 / 64, 24 / 64), (45 / 64, 50 / 64, 30 / 64, 20 / 64))]
    objects[0]["class_labels"][1] = 1
    embeds = classes(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(120):
        optimizer.zero_grad()
        model(pixel_values=picture, class_embeds=embeds, labels=objects).loss.backward()
        optimizer.step()
    model.eval()
    model.config.detection_config.base_exponent = model.config.detection_config.novel_exponent = 0.0
    with torch.no_grad():
        outputs = model(pixel_values=picture, class_embeds=embeds)
    found = tiny_processor().post_process_grounded_object_detection(outputs, 0.0, [(64, 64)], [NAMES[:3]], top_k=2)[0]
    assert sorted(found["labels"].tolist()) == [0, 1]
    wanted = torch.tensor([[8.0, 8, 40, 32], [30, 40, 60, 60]])[found["labels"]]
    overlap = detection.box_iou(found["boxes"], wanted).diagonal()
    assert overlap.min() > 0.7, (found["boxes"], wanted)


@needs_torchvision
def test_a_mask_head_gives_and_needs_masks():
    model = tiny_detector(use_mask_head=True, mask_pool_size=4, mask_conv_layers=1).train()
    label = labels_of((0.5, 0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match=r"labels\[0\].*masks"):
        model(pixel_values=pixels(1), class_embeds=classes(2), labels=[label])
    with pytest.raises(ValueError, match=r"labels\[0\].*shape \(1, 64, 64\), got \(1, 20, 30\)"):
        model(pixel_values=pixels(1), class_embeds=classes(2), labels=[{**label, "masks": torch.zeros(1, 20, 30)}])
    label["masks"] = torch.zeros(1, 64, 64, dtype=torch.uint8)
    label["masks"][:, 16:48, 16:48] = 1
    losses = model(pixel_values=pixels(), class_embeds=classes(2), labels=[label, labels_of()]).loss_dict
    assert losses["mask"].isfinite()
    losses["mask"].backward()
    outputs = model.eval()(pixel_values=pixels(1), class_embeds=classes(2))
    assert outputs.pred_masks.shape == (1, 12, 8, 8)
    found = tiny_processor().post_process_grounded_object_detection(outputs, threshold=0.0)[0]
    assert found["masks"].shape == (len(found["scores"]), 8, 8)


@needs_torchvision
def test_bad_inputs_are_named():
    processor = tiny_processor()
    model = tiny_detector(processor)
    embeds = classes(3)
    for inputs, message in (
        ({"class_embeds": embeds}, "exactly one of `pixel_values` and `regions`"),
        ({"pixel_values": pixels()}, "exactly one of `input_ids`"),
        ({"pixel_values": pixels(), "class_embeds": embeds[:0]}, "class_embeds.*at least one class"),
        ({"pixel_values": pixels(), "class_embeds": embeds[:, :5]}, "class_embeds"),
        ({"pixel_values": pixels(), "input_ids": torch.ones(3, 4, dtype=torch.long)}, "equally many classes"),
        ({"pixel_values": pixels(), "input_ids": torch.ones(0, 4, dtype=torch.long)}, "at least one"),
        ({"pixel_values": torch.zeros(1, 3, 72, 72), "class_embeds": embeds}, "multiple of 16 pixels"),
        (
            {"pixel_values": pixels(), "class_embeds": embeds, "is_base": torch.ones(2).bool()},
            r"is_base.*\(3,\) or \(2, 3\)",
        ),
        (
            {"pixel_values": pixels(), "class_embeds": embeds, "class_mask": torch.ones(3).bool()},
            r"class_mask.*\(2, 3\)",
        ),
        ({"pixel_values": pixels(), "class_embeds": embeds, "labels": [labels_of()]}, "every image, got 1 for 2"),
        (
            {"pixel_values": pixels(1), "class_embeds": embeds, "labels": [labels_of((0.5, 0.5, 0.5, 0.5), number=3)]},
            "class_labels from 3 to 3; there are 3 classes",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            model(**inputs)
    with pytest.raises(ValueError, match=r"multiple of 16 pixels.*got 72"):
        tiny_detector(image_size=72)
    picture = Image.new("RGB", (20, 10))
    for arguments, message in (
        ({"text": [[]]}, r"text\[0\].*at least one class"),
        ({"text": [["bus", " "]]}, r"text\[0\]\[1\]` is ' '"),
        ({"text": [["bus"]], "images": [picture, picture]}, "1 lists for 2 images"),
        ({"images": picture, "annotations": [{"annotations": []}] * 2}, "got 2 for 1 images"),
        (
            {"images": picture, "annotations": {"annotations": [{"bbox": [1, 1, 0, 5], "category_id": 0}]}},
            r"annotations\[0\].*object 0.*positive size",
        ),
        ({"annotations": {"annotations": []}}, "`annotations` need `images`"),
        (
            {
                "images": picture,
                "annotations": {"annotations": []},
                "do_pad": False,
                "size": {"height": 8, "width": 8},
            },
            "`annotations` need .* as it was saved; got Owlv2ImageProcessor.* and options .'do_pad', 'size'.",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            processor(**arguments, return_tensors="pt")
    with pytest.raises(ValueError, match="class_templates"):
        tiny_processor(class_templates=["a photo"])
    outputs = model(pixel_values=pixels(1), class_embeds=embeds)
    with pytest.raises(ValueError, match=r"target_sizes.*got 2 for 1"):
        processor.post_process_grounded_object_detection(outputs, target_sizes=[(1, 1)] * 2)
    with pytest.raises(ValueError, match="at least one name"):
        Detector(model, processor).class_embeds([])


# Processor


@needs_torchvision
def test_boxes_pass_through_the_processor_and_back():
    processor = tiny_processor()
    wide, high = Image.new("RGB", (200, 100)), Image.new("RGB", (50, 120))
    boxes = [[20.0, 10.0, 60.0, 40.0], [0.0, 0.0, 50.0, 120.0]]
    inputs = processor(
        images=[wide, high],
        annotations=[
            {
                "annotations": [
                    {"bbox": boxes[0], "category_id": 1},
                    {"bbox": boxes[0], "category_id": 0, "iscrowd": 1},
                ]
            },
            {"annotations": [{"bbox": boxes[1], "category_id": 0}]},
        ],
        return_tensors="pt",
    )
    assert inputs["pixel_values"].shape == (2, 3, 64, 64)
    assert [label["class_labels"].tolist() for label in inputs["labels"]] == [[1], [0]]  # no crowds
    shares = torch.stack([label["boxes"][0] for label in inputs["labels"]])
    torch.testing.assert_close(shares[0], torch.tensor([50 / 200, 30 / 200, 60 / 200, 40 / 200]))

    class Outputs:
        logits = torch.tensor([[[2.0, -1.0]], [[-math.inf, 3.0]]])
        pred_boxes = shares[:, None]
        pred_masks = None

    sizes = [(100, 200), (120, 50)]
    found = processor.post_process_grounded_object_detection(Outputs, 0.1, sizes, [["bus", "key"]] * 2)
    assert found[0]["text_labels"] == ["bus", "key"]  # one box, two classes above the threshold
    assert found[1]["text_labels"] == ["key"]
    torch.testing.assert_close(found[0]["boxes"][0], torch.tensor([20.0, 10, 80, 50]), atol=1e-3, rtol=0)
    torch.testing.assert_close(found[1]["boxes"][0], torch.tensor([0.0, 0, 50, 120]), atol=1e-3, rtol=0)
    theirs = processor.image_processor.post_process_object_detection(Outputs, 0.1, torch.tensor(sizes))
    torch.testing.assert_close(theirs[0]["boxes"][0], found[0]["boxes"][0], atol=1e-3, rtol=0)


@needs_torchvision
def test_images_may_have_different_numbers_of_classes():
    processor = tiny_processor()
    model = tiny_detector(processor)
    text = [NAMES[:3], NAMES[3:4]]
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    inputs = processor(images=pictures, text=text, return_tensors="pt")
    assert inputs["class_mask"].tolist() == [[True] * 3, [True, False, False]]
    found = processor.post_process_grounded_object_detection(model(**inputs), threshold=0.0, text_labels=text)
    assert set(found[1]["text_labels"]) == {"key"}
    inputs = processor(images=pictures[1:], text=text[1:], return_tensors="pt")
    alone = processor.post_process_grounded_object_detection(model(**inputs), threshold=0.0, text_labels=text[1:])
    torch.testing.assert_close(found[1]["scores"], alone[0]["scores"])
    long = [[" ".join(NAMES * 9)]]
    with pytest.raises(ValueError, match=r"text\[0\]. has .* tokens.*truncation=True"):
        processor(text=long)
    assert processor(text=long, truncation=True, return_tensors="pt")["input_ids"].shape == (1, 40)


# Repositories


def save_detector(folder: Path, **kwargs) -> tuple[MammutForObjectDetection, MammutProcessor]:
    processor = tiny_processor(**kwargs)
    model = tiny_detector(processor)
    card = {
        "name": "tiny",
        "repo": "tiny",
        "license": "cc0-1.0",
        "summary": "A tiny detector.",
        "is_detector": True,
        "training": {},
        "evaluation_data": "nothing",
        "metrics": {},
        "metrics_note": "",
        "data_statement": "",
        "limits": "",
        "sources": "",
    }
    save_repository(folder, model, processor, card)
    return model, processor


PIPELINE = """
from PIL import Image
from transformers import AutoModelForZeroShotObjectDetection, pipeline

picture = Image.new("RGB", (80, 60), "red")
detect = pipeline("zero-shot-object-detection", model=repo, trust_remote_code=True)
rows = detect(picture, candidate_labels=["bus", "key"], threshold=0.0)
found["labels"], found["scores"] = [row["label"] for row in rows], [row["score"] for row in rows]
model = AutoModelForZeroShotObjectDetection.from_pretrained(repo, trust_remote_code=True)
outputs = model(**processor(images=picture, text=[["bus", "key"]], return_tensors="pt"))
results = processor.post_process_grounded_object_detection(outputs, 0.0, [(60, 80)], [["bus", "key"]])[0]
found["boxes"], found["names"] = results["boxes"].detach(), results["text_labels"]
"""


@needs_torchvision
def test_the_pipeline_of_transformers_works_also_without_triptych(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    model, processor = save_detector(tmp_path / "repo")
    picture = Image.new("RGB", (80, 60), "red")
    detect = pipeline("zero-shot-object-detection", model=str(tmp_path / "repo"))
    rows = detect(picture, candidate_labels=["bus", "key"], threshold=0.0)
    assert {row["label"] for row in rows} == {"bus", "key"}
    assert all(0 <= row["box"]["xmin"] <= row["box"]["xmax"] <= 80 for row in rows)
    found = ask_a_stranger(PIPELINE, tmp_path / "repo", {}, tmp_path)
    assert found["labels"] == [row["label"] for row in rows]
    assert found["scores"] == pytest.approx([row["score"] for row in rows], abs=1e-5)
    inputs = processor(images=picture, text=[["bus", "key"]], return_tensors="pt")
    results = processor.post_process_grounded_object_detection(model(**inputs), 0.0, [(60, 80)], [["bus", "key"]])[0]
    torch.testing.assert_close(found["boxes"], results["boxes"], atol=1e-3, rtol=0)
    assert found["names"] == results["text_labels"]


@needs_torchvision
@pytest.mark.parametrize("masks", [False, True])
def test_a_batch_in_the_pipeline_finds_what_single_images_show(tmp_path, masks):
    processor = tiny_processor()
    tiny_detector(processor, use_mask_head=masks).save_pretrained(tmp_path / "repo")
    processor.save_pretrained(tmp_path / "repo")
    detect = pipeline("zero-shot-object-detection", model=str(tmp_path / "repo"))
    colours = ("red", "green", "blue", "white", "black")
    rows = [{"image": Image.new("RGB", (80, 60), colour), "candidate_labels": ["bus", "key"]} for colour in colours]
    one, several = (detect(rows, threshold=0.0, batch_size=size) for size in (1, 4))
    for first, second in zip(one, several, strict=True):
        assert [row["label"] for row in first] == [row["label"] for row in second]
        assert [row["score"] for row in first] == pytest.approx([row["score"] for row in second], abs=1e-5)


def test_boxes_wholly_in_the_padding_are_not_returned():
    boxes = torch.tensor([[[0.5, 0.1, 0.2, 0.1], [0.5, 0.8, 0.2, 0.1], [0.5, 0.25, 0.2, 0.1]]])
    outputs = SimpleNamespace(logits=torch.tensor([[[2.0], [3.0], [1.0]]]), pred_boxes=boxes)
    (found,) = select_detections(outputs, 0.0, [(50, 200)], [["bus"]], 10)
    assert found["scores"].tolist() == pytest.approx([0.8808, 0.7311], abs=1e-4)
    assert found["boxes"].round().tolist() == [[80, 10, 120, 30], [80, 40, 120, 50]]
    assert found["text_labels"] == ["bus", "bus"]
    with pytest.raises(ValueError, match=r"`text_labels\[0\]` must be a list of the names of its classes, got 'bus'"):
        select_detections(outputs, 0.0, [(50, 200)], ["bus"], 10)


@needs_torchvision
def test_detectors_load_from_image_text_models_and_the_other_way_round(tmp_path):
    tiny_mammut().save_pretrained(tmp_path / "image-text")
    assert (
        "AutoModelForZeroShotObjectDetection"
        not in json.loads((tmp_path / "image-text" / "config.json").read_text())["auto_map"]
    )
    config = MammutConfig.from_pretrained(tmp_path / "image-text")
    config.detection_config = MammutDetectionConfig(**SMALL)
    model = MammutForObjectDetection.from_pretrained(tmp_path / "image-text", config=config)
    weight = tiny_mammut().model.vision_model.layers[0].mlp.fc1.weight
    assert all(p.isfinite().all() and p.abs().max() < 10 for p in model.parameters())
    torch.testing.assert_close(model.model.vision_model.layers[0].mlp.fc1.weight, weight)
    model.save_pretrained(tmp_path / "detector")
    again = AutoModelForZeroShotObjectDetection.from_pretrained(tmp_path / "detector")
    for (name, found), wanted in zip(again.state_dict().items(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(found, wanted, msg=name)
    encoder = AutoModel.from_pretrained(tmp_path / "detector")
    torch.testing.assert_close(encoder.vision_model.layers[0].mlp.fc1.weight, weight)


@needs_torchvision
def test_the_command_draws_what_it_finds(tmp_path):
    save_detector(tmp_path / "model", base_classes=["bus"])
    Image.new("RGB", (80, 60), "red").save(tmp_path / "picture.png")
    target = tmp_path / "found.png"
    arguments = ["detect", str(tmp_path / "picture.png"), "--model", str(tmp_path / "model"), "--threshold", "0"]
    result = CliRunner().invoke(app, [*arguments, "--classes", "bus, key,bus", "-o", str(target), "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.output[result.output.index("[") :])
    assert {row["label"] for row in rows} == {"bus", "key"}
    assert max(Image.open(target).size) == 640
    (tmp_path / "names.txt").write_text("bus\n\nkey\n")
    result = CliRunner().invoke(app, [*arguments, "--classes", str(tmp_path / "names.txt"), "-o", str(target)])
    assert result.exit_code == 0, result.output
    assert str(target) in result.output
    result = CliRunner().invoke(app, [*arguments, "--classes", "bus," * 2000, "-o", str(target)])
    assert result.exit_code == 0, result.output
    for bad, message in (
        ([" , "], "names nothing"),
        (["bus", "-o", str(tmp_path / "no" / "a.png")], "no folder"),
        (["bus", "-o", str(tmp_path / "found")], "end in .png"),
        ([str(tmp_path / "nmaes.txt")], "no such file"),
        ([str(tmp_path / "picture.png")], "not text"),
    ):
        result = CliRunner().invoke(app, [*arguments, "--classes", *bad])
        assert result.exit_code == 2
        assert message in result.output
    tiny_mammut().save_pretrained(tmp_path / "image-text")
    arguments[3] = str(tmp_path / "image-text")
    result = CliRunner().invoke(app, [*arguments, "--classes", "bus"])
    assert result.exit_code == 2
    assert "no detector" in result.output


@needs_torchvision
def test_boxes_of_a_picture_that_lies_on_its_side_are_upright():
    processor = tiny_processor()
    detector = Detector(tiny_detector(processor), processor)
    upright = Image.effect_noise((30, 60), 80).convert("RGB")
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    lying.getexif()[0x0112] = 6
    found, expected = (detector([picture], ["bus"], 0.0)[0] for picture in (lying, upright))
    torch.testing.assert_close(found["boxes"], expected["boxes"])
    assert found["boxes"][:, 3].max() > 30
    assert draw_detections(lying, found).size == draw_detections(upright, expected).size


def test_drawings_show_boxes_where_they_are():
    picture = Image.new("RGB", (100, 100), "white")
    found = {
        "boxes": torch.tensor([[20.0, 30, 60, 80]]),
        "scores": torch.tensor([0.9]),
        "text_labels": ["bus"],
    }
    drawn = np.asarray(draw_detections(picture, found, least_side=200)).astype(int)
    changed = np.argwhere(drawn.sum(-1) < 700)
    assert drawn.shape == (200, 200, 3)
    assert abs(changed[:, 0].max() - 160) <= 2
    assert abs(changed[:, 1].min() - 40) <= 2
    assert abs(changed[:, 1].max() - 120) <= 3


@needs_torchvision
def test_states_of_the_vit_come_out_when_asked_for_and_scalars_stay_in_fp32():
    model = tiny_detector().to(torch.float32)
    inputs = {"pixel_values": pixels(), "class_embeds": classes(3)}
    assert model(**inputs).hidden_states is None
    states = model(**inputs, output_hidden_states=True).hidden_states
    assert len(states) == 1 + model.config.vision_config.num_hidden_layers
    assert all(torch.isfinite(model(**inputs).logits).flatten())
    half = MammutForObjectDetection._from_config(model.config, dtype=torch.bfloat16)
    kept = {name for name, p in half.named_parameters() if p.dtype == torch.float32}
    assert kept == {"model.logit_scale", "box_head.log_temperature"}
