"""MaMMUT's processor: questions and answers, clips from memory and from files."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from tests.conftest import tiny_mammut, tiny_mammut_processor, write_clip
from triptych.processing.video_frames import frame_indices


@pytest.fixture(scope="module")
def processor():
    return tiny_mammut_processor(num_frames=4)


def frames(count: int, size: int = 16) -> list[Image.Image]:
    """Frame i is of grey level 10 i."""
    return [Image.new("RGB", (size, size), (10 * index,) * 3) for index in range(count)]


def levels(pixel_values: torch.Tensor, processor) -> list[int]:
    """Grey levels of the frames of one processed clip."""
    mean, std = processor.image_processor.image_mean[0], processor.image_processor.image_std[0]
    return [round(255 * (frame[0].mean().item() * std + mean)) for frame in pixel_values]


def test_a_question_is_a_prompt_ready_to_be_continued(processor):
    batch = processor(questions=["what is it?", "what colour is the red heart?"], return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    tokenizer = processor.tokenizer
    assert (ids[:, -1] != tokenizer.eos_token_id).all()
    assert mask[0, 0] == 0  # padding on the left
    assert mask[:, -1].all()
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == "question: what is it? answer:"
    assert ids[0][mask[0].bool()][0] == tokenizer.bos_token_id
    assert "labels" not in batch


def test_only_the_answer_is_supervised(processor):
    questions, answers = ["what is it?", "what colour?"], ["a red heart", "blue"]
    batch = processor(questions=questions, answers=answers, return_tensors="pt")
    prompts = processor(questions=questions)["input_ids"]
    for row, answer in enumerate(answers):
        labels, ids = batch["labels"][row], batch["input_ids"][row]
        supervised = labels != -100
        assert (labels[supervised] == ids[supervised]).all()
        assert processor.decode(labels[supervised]) == f"{answer}<eos>"
        prompt = [token for token in prompts[row] if token != processor.tokenizer.pad_token_id]
        assert ids[: len(prompt)].tolist() == prompt  # training and generation see the same question
        assert not supervised[: len(prompt)].any()
        assert (labels[batch["attention_mask"][row] == 0] == -100).all()


def test_clips_are_their_frames(processor):
    clip = frames(4)
    batch = processor(videos=clip, return_tensors="pt")
    assert batch["pixel_values_videos"].shape == (1, 4, 3, 16, 16)
    alone = processor(images=clip, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(batch["pixel_values_videos"][0], alone, atol=0, rtol=0)
    array = np.stack([np.asarray(frame) for frame in clip])
    for other in (array, torch.from_numpy(array).permute(0, 3, 1, 2), [clip], array[None], list(array)):
        found = processor(videos=other, return_tensors="pt")["pixel_values_videos"]
        torch.testing.assert_close(found[0], alone, atol=1e-6, rtol=0)
    assert processor(videos=[clip, clip], return_tensors="pt")["pixel_values_videos"].shape[0] == 2
    noise = np.random.default_rng(0)
    for size in ((16, 16), (20, 16), (24, 24)):  # also where resizing or cropping would change nothing
        clip = [Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(4)]
        alone = processor(images=clip, return_tensors="pt")["pixel_values"]
        assert torch.equal(processor(videos=clip, return_tensors="pt")["pixel_values_videos"][0], alone)


def test_options_of_the_image_processor_hold_for_frames(processor):
    noise = np.random.default_rng(0)
    clip = [Image.fromarray(noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(4)]
    for options in (
        {"do_normalize": False},
        {"size": {"shortest_edge": 24}},
        {"images_kwargs": {"crop_size": {"height": 8, "width": 8}}},
        {"image_mean": [0.5] * 3, "padding": "longest"},
    ):
        alone = processor(images=clip, return_tensors="pt", **options)["pixel_values"]
        found = processor(videos=clip, questions="what is it?", return_tensors="pt", **options)["pixel_values_videos"]
        assert torch.equal(found[0], alone)
        assert alone.shape != (4, 3, 16, 16) or not torch.equal(
            alone, processor(images=clip, return_tensors="pt").pixel_values
        )


def test_frames_are_sampled_uniformly(processor):
    batch = processor(videos=[frames(8), frames(2)], return_tensors="pt")["pixel_values_videos"]
    assert levels(batch[0], processor) == [10, 30, 50, 70]
    assert levels(batch[1], processor) == [0, 0, 10, 10]  # a short clip repeats frames
    one = processor(videos=frames(8), num_frames=1, return_tensors="pt")["pixel_values_videos"]
    assert levels(one[0], processor) == [40]


def test_frames_at_a_rate():
    assert frame_indices(100, 4, fps=2, source_fps=25) == [0, 12, 25, 38]
    assert frame_indices(30, 4, fps=2, source_fps=25) == [0, 12, 25, 29]  # the last one repeats
    assert frame_indices(100, None, fps=1, source_fps=25) == [0, 25, 50, 75]
    assert frame_indices(5, None) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="`fps` needs a video file"):
        frame_indices(30, 4, fps=2)


def test_video_files(processor, tmp_path):
    path = tmp_path / "clip.mp4"
    write_clip(path)
    uniform = processor(videos=str(path), return_tensors="pt")["pixel_values_videos"]
    assert levels(uniform[0], processor) == pytest.approx([40 + 8 * index for index in (2, 7, 12, 17)], abs=4)
    at_rate = processor(videos=[path], fps=2, return_tensors="pt")["pixel_values_videos"]
    assert levels(at_rate[0], processor) == pytest.approx([40 + 8 * index for index in (0, 5, 10, 15)], abs=4)
    short = processor(videos=path, num_frames=25, return_tensors="pt")["pixel_values_videos"]
    assert short.shape[1] == 25
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"clip\.mp4 cannot be read"):
        processor(videos=path)


@pytest.mark.parametrize("suffix", ["webm", "mkv"])
def test_files_that_state_no_number_of_frames(processor, tmp_path, suffix):
    write_clip(tmp_path / f"clip.{suffix}", codec="libvpx" if suffix == "webm" else "mpeg4")
    found = processor(videos=tmp_path / f"clip.{suffix}", return_tensors="pt")["pixel_values_videos"]
    assert levels(found[0], processor) == pytest.approx([40 + 8 * index for index in (2, 7, 12, 17)], abs=6)


def test_lists_of_frame_files(processor, tmp_path):
    clip = frames(4)
    for index, frame in enumerate(clip):
        frame.save(tmp_path / f"{index}.png")
    paths = [tmp_path / f"{index}.png" for index in range(4)]
    expected = processor(videos=clip, return_tensors="pt")["pixel_values_videos"]
    for videos in (paths, [str(path) for path in paths], [paths]):
        assert torch.equal(processor(videos=videos, return_tensors="pt")["pixel_values_videos"], expected)
    two = processor(videos=[paths, clip], return_tensors="pt")["pixel_values_videos"]
    assert torch.equal(two, expected.repeat(2, 1, 1, 1, 1))
    with pytest.raises(ValueError, match="holds single frames beside whole clips"):
        processor(videos=[paths[0], tmp_path / "clip.mp4"])


def test_round_trip(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is type(processor)
    assert (loaded.num_frames, loaded.fps, loaded.question_template) == (4, None, processor.question_template)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"text": "a", "questions": "b"}, "either `text` or `questions`"),
        ({"answers": "red"}, "`answers` need `questions`"),
        ({"questions": ["a", "b"], "answers": ["c"]}, "1 answers and 2 questions"),
        ({"questions": ["word " * 60]}, r"`questions\[0\]` takes \d+ tokens.*context is 40"),
        ({"questions": []}, "`questions` is empty"),
        ({"videos": []}, "`videos` is empty"),
        ({"videos": frames(2), "num_frames": 0}, "`num_frames` must be at least 1, got 0"),
        ({"text": [3]}, r"`text\[0\]` must be a text, or a list of at least one class; got 3"),
        ({"text": ["a", None]}, r"`text\[1\]` is None; expected a text"),
        ({"videos": frames(2), "fps": 0}, "`fps` must be positive, got 0"),
        ({"videos": "clip.mp4", "fps": -1}, "`fps` must be positive, got -1"),
        ({"videos": "missing.mp4"}, r"no file missing\.mp4"),
        ({"videos": 5}, "`videos` must be a path"),
        ({"videos": [np.zeros((4, 16, 16, 2), dtype=np.uint8)]}, r"`videos\[0\]\[0\]` has shape \(16, 16, 2\)"),
        ({"images": np.zeros((16, 16, 2), dtype=np.uint8)}, r"`images` has shape"),
        ({"videos": frames(2), "videos_kwargs": {"do_resize": False}}, "`videos_kwargs` has no reader"),
        (
            {"images": frames(1), "annotations": {"annotations": []}},
            "`annotations` need an image processor that pads .*got CLIPImageProcessor.* and options",
        ),
    ],
)
def test_bad_input_names_the_argument(processor, inputs, message):
    with pytest.raises(ValueError, match=message):
        processor(**inputs)


def test_images_beside_clips_are_prepared_and_no_model_takes_both(processor):
    batch = processor(images=frames(1), videos=frames(2), text="red", return_tensors="pt")
    assert set(batch) == set(processor.model_input_names)
    model = tiny_mammut("video")
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="`pixel_values"):
            call(pixel_values=batch["pixel_values"], pixel_values_videos=batch["pixel_values_videos"])
