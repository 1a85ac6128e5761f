"""Hostile input: whatever comes in ends in the right shapes, or in one ValueError that names an argument."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from safetensors.torch import load_file, save
from transformers import AutoModelForImageTextToText
from typer.testing import CliRunner

from tests.conftest import mammut_pair, save_pair, tiny_mammut_processor, tiny_processor, tiny_vw_lmm_processor
from triptych import pipeline
from triptych.cli import app
from triptych.convert.conversion import convert
from triptych.data.conversations import ConversationCollator
from triptych.data.pairs import PairCollator
from triptych.data.questions import QuestionCollator
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


@pytest.mark.parametrize("name", list(PROCESSORS))
@pytest.mark.parametrize("kind", ["images", "text", "videos", "questions"])
def test_options_that_nobody_reads_are_refused_at_every_entrance(name, kind):
    picture = Image.new("RGB", (16, 16))
    given = {"images": picture, "text": "red", "videos": [[picture, picture]], "questions": "red"}
    with pytest.raises(
        ValueError, match=f"`colour` is no option of {type(PROCESSORS[name]).__name__}|`{kind}` is no option"
    ):
        PROCESSORS[name](**{kind: given[kind], **({"text": "<image>"} if name == "vw_lmm" else {})}, colour="red")


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


# Collators and pipelines

IMAGE, TEXT = st.one_of(PICTURES, ARRAYS, JUNK), st.one_of(st.text(max_size=8), JUNK)
COLLATORS = {
    "pairs": PairCollator(PROCESSORS["grr_coca"]),
    "questions": QuestionCollator(PROCESSORS["mammut"]),
    "questions to chat": QuestionCollator(PROCESSORS["vw_lmm"]),
    "conversations": ConversationCollator(PROCESSORS["vw_lmm"]),
}


@pytest.mark.parametrize("name", COLLATORS)
@settings(hostile, max_examples=200)
@given(values=st.lists(st.tuples(IMAGE, TEXT, TEXT), min_size=1, max_size=3))
def test_any_rows_become_a_batch_or_are_named(name, values):
    rows = []
    for image, text, answer in values:
        row = {"image": image, "caption": text, "question": text, "answer": answer, "num_skipped": 0}
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        rows.append({**row, "images": [image], "messages": turns})
    batch = ends_well(lambda: COLLATORS[name](rows))
    if batch is not None:
        assert batch["labels"].shape == batch["input_ids"].shape


@settings(hostile, max_examples=80)
@given(image=IMAGE, question=TEXT)
def test_any_request_of_a_pipeline_is_answered_or_named(image, question):
    model, processor = mammut_pair()
    options = {"model": model, "processor": processor, "max_new_tokens": 2}
    for task, asked in (("image-to-text", {}), ("visual-question-answering", {"question": question})):
        if task == "image-to-text" or question is not None:
            ends_well(lambda task=task, asked=asked: {"rows": list(pipeline(task, **options)(image, **asked))})


# Converters

FIXTURES = Path(__file__).parent / "fixtures"
LAYOUT_OF = {"coca_open_clip": "open-clip-coca", "mammut_laion_mlp": "open-mammut", "vw_llama": "vw-lmm"}
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 600), st.floats(), st.text(max_size=8), st.just(10**12)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=2)),
    max_leaves=4,
)


def places_of(content: dict, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every value of a configuration."""
    inner = [
        place for key, value in content.items() if isinstance(value, dict) for place in places_of(value, (*path, key))
    ]
    return [*((*path, key) for key in content), *inner]


def converts_or_leaves_nothing(name: str, config: str, weights: bytes, folder: Path) -> None:
    """A complete repository, or one ValueError and nothing written."""
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text(config)
    try:
        convert(LAYOUT_OF[name], str(folder), folder / "out", with_processor=False)
    except ValueError:
        assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json"}
    else:
        AutoModelForImageTextToText.from_pretrained(folder / "out")


@pytest.mark.parametrize("name", LAYOUT_OF)
@settings(hostile, max_examples=30)
@given(data=st.data())
def test_any_foreign_configuration_is_translated_or_refused(name, tmp_path_factory, data):
    config = json.loads((FIXTURES / name / "config.json").read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        *path, last = data.draw(st.sampled_from(places_of(config)))
        parent = config
        for key in path:
            parent = parent[key]
        if data.draw(st.booleans()):
            parent[last] = data.draw(JSON)
        else:
            del parent[last]
        if not config:
            break
    weights = (FIXTURES / name / "original_state_dict.safetensors").read_bytes()
    converts_or_leaves_nothing(name, json.dumps(config), weights, tmp_path_factory.mktemp("convert") / "source")


@pytest.mark.parametrize("name", LAYOUT_OF)
@settings(hostile, max_examples=25)
@given(data=st.data())
def test_any_foreign_weights_are_converted_or_refused(name, tmp_path_factory, data):
    weights = load_file(FIXTURES / name / "original_state_dict.safetensors")
    key = data.draw(st.sampled_from(sorted(weights)))
    form = data.draw(st.sampled_from(["missing", "reshaped", "another type", "renamed", "cut off", "noise"]))
    tensor = weights.pop(key)
    if form == "reshaped":
        weights[key] = torch.zeros(data.draw(st.lists(st.integers(0, 4), max_size=3)))
    elif form == "another type":
        weights[key] = tensor.to(data.draw(st.sampled_from([torch.float64, torch.bfloat16, torch.int64, torch.bool])))
    elif form == "renamed":
        weights[data.draw(st.text(max_size=6))] = tensor
    content = save(weights)
    if form == "cut off":
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    elif form == "noise":
        content = data.draw(st.binary(max_size=200))
    config = (FIXTURES / name / "config.json").read_text()
    converts_or_leaves_nothing(name, config, content, tmp_path_factory.mktemp("convert") / "source")


# The command line

FILES = st.dictionaries(
    st.from_regex(r"[._a-zäß $-]{0,5}\.(png|jpg|gif|tif|webp|avif|txt|json|)", fullmatch=True).filter(lambda name: name not in (".", "..")),
    st.one_of(st.binary(max_size=60), PICTURES.filter(lambda picture: picture.mode == "RGB" and 0 not in picture.size)),
    max_size=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_pair("grr_coca", folder)
    return folder


@settings(hostile, max_examples=40)
@given(files=FILES, query=st.text(max_size=6), command=st.sampled_from(["caption", "retrieve"]))
def test_any_folder_is_read_or_one_line_says_why_not(checkpoint, tmp_path_factory, files, query, command):
    folder = tmp_path_factory.mktemp("folder")
    for name, content in files.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            content.save(folder / name, "PNG")
    readable = [name for name, content in files.items() if not isinstance(content, bytes) and name[0] != "."]
    arguments = [command, *(["--", query] if command == "retrieve" else []), str(folder)]
    outcome = CliRunner().invoke(app, [command, "--model", str(checkpoint), "--json", *arguments[1:]])
    if outcome.exit_code == 0:
        found = {Path(row["image"]).name for row in json.loads(outcome.stdout)}
        assert found <= set(readable)
    else:
        assert outcome.exit_code == 2
        assert isinstance(outcome.exception, SystemExit)
        assert outcome.stderr.count("error:") == 1
