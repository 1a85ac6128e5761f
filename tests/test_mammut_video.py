"""Sparse tubes: token counts, positions, and that a picture is a clip of one frame."""

import math

import pytest
import torch

from tests.conftest import TINY_TUBES, tiny_mammut
from triptych import MammutConfig, MammutVisionModel
from triptych.modeling.configuration_mammut import TUBEVIT_TUBES
from triptych.modeling.video_tubes import TubeEmbedding, fixed_positions, tube_centers, tube_grid


def tiny_tubes(num_channels: int = 1, hidden_size: int = 6, kernel=(2, 2, 2), tubes=TINY_TUBES) -> TubeEmbedding:
    torch.manual_seed(0)
    embedding = TubeEmbedding(num_channels, hidden_size, list(kernel), tubes, 0.02)
    torch.nn.init.normal_(embedding.kernel)
    torch.nn.init.normal_(embedding.bias)
    return embedding


def test_tubevit_token_counts():
    for size, counts in (
        ((32, 224, 224), [98, 147, 98]),
        ((16, 224, 224), [49, 0, 49]),
        ((32, 256, 256), [128, 192, 128]),
    ):
        assert [math.prod(max(0, count) for count in tube_grid(size, *tube)) for tube in TUBEVIT_TUBES] == counts
    config = MammutConfig.from_preset(
        "mammut-base",
        vision_config={"num_hidden_layers": 1, "hidden_size": 12, "intermediate_size": 12, "use_tubes": True},
    )
    vision = MammutVisionModel(config.vision_config)
    tokens = vision(pixel_values_videos=torch.zeros(1, 32, 3, 224, 224)).last_hidden_state
    assert tokens.shape[1] == 196 + 98 + 147 + 98


@torch.no_grad()
def test_tubes_are_the_sums_of_their_definition():
    embedding = tiny_tubes(num_channels=2)
    clip = torch.randn(1, 8, 2, 16, 16)
    tokens, centers = embedding(clip)
    assert tokens.shape[1] == len(centers)
    start = 0
    for index, (kernel, stride, offset) in enumerate(TINY_TUBES):
        frames, rows, columns = tube_grid((8, 16, 16), kernel, stride, offset)
        weight = torch.nn.functional.interpolate(embedding.kernel, size=kernel, mode="trilinear")
        for position, (t, y, x) in enumerate(
            (t, y, x) for t in range(frames) for y in range(rows) for x in range(columns)
        ):
            corner = [o + i * s for o, i, s in zip(offset, (t, y, x), stride, strict=True)]
            piece = clip[0, corner[0] : corner[0] + kernel[0], :, corner[1] : corner[1] + kernel[1]]
            piece = piece[..., corner[2] : corner[2] + kernel[2]].transpose(0, 1)
            expected = (weight * piece).flatten(1).sum(1) + embedding.bias[index]
            torch.testing.assert_close(tokens[0, start + position], expected, atol=1e-5, rtol=0)
            middle = [c + k // 2 for c, k in zip(corner, kernel, strict=True)]
            assert centers[start + position].tolist() == middle
        start += frames * rows * columns


def test_fixed_positions_of_any_width():
    centers = tube_centers([2, 3, 4], [1, 16, 16], [32, 16, 16], [0, 0, 0], torch.device("cpu"))
    assert centers[0].tolist() == [0, 8, 8]
    assert centers[-1].tolist() == [32, 40, 56]
    table = fixed_positions(centers, 1024)  # 170 frequencies and 4 zeros
    assert table.shape == (24, 1024)
    assert table[:, 1020:].abs().max() == 0
    torch.testing.assert_close(table[-1, 0], torch.tensor(32.0).sin())
    torch.testing.assert_close(table[-1, 170], torch.tensor(32.0).cos())
    torch.testing.assert_close(table[-1, 340], torch.tensor(40.0).sin())
    torch.testing.assert_close(table[-1, 680], torch.tensor(56.0).sin())


@torch.no_grad()
@pytest.mark.parametrize("with_positions", [False, True])
def test_a_clip_of_one_frame_without_tubes_is_the_picture_bit_for_bit(mammut_variant, with_positions):
    model = tiny_mammut(mammut_variant, vision_config={"use_tubes": False, "use_fixed_positions": with_positions})
    pixel_values = torch.randn(2, 3, 16, 16)
    image, clip = model.get_image_features(pixel_values), model.get_video_features(pixel_values[:, None])
    assert torch.equal(image.image_tokens, clip.image_tokens)
    assert torch.equal(image.pooler_output, clip.pooler_output)


@torch.no_grad()
def test_a_closed_gate_leaves_the_image_model_as_it_was():
    plain = tiny_mammut()
    gated = tiny_mammut(vision_config={"use_fixed_positions": True, "use_tubes": True, "tubes": TINY_TUBES})
    gated.load_state_dict(plain.state_dict(), strict=False)
    gated.model.vision_model.embeddings.position_gate.zero_()
    pixel_values = torch.randn(2, 3, 16, 16)
    assert torch.equal(
        plain.get_image_features(pixel_values).image_tokens, gated.get_image_features(pixel_values).image_tokens
    )


@torch.no_grad()
def test_the_ablation_switches_do_what_they_say():
    clips = torch.randn(2, 8, 3, 16, 16)
    vision = tiny_mammut("video").model.vision_model.embeddings
    full = vision(pixel_values_videos=clips)
    assert full.shape[1] == 1 + 2 * 16 + 8 + 8
    no_tubes = tiny_mammut("video", vision_config={"use_tubes": False}).model.vision_model.embeddings
    assert no_tubes(pixel_values_videos=clips).shape[1] == 1 + 2 * 16
    ungated = tiny_mammut("video", vision_config={"use_position_gate": False}).model.vision_model.embeddings
    ungated.load_state_dict(vision.state_dict(), strict=False)
    gate = vision.position_gate.clone()
    assert not torch.allclose(ungated(pixel_values_videos=clips), full)
    vision.position_gate.fill_(1.0)
    torch.testing.assert_close(ungated(pixel_values_videos=clips), vision(pixel_values_videos=clips))
    unfixed = tiny_mammut("video", vision_config={"use_fixed_positions": False}).model.vision_model.embeddings
    assert unfixed.position_gate is None
    unfixed.load_state_dict(vision.state_dict(), strict=False)
    vision.position_gate.zero_()
    torch.testing.assert_close(unfixed(pixel_values_videos=clips), vision(pixel_values_videos=clips))
    assert gate != 0


@torch.no_grad()
def test_the_order_of_frames_matters_to_tubes():
    model = tiny_mammut("video")
    clips = torch.randn(1, 8, 3, 16, 16)
    forth, back = (model.get_video_features(frames).pooler_output for frames in (clips, clips.flip(1)))
    assert (forth - back).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_clips_in_half_precision(dtype):
    model = tiny_mammut("video")
    clips = torch.randn(2, 8, 3, 16, 16)
    expected = model.get_video_features(clips).pooler_output
    found = model.to(dtype).get_video_features(clips.to(dtype)).pooler_output
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, atol=0.05 * expected.abs().max().item(), rtol=0)


def test_videos_and_texts_train_together():
    model = tiny_mammut("video").train()
    ids = torch.randint(3, 64, (2, 7))
    model(ids, pixel_values_videos=torch.randn(2, 8, 3, 16, 16), labels=ids).loss.backward()
    unused = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert not unused
    assert model.model.vision_model.embeddings.position_gate.grad.abs() > 0


@torch.no_grad()
def test_inflated_tubes_answer_a_still_clip_like_the_patches():
    # A constant clip: what the patch convolution sums over a frame, a tube sums over its own volume.
    model = tiny_mammut(
        vision_config={
            "use_tubes": True,
            "tubes": [[[2, 4, 4], [4, 4, 4], [0, 0, 0]]],
            "tube_kernel_size": [2, 4, 4],
        }
    )
    vision = model.model.vision_model
    vision.inflate_tubes()
    clip = torch.randn(1, 1, 3, 16, 16).expand(-1, 8, -1, -1, -1)
    tubes, _ = vision.embeddings.tube_embedding(clip)
    patches = vision.embeddings.patch_embedding(clip[:, 0]).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tubes, patches.repeat(1, 2, 1), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="use_tubes"):
        tiny_mammut().model.vision_model.inflate_tubes()


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        (torch.zeros(1, 3, 3, 16, 16), r"3 frames of 16 x 16 pixels; tube 1 needs at least 5 frames of 4 x 4"),
        (torch.zeros(1, 8, 3, 20, 16), r"`pixel_values_videos` must be 16 x 16 pixels, got 20 x 16"),
        (torch.zeros(8, 3, 16, 16), r"shape \(batch_size, num_frames, 3, height, width\).*got \(8, 3, 16, 16\)"),
        (torch.zeros(1, 0, 3, 16, 16), r"at least one frame"),
    ],
)
def test_clips_that_do_not_fit_are_explained(clips, message):
    with pytest.raises(ValueError, match=message):
        tiny_mammut("video").get_video_features(clips)
