"""Presets, field checks and sizes."""

import dataclasses
import re

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

import triptych
from tests.conftest import tiny_config
from triptych import GrrCocaConfig, GrrCocaForConditionalGeneration


def count(module: torch.nn.Module | None) -> int:
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())


def build_on_meta(preset: str) -> GrrCocaForConditionalGeneration:
    with torch.device("meta"):
        return GrrCocaForConditionalGeneration(GrrCocaConfig.from_preset(preset))


@pytest.mark.parametrize("name", GrrCocaConfig.presets())
def test_every_key_of_every_preset_is_a_field(name):
    # A misspelt keyword would become a silent attribute.
    preset = GrrCocaConfig.presets()[name]
    for key, config_class in (
        ("vision_config", triptych.GrrCocaVisionConfig),
        ("text_config", triptych.GrrCocaTextConfig),
    ):
        fields = {field.name for field in dataclasses.fields(config_class)}
        assert set(preset[key]) <= fields
    GrrCocaConfig.from_preset(name)


@pytest.mark.parametrize(
    ("preset", "total"),
    [  # exact totals of LAION's checkpoints; the others from the layer-by-layer arithmetic at ViT-B/16, in millions
        ("coca-vit-b-32", 253_560_065),
        ("coca-vit-l-14", 638_450_177),
        ("grr-coca-base", 451.1e6),
        ("baseline-coca-base", 422.9e6),
        ("grr-coca-base-iso", 366.1e6),
        ("baseline-coca-base-iso", 366.3e6),
    ],
)
def test_parameter_counts(preset, total):
    found = count(build_on_meta(preset))
    assert found == total if isinstance(total, int) else abs(found - total) < 0.05e6


@pytest.mark.parametrize("size", ["tiny", "base", "large"])
def test_iso_presets_are_a_fair_comparison(size):
    grr, baseline = count(build_on_meta(f"grr-coca-{size}-iso")), count(build_on_meta(f"baseline-coca-{size}-iso"))
    assert abs(grr / baseline - 1) < 1e-3


@pytest.mark.parametrize("suffix", ["", "-iso"])
def test_grr_and_baseline_differ_in_the_vision_model_only(suffix):
    shapes = [
        {name: parameter.shape for name, parameter in build_on_meta(f"{family}-tiny{suffix}").named_parameters()}
        for family in ("grr-coca", "baseline-coca")
    ]
    differing = {name for name in shapes[0].keys() | shapes[1].keys() if shapes[0].get(name) != shapes[1].get(name)}
    assert differing
    assert all(name.startswith("model.vision_model.") for name in differing)


def test_round_trip_and_sub_config_loading(tmp_path, variant):
    config = tiny_config(variant, contrastive_reduction="sum")
    config.save_pretrained(tmp_path)
    loaded = triptych.GrrCocaConfig.from_pretrained(tmp_path)
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert triptych.GrrCocaVisionConfig.from_pretrained(tmp_path).to_dict() == loaded.vision_config.to_dict()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GrrCocaConfig.from_preset("grr-coca-huge"), "grr-coca-huge.*Available: baseline-coca-base"),
        (lambda: GrrCocaConfig.from_preset("grr-coca-tiny", vision_config={"widht": 3}), "widht.*GrrCocaVisionConfig"),
        (lambda: GrrCocaConfig.from_preset("grr-coca-tiny", projection=3), "projection.*GrrCocaConfig"),
        (lambda: tiny_config(vision_config={"hidden_size": 33}), "hidden_size.*num_attention_heads.*33 and 2"),
        (lambda: tiny_config(vision_config={"image_size": 18}), "image_size.*18 and 4"),
        (lambda: tiny_config(vision_config={"pooler_hidden_size": 16}), "pooler_hidden_size.*16 and 32"),
        (lambda: tiny_config(text_config={"num_multimodal_layers": 0}), "num_multimodal_layers.*got 0"),
        (
            lambda: tiny_config(vision_config={"hidden_size": 36, "position_embedding_type": "rope_2d"}),
            "multiple of 4.*18",
        ),
        (lambda: tiny_config(vision_config={"norm_type": "batchnorm"}), "norm_type"),
    ],
)
def test_bad_configurations_name_the_field(build, message):
    with pytest.raises((ValueError, StrictDataclassError)) as error:
        build()
    assert re.search(message, str(error.value), re.DOTALL)
