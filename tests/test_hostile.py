"""Hostile input: whatever comes in ends in the right shapes, or in one ValueError that names an argument."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from tests.conftest import tiny_mammut_processor, tiny_processor, tiny_vw_lmm_processor
from triptych.data.rows import one_text, several_texts, text_or_texts
from triptych.processing.pictures import to_rgb


PROCESSORS = {"grr_coca": tiny_processor(), "mammut": tiny_mammut_processor(), "vw_lmm": tiny_vw_lmm_processor()}
MODES = ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "I;16", "RGBX")
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.binary(max_size=8), st.text(max_size=12), st.just(object()),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip
PICTURES = st.builds(
    lambda mode, width, height: Image.new(mode, (width, height)),
    st.sampled_from(MODES),
    st.integers(0, 40),
    st.integers(0, 40),
)
ARRAYS = arrays.arrays(
    st.sampled_from(["u1", "u2", "i4", "i8", "f2", "f4", "f8", "?"]),
    arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5),
)
TENSORS = ARRAYS.filter(lambda array: array.dtype != np.uint16).map(lambda array: torch.from_numpy(array.copy()))
IMAGES = st.recursive(
    st.one_of(PICTURES, ARRAYS, TENSORS, JUNK), lambda inner: st.lists(inner, max_size=3), max_leaves=4
)
TEXTS = st.recursive(st.one_of(st.text(max_size=8), JUNK), lambda inner: st.lists(inner, max_size=3), max_leaves=4)
hostile = settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def ends_well(call) -> dict | None:
    """The batch, all of whose pixels are numbers; or nothing, where an error names what is wrong."""
    try:
        batch = call()
    except ValueError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert "`" in message, f"names no argument: {message}"
        return None
    for name, value in batch.items():
        if torch.is_tensor(value) and value.is_floating_point():
            assert value.isfinite().all(), name
    return batch


@hostile
@given(image=st.one_of(PICTURES, ARRAYS, TENSORS, JUNK))
def test_any_picture_is_read_or_named(image):
    batch = ends_well(lambda: {"picture": to_rgb(image)})
    if batch is not None:
        assert batch["picture"].mode == "RGB"
        assert 0 not in batch["picture"].size


@pytest.mark.parametrize("name", ["grr_coca", "mammut"])
@hostile
@given(images=IMAGES)
def test_any_images_become_pixels_or_are_named(name, images):
    if images is None:
        return
    batch = ends_well(lambda: PROCESSORS[name](images=images, return_tensors="pt"))
    if batch is not None:
        assert batch["pixel_values"].ndim == 4


@pytest.mark.parametrize("name", list(PROCESSORS))
@hostile
@given(text=TEXTS)
def test_any_text_becomes_ids_or_is_named(name, text):
    if text is None and name != "vw_lmm":
        return
    batch = ends_well(lambda: PROCESSORS[name](text=text, padding=True, return_tensors="pt"))
    if batch is not None:
        assert batch["input_ids"].ndim >= 2


@hostile
@given(videos=IMAGES, num_frames=st.one_of(st.none(), st.integers(-2, 4)), fps=st.one_of(st.none(), st.floats(-1, 3)))
def test_any_clips_become_pixels_or_are_named(videos, num_frames, fps):
    if videos is None:
        return
    options = {"num_frames": num_frames, "fps": fps, "return_tensors": "pt"}
    batch = ends_well(lambda: PROCESSORS["mammut"](videos=videos, **options))
    if batch is not None:
        assert batch["pixel_values_videos"].ndim == 5


@hostile
@given(questions=TEXTS, answers=TEXTS)
def test_any_questions_become_ids_or_are_named(questions, answers):
    picture = Image.new("RGB", (16, 16))
    if questions is None:
        return
    call = {"images": [picture], "questions": questions, "answers": answers, "return_tensors": "pt"}
    ends_well(lambda: PROCESSORS["mammut"](**call))


@hostile
@given(value=TEXTS)
def test_any_row_is_read_or_refused(value):
    for read in (one_text, several_texts, text_or_texts):
        try:
            found = read(value)
        except ValueError:
            continue
        for text in [found] if isinstance(found, str) else found:
            assert text.strip()
