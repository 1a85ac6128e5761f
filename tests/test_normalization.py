"""Pictures stay 8-bit up to the device, and arrive as the processor would have made them."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, LlavaImageProcessor, Owlv2ImageProcessor

from triptych.data.pairs import PairCollator
from triptych.data.pictures import input_side
from triptych.data.questions import QuestionCollator
from triptych.processing.processing_grr_coca import GrrCocaProcessor
from triptych.processing.processing_mammut import MammutProcessor
from triptych.training.normalization import DeferredNormalization
from triptych.training.tokenizer import train_tokenizer


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pairs() -> list[dict]:
    return [
        {"image": picture(30 + index, 50 - index, index), "caption": "a dog", "num_skipped": 0} for index in range(3)
    ]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a dog", "question: what? answer:"], 64, 48)


SIZE = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}


@pytest.mark.parametrize(
    "image_processor",
    [
        CLIPImageProcessor(**SIZE),
        CLIPImageProcessor(**SIZE, image_mean=[0.5] * 3, image_std=[0.25] * 3, rescale_factor=1 / 127.5),
        LlavaImageProcessor(**SIZE, do_pad=True),
    ],
    ids=["clip", "other statistics", "padded to squares"],
)
def test_the_device_gets_bytes_and_makes_the_same_inputs(image_processor, tokenizer):
    processor = GrrCocaProcessor(image_processor, tokenizer)
    collator = DeferredNormalization(PairCollator(processor))
    batch, expected = collator(pairs()), PairCollator(processor)(pairs())
    assert batch["pixel_values"].dtype == torch.uint8
    found = collator.on_device(batch)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(found[name], values), name
    assert processor.image_processor.do_normalize
    assert processor.image_processor.do_rescale


def test_clips_are_pictures_too(tokenizer):
    processor = MammutProcessor(CLIPImageProcessor(**SIZE), tokenizer, num_frames=2)
    rows = [{"video": [picture(30, 40, 1), picture(30, 40, 2)], "question": "what?", "answer": "a dog"}]
    collator = DeferredNormalization(QuestionCollator(processor))
    batch, expected = collator(rows), QuestionCollator(processor)(rows)
    assert batch["pixel_values_videos"].dtype == torch.uint8
    assert torch.equal(collator.on_device(dict(batch))["pixel_values_videos"], expected["pixel_values_videos"])


@pytest.mark.parametrize(
    "image_processor",
    [
        CLIPImageProcessor(**SIZE, do_normalize=False),
        CLIPImageProcessor(**SIZE, do_normalize=False, do_rescale=False, image_mean=None, image_std=None),
        CLIPImageProcessor(**SIZE, do_pad=True, pad_size={"height": 32, "width": 32}),
        Owlv2ImageProcessor(size={"height": 32, "width": 32}),
    ],
    ids=["not normalised", "bytes for the model", "padded behind", "resized as floats"],
)
def test_what_cannot_be_deferred_stays(image_processor, tokenizer):
    processor = GrrCocaProcessor(image_processor, tokenizer)
    collator = DeferredNormalization(PairCollator(processor))
    batch, expected = collator(pairs()), PairCollator(processor)(pairs())
    assert torch.equal(collator.on_device(batch)["pixel_values"], expected["pixel_values"])


def test_the_side_of_an_input():
    for options, side in (
        ({}, 24),
        ({"crop_size": {"height": 20, "width": 20}}, 24),
        ({"size": {"height": 16, "width": 40}}, 40),
    ):
        image_processor = CLIPImageProcessor(**{**SIZE, **options})
        assert input_side(type("Processor", (), {"image_processor": image_processor})()) == side
    of_areas = type("Areas", (), {"size": {"min_pixels": 3136, "max_pixels": 100_000}})()
    assert input_side(type("Processor", (), {"image_processor": of_areas})()) is None
