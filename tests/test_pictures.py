"""One picture, one set of pixels: awkward pictures through every entrance, against pixels written down by hand."""

import base64
import io
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor

from tests.conftest import PAIRS, tiny_mammut_processor, tiny_processor, tiny_vw_lmm_processor
from tests.test_hub import ask_a_stranger
from triptych import cli, pipeline
from triptych.data.conversations import ConversationDataset, QuestionConversations
from triptych.data.pairs import ImageCaptionDataset
from triptych.data.pictures import PictureRows, decode_image
from triptych.data.questions import QuestionDataset
from triptych.processing.pictures import to_rgb


WHITE, BLACK, RED, BLUE = [255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 0, 255]
SIZE = 16  # of every tiny image processor, which then resizes nothing


def halves(left, right, dtype=np.uint8) -> np.ndarray:
    """16 x 16, of the first value on the left and the second on the right."""
    return np.array([[left] * 8 + [right] * 8] * SIZE, dtype=dtype)


def save_transparent(path: Path) -> None:
    Image.fromarray(halves([255, 0, 0, 255], [0, 200, 0, 0])).save(path)  # green that nobody shall see


def save_half_transparent(path: Path) -> None:
    Image.fromarray(halves([0, 0, 255, 51], [0, 0, 0, 255])).save(path)


def save_palette(path: Path) -> None:
    image = Image.fromarray(halves(0, 1)).convert("P")
    image.putpalette([255, 0, 0, 0, 200, 0])
    image.save(path, transparency=1)


def save_transparent_colour(path: Path) -> None:
    Image.fromarray(halves(RED, [0, 200, 0])).save(path, transparency=(0, 200, 0))


def save_turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the first column is the top of the picture
    Image.fromarray(halves(RED, BLUE)).save(path, quality=100, subsampling=0, exif=exif)


def save_animation(path: Path) -> None:
    frames = [Image.fromarray(halves(*colours)) for colours in ((RED, BLUE), (WHITE, BLACK))]
    frames[0].save(path, save_all=True, append_images=frames[1:])


# What writes a file, and its pixels. JPEG loses up to two levels.
FILES = {
    "transparent.png": (save_transparent, halves(RED, WHITE)),
    "half_transparent.png": (save_half_transparent, halves([204, 204, 255], BLACK)),
    "transparent.webp": (lambda path: Image.fromarray(halves([255, 0, 0, 255], [0, 200, 0, 0])).save(path, lossless=True), halves(RED, WHITE)),
    "palette.png": (save_palette, halves(RED, WHITE)),
    "transparent_colour.png": (save_transparent_colour, halves(RED, WHITE)),
    "grey_alpha.png": (lambda path: Image.fromarray(halves([80, 255], [0, 0])).save(path), halves([80] * 3, WHITE)),
    "deep.png": (lambda path: Image.fromarray(halves(257 * 10, 257 * 200, np.uint16)).save(path), halves([10] * 3, [200] * 3)),
    "deep_transparent.png": (
        lambda path: Image.fromarray(halves(257 * 10, 0, np.uint16)).save(path, transparency=0),
        halves([10] * 3, WHITE),
    ),
    "deep.tiff": (lambda path: Image.fromarray(halves(257 * 10, 65535, ">u2")).save(path), halves([10] * 3, WHITE)),
    "long.tiff": (lambda path: Image.fromarray(halves(257 * 10, 65535, np.int32)).save(path), halves([10] * 3, WHITE)),
    "float.tiff": (lambda path: Image.fromarray(halves(0.2, 1, np.float32)).save(path), halves([51] * 3, WHITE)),
    "cmyk.jpg": (
        lambda path: Image.fromarray(halves([0, 255, 255, 0], [255, 255, 0, 0]), "CMYK").save(path, quality=100),
        halves(RED, BLUE),
    ),
    "turned.jpg": (save_turned, halves(RED, BLUE).transpose(1, 0, 2)),
    "moving.gif": (save_animation, halves(RED, BLUE)),
    "two_levels.png": (lambda path: Image.fromarray(halves(0, 255)).convert("1").save(path), halves(BLACK, WHITE)),
}  # fmt: skip

ARRAYS = {
    "rgb": halves(RED, BLUE),
    "grey": halves(80, 255),
    "one channel": halves([80], [255]),
    "rgba": halves([255, 0, 0, 255], [0, 0, 255, 255]),
    "deep": halves(257 * 80, 65535, np.uint16),
    "deep rgb": halves([65535, 0, 0], [0, 0, 65535], np.uint16),
    "bool": halves([True, False, False], [False, False, True], bool),
    "float": halves([1, 0, 0], [0, 0, 1], np.float32),
    "half": halves(80 / 255, 1, np.float16),
}
PROCESSORS = {
    "grr_coca": tiny_processor,
    "mammut": partial(tiny_mammut_processor, num_frames=None),
    "vw_lmm": tiny_vw_lmm_processor,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pictures")
    for name, (save, _) in FILES.items():
        save(path / name)
    return path


@pytest.fixture(scope="module", params=PROCESSORS)
def processor(request):
    return PROCESSORS[request.param]()


@pytest.fixture(scope="module", params=PAIRS)
def pair(request) -> tuple:
    return PAIRS[request.param]()


def levels(pixel_values, processor) -> np.ndarray:
    """RGB levels `(height, width, 3)` that an image processor made these values of."""
    assert pixel_values.shape == (1, 3, SIZE, SIZE)
    mean, std = (np.array(getattr(processor.image_processor, f"image_{name}")) for name in ("mean", "std"))
    return (pixel_values[0].permute(1, 2, 0).numpy() * std + mean) * 255


def pixels_of(processor, picture) -> np.ndarray:
    text = {"text": "<image>"} if hasattr(processor, "image_token") else {}
    return levels(processor(images=picture, **text, return_tensors="pt")["pixel_values"], processor)


def check(found, name: str) -> None:
    tolerance = 3 if name.endswith(".jpg") else 0.01
    np.testing.assert_allclose(np.asarray(found), FILES[name][1], atol=tolerance, err_msg=name)


@pytest.mark.parametrize("name", FILES)
def test_processors_see_what_people_see(processor, folder, name):
    with Image.open(folder / name) as opened:
        check(pixels_of(processor, opened), name)
        check(pixels_of(processor, [opened]), name)
    for path in (folder / name, str(folder / name), base64.b64encode((folder / name).read_bytes()).decode()):
        check(pixels_of(processor, path), name)


@pytest.mark.parametrize("name", FILES)
def test_data_sets_and_the_command_see_the_same(folder, name):
    path = folder / name
    check(decode_image({"path": str(path), "bytes": None}, 0), name)
    check(decode_image({"path": None, "bytes": path.read_bytes()}, 0), name)
    check(cli._open(path), name)
    with Image.open(path) as opened:
        messages = [{"role": "user", "content": "<image>"}]
        rows = [{"messages": messages, "image": name}, {"messages": messages, "image": opened}]
        for row in ConversationDataset(rows, str(folder)):
            check(row["images"][0], name)


def rows_with_a_large_jpeg(kind: str, file: bytes) -> PictureRows:
    image = {"bytes": file, "path": None}
    question = {"image": image, "image_id": "a", "question": "what?", "answers": ["red"]}
    messages = [{"role": "user", "content": "<image>what?"}, {"role": "assistant", "content": "red"}]
    images = datasets.Features({"images": datasets.List(datasets.Image())})
    if kind == "pairs":
        rows = datasets.Dataset.from_list([{"image": image, "caption": "red"}])
        return ImageCaptionDataset(rows, crop_scale=0.25)
    if kind in ("questions", "questions as conversations"):
        rows = datasets.Dataset.from_list([question]).cast_column("image", datasets.Image())
        return QuestionDataset(rows) if kind == "questions" else QuestionConversations(rows)
    if kind == "conversations":
        rows = datasets.Dataset.from_list([{"image": image, "messages": messages}])
        return ConversationDataset(rows.cast_column("image", datasets.Image()))
    rows = datasets.Dataset.from_dict({"images": [[image]]}, features=images).add_column("messages", [messages])
    return ConversationDataset(rows)


@pytest.mark.parametrize(
    "kind", ["pairs", "questions", "questions as conversations", "conversations", "lists of images"]
)
def test_training_decodes_a_large_jpeg_no_larger_than_it_needs(kind):
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((640, 480)).convert("RGB").save(buffer, "JPEG", quality=95)
    rows = rows_with_a_large_jpeg(kind, buffer.getvalue())
    whole = (rows[0].get("images") or [rows[0].get("image")])[0]
    rows = rows_with_a_large_jpeg(kind, buffer.getvalue())
    rows.set_decode_size(100)
    reduced = (rows[0].get("images") or [rows[0].get("image")])[0]
    if kind == "pairs":  # a crop may have half of a side, so 480 pixels become 240 and not 120
        assert reduced.size == pytest.approx((whole.width / 2, whole.height / 2), abs=1)
        return
    assert (whole.size, reduced.size) == ((640, 480), (160, 120))
    expected = np.asarray(whole.resize(reduced.size, Image.Resampling.BOX), dtype=float)
    assert np.abs(np.asarray(reduced) - expected).max() < 4


def test_a_size_that_suffices_leaves_other_pictures_whole():
    for size, file_format in (((150, 90), "JPEG"), ((640, 480), "PNG")):
        buffer = io.BytesIO()
        Image.new("RGB", size, "red").save(buffer, file_format)
        assert decode_image({"path": None, "bytes": buffer.getvalue()}, 0, 100).size == size


@pytest.mark.parametrize("name", FILES)
def test_pipelines_see_the_same(pair, folder, name):
    model, processor = pair
    describe = pipeline("image-to-text", model, processor=processor)
    ask = pipeline("visual-question-answering", model, processor=processor)
    with Image.open(folder / name) as opened:
        for picture in (opened, str(folder / name), folder / name):
            check(levels(describe.preprocess(picture)["pixel_values"], processor), name)
            row = {"image": picture, "question": "what is it?"}
            check(levels(ask.preprocess(row)["pixel_values"], processor), name)


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_and_tensors_of_any_layout(processor, name):
    array = ARRAYS[name]
    is_grey = array.ndim == 2 or array.shape[-1] == 1
    expected = halves([80] * 3, WHITE) if is_grey else halves(RED, BLUE)
    layouts = [array] if array.ndim == 2 else [array, np.moveaxis(array, -1, 0)]
    tensors = [torch.from_numpy(np.ascontiguousarray(layout)) for layout in layouts]
    tensors += [tensor.bfloat16() for tensor in tensors if tensor.dtype == torch.float32]
    batches = [layout[None] for layout in layouts if layout.ndim == 3]
    for picture in (*layouts, *tensors, *batches):
        np.testing.assert_allclose(pixels_of(processor, picture), expected, atol=0.01, err_msg=str(picture.shape))


def test_the_layout_can_be_told(processor):
    array = np.zeros((3, 16, 3), dtype=np.uint8)
    array[0] = 255  # the first row, or the first channel
    text = {"text": "<image>"} if hasattr(processor, "image_token") else {}
    sizes = {"do_resize": False, "do_center_crop": False, "do_pad": False, "return_tensors": "pt"}
    for options in ({"input_data_format": "channels_last"}, {"images_kwargs": {"input_data_format": "channels_last"}}):
        found = processor(images=array, **text, **sizes, **options)["pixel_values"]
        assert found.shape == (1, 3, 3, 16)
        assert (found[0, :, 0] > found[0, :, 1]).all()
    assert processor(images=array, **text, **sizes)["pixel_values"].shape == (1, 3, 16, 3)


@torch.no_grad()
def test_pipelines_take_arrays(pair, folder):
    model, processor = pair
    options = {"max_new_tokens": 4, "generate_kwargs": {"num_beams": 1, "do_sample": False}}
    describe = pipeline("image-to-text", model, processor=processor)
    ask = pipeline("visual-question-answering", model, processor=processor)
    array = halves([255, 0, 255], [0, 255, 0])
    picture = Image.fromarray(array)
    expected, answer = describe(picture, **options), ask(picture, question="what is it?", **options)
    for given in (array, torch.from_numpy(array)):
        assert describe(given, **options) == expected
        assert describe([given, picture], **options) == describe(np.stack([array, array]), **options) == [expected] * 2
        assert ask(given, question="what is it?", **options) == answer
        assert ask([given, given], question="what is it?", **options) == [answer] * 2
    deep = Image.open(folder / "deep.png")
    assert describe(str(folder / "deep.png"), **options) == describe(deep, **options)


def test_clips_of_awkward_frames():
    processor = PROCESSORS["mammut"]()
    expected = processor(images=Image.fromarray(halves(RED, WHITE)), return_tensors="pt")["pixel_values"]
    frame = halves([255, 0, 0, 255], [0, 200, 0, 0])
    for clip in ([Image.fromarray(frame)], [frame], frame[None], torch.from_numpy(frame)[None]):
        found = processor(videos=clip, return_tensors="pt")["pixel_values_videos"]
        torch.testing.assert_close(found[0], expected)
    grey = processor(videos=[halves(0.2, 1, np.float32)] * 2, return_tensors="pt")["pixel_values_videos"]
    np.testing.assert_allclose(levels(grey[0, :1], processor), halves([51] * 3, WHITE), atol=0.01)


def test_addresses(folder):
    with HTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        check(pixels_of(tiny_processor(), f"{url}/palette.png"), "palette.png")
        check(to_rgb(f"{url}/palette.png", timeout=5), "palette.png")
        with pytest.raises(ValueError, match=r"`images\[0\]` 'http://.*missing.png' cannot be read.*404"):
            tiny_processor()(images=[f"{url}/missing.png"])
        server.shutdown()


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (Image.fromarray(halves(-1, 5, np.int32)), r"`images` has int32 values from -1 to 5; expected 0 to 65535"),
        (Image.fromarray(halves(0, 70000, np.int32)), "from 0 to 70000; expected 0 to 65535"),
        (Image.fromarray(halves(0, 255, np.float32)), r"`images` has float32 values from 0 to 255; expected 0 to 1"),
        ([np.full((4, 4, 3), 1.5)], r"`images\[0\]` has float64 values from 1.5 to 1.5; expected 0 to 1"),
        (np.full((4, 4, 3), np.nan), "expected 0 to 1"),
        (np.zeros((4, 4, 3), np.int64), r"`images` holds int64; expected uint8, uint16, bool, or floats"),
        (np.zeros((1, 4, 4, 3), np.complex64), r"`images\[0\]` holds complex64"),
        ([["missing.png"]], r"`images\[0\]\[0\]` 'missing.png' cannot be read; expected a file, URL or base64"),
        ({"bytes": b""}, r"`images` is a dict; expected a picture"),
        (
            [Image.new("RGB", (4, 4)), Image.new("LA", (4, 4)).convert("La")],
            r"`images\[1\]` has mode 'La'; expected one of 1, CMYK",
        ),
    ],
)
def test_what_nobody_can_know_is_refused(picture, message):
    with pytest.raises(ValueError, match=message):
        tiny_processor()(images=picture)


def test_rescaling_of_floats_is_not_left_to_luck():
    floats = halves([1, 0, 0], [0, 0, 1], np.float32)
    processor = tiny_processor()
    for options in ({"do_rescale": False}, {"images_kwargs": {"do_rescale": False}}):
        with pytest.raises(ValueError, match="`do_rescale=False` does not go with `images` of floats"):
            processor(images=floats, **options)
    processor.image_processor = CLIPImageProcessor(do_rescale=False, do_normalize=False)
    with pytest.raises(ValueError, match="`do_rescale=False` does not go with `images` of floats"):
        processor(images=[floats])
    raw = tiny_processor()(images=halves(RED, BLUE), do_rescale=False, do_normalize=False, return_tensors="pt")
    assert raw["pixel_values"].max() == 255  # of levels, it is what was asked for


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_processor_brings_the_conversion_along(folder, tmp_path, monkeypatch, name):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    processor = PROCESSORS[name]()
    processor.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "pictures.py").is_file()
    text = {"text": "<image>"} if hasattr(processor, "image_token") else {}
    code = f"found['pixels'] = processor(images={str(folder / 'palette.png')!r}, **{text}, return_tensors='pt')['pixel_values']\n"
    found = ask_a_stranger(code, tmp_path / "saved", {}, tmp_path)
    check(levels(found["pixels"], processor), "palette.png")


@pytest.mark.parametrize("text", [[3], ["a red heart", None]])
def test_a_text_that_is_none_is_named(processor, text):
    with pytest.raises(ValueError, match="`text"):
        processor(text=text, return_tensors="pt")
