"""MaMMUT's presets, field checks and sizes."""

import dataclasses

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

import triptych
from tests.conftest import tiny_mammut_config
from triptych import MammutConfig, MammutForConditionalGeneration


def count(module: torch.nn.Module | None) -> int:
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())


def build_on_meta(preset: str) -> MammutForConditionalGeneration:
    with torch.device("meta"):
        return MammutForConditionalGeneration(MammutConfig.from_preset(preset))


@pytest.mark.parametrize("name", MammutConfig.presets())
def test_every_key_of_every_preset_is_a_field(name):
    preset = MammutConfig.presets()[name]
    for key, config_class in (
        ("vision_config", triptych.MammutVisionConfig),
        ("text_config", triptych.MammutTextConfig),
    ):
        assert set(preset[key]) <= {field.name for field in dataclasses.fields(config_class)}
    assert set(preset) <= {field.name for field in dataclasses.fields(MammutConfig)}


# Millions: all, image tower with its projection, text decoder with its output layer, cross-attention (LAION's own table)
LAION_COUNTS = {
    "s-32": (85.62, 22.64, 62.83, 10.65),
    "s-16": (84.79, 21.81, 62.83, 10.65),
    "s-14": (84.74, 21.77, 62.83, 10.65),
    "m-32": (134.73, 39.69, 94.78, 18.92),
    "m-16": (133.63, 38.59, 94.78, 18.92),
    "m-14": (133.57, 38.53, 94.78, 18.92),
    "b-32": (183.02, 87.85, 94.78, 18.92),
    "b-16": (290.52, 86.39, 203.54, 42.54),
    "b-14": (181.27, 86.10, 94.78, 18.92),
    "l-32": (510.63, 306.30, 203.54, 42.54),
    "l-16": (508.42, 304.09, 203.54, 42.54),
    "l-14": (508.29, 303.97, 203.54, 42.54),
    "h-32": (1191.06, 634.99, 554.76, 151.18),
    "h-16": (1188.30, 632.23, 554.76, 151.18),
    "h-14": (1188.14, 632.08, 554.76, 151.18),
}


@pytest.mark.parametrize("size", LAION_COUNTS)
def test_openmammut_parameter_counts(size):
    model = build_on_meta(f"openmammut-vit-{size}")
    found = (
        count(model),
        count(model.model.vision_model) + count(model.model.visual_projection),
        count(model.model.text_model) + count(model.lm_head),
        count(model.model.text_model.cross_layers),
    )
    assert [round(number / 1e6, 2) for number in found] == pytest.approx(LAION_COUNTS[size], abs=0.011)


def test_openmammut_counts_to_the_last_parameter():
    assert count(build_on_meta("openmammut-vit-b-32")) == 183_021_313
    assert count(build_on_meta("openmammut-vit-l-14")) == 508_294_913


@pytest.mark.parametrize(
    ("preset", "image_tower", "decoder", "cross"),
    [  # printed: 86 / 300 / 630-650 M; 128 M and 1 B without cross-attention, 420 M of which
        ("mammut-base", 86e6, 128e6, None),
        ("mammut-large", 300e6, 128e6, None),
        ("mammut-2b", 630e6, 1000e6, 420e6),
    ],
)
def test_paper_parameter_counts(preset, image_tower, decoder, cross):
    model = build_on_meta(preset).model
    crossed = count(model.text_model.cross_layers)
    assert count(model.vision_model) == pytest.approx(image_tower, rel=0.015)
    assert count(model.text_model) - crossed == pytest.approx(decoder, rel=0.015)
    if cross is not None:
        assert crossed == pytest.approx(cross, rel=0.015)
        assert len(model.text_model.cross_layers) == 9


def test_cross_attention_placement():
    text = tiny_mammut_config(text_config={"cross_attn_every": 2, "cross_attn_offset": 1}).text_config
    assert text.cross_attn_layers == [1, 3]
    assert MammutConfig.from_preset("openmammut-vit-l-14").text_config.cross_attn_layers == [0, 2, 4, 6, 8, 10]


def test_round_trip(tmp_path, mammut_variant):
    config = tiny_mammut_config(mammut_variant, focal_gamma=2.0)
    config.save_pretrained(tmp_path)
    loaded = MammutConfig.from_pretrained(tmp_path)
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert triptych.MammutVisionConfig.from_pretrained(tmp_path).to_dict() == loaded.vision_config.to_dict()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MammutConfig.from_preset("mammut-huge"), "mammut-huge.*Available: mammut-2b"),
        (lambda: MammutConfig.from_preset("mammut-tiny", text_config={"widht": 3}), "widht.*MammutTextConfig"),
        (lambda: tiny_mammut_config(vision_config={"hidden_size": 33}), "hidden_size.*33 and 2"),
        (lambda: tiny_mammut_config(vision_config={"image_size": 18}), "image_size.*18 and 4"),
        (lambda: tiny_mammut_config(text_config={"cross_attn_offset": 4}), "cross_attn_offset.*4 layers, got 4"),
        (lambda: tiny_mammut_config(vision_config={"tubes": [[[8, 8], [1, 1, 1], [0, 0, 0]]]}), r"tubes\[0\]"),
        (lambda: tiny_mammut_config(vision_config={"use_tubes": True, "tubes": []}), "`use_tubes` needs at least one"),
        (lambda: tiny_mammut_config(focal_gamma=-1.0), "focal_gamma"),
        (lambda: tiny_mammut_config("laion", use_logit_bias=True), "`use_logit_bias` belongs to the focal loss"),
        (lambda: tiny_mammut_config("laion", text_config={"pad_token_id": None}), "pad_token_id"),
    ],
)
def test_bad_fields_are_named(build, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        build()
