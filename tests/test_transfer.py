"""Going on from a checkpoint: locked towers, rates by layer, dropped patches, larger images and longer texts."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError

from tests.conftest import load_example, tiny_mammut, tiny_mammut_processor, tiny_model, tiny_processor
from triptych import GrrCocaForConditionalGeneration, MammutConfig, MammutForConditionalGeneration
from triptych.modeling.layers import kept_patches
from triptych.training.captioners import ModelArguments, config_of, load_or_build
from triptych.training.detectors import DetectorArguments, build_detector
from triptych.training.optimization import weight_decay_groups
from triptych.training.transfer import layer_rates, lock_image_tower


MODELS = {
    "grr": tiny_model,
    "baseline": lambda **fields: tiny_model("baseline", **fields),
    "grr-axial": lambda **fields: tiny_model("grr-axial", **fields),
    "mammut": tiny_mammut,
    "laion": lambda **fields: tiny_mammut("laion", **fields),
}


def trained_names(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("kind", MODELS)
def test_a_locked_tower_learns_nothing(kind):
    model = MODELS[kind]()
    everything = trained_names(model)
    lock_image_tower(model)
    assert everything - trained_names(model) == {name for name in everything if name.startswith("model.vision_model.")}
    model = MODELS[kind]()
    lock_image_tower(model, 1)
    num_layers = len(model.model.vision_model.layers)
    trained = {name.removeprefix("model.vision_model.") for name in trained_names(model) if "vision_model" in name}
    assert {name for name in trained if name.startswith("layers.")} == {
        name for name, _ in model.model.vision_model.named_parameters() if name.startswith(f"layers.{num_layers - 1}.")
    }
    assert not [name for name in trained if name.startswith(("embeddings", "pre_layernorm"))]
    assert [name for name in trained if not name.startswith("layers.")]  # what follows the layers
    with pytest.raises(ValueError, match=f"`unlock_layers` is 9, but the image tower has {num_layers} layers"):
        lock_image_tower(model, 9)


@pytest.mark.parametrize("kind", MODELS)
def test_layers_near_the_input_learn_more_slowly(kind):
    model = MODELS[kind]()
    rates = layer_rates(model, 1e-3, 0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for group in weight_decay_groups(model, 0.1, 1e-3, rates):
        found |= {names[id(parameter)]: group["lr"] for parameter in group["params"]}
    vision = len(model.model.vision_model.layers)
    texts = [f"text_model.layers.{index}" for index in range(len(model.model.text_model.layers))]
    decoder = getattr(model.model, "multimodal_decoder", None)
    texts += [] if decoder is None else [f"multimodal_decoder.layers.{index}" for index in range(len(decoder.layers))]
    stacks = ([f"vision_model.layers.{index}" for index in range(vision)], texts)
    for stack in stacks:
        for behind, prefix in enumerate(reversed(stack)):
            of_layer = {rate for name, rate in found.items() if name.startswith(f"model.{prefix}.")}
            assert of_layer == {1e-3 * 0.5**behind}
    assert found["model.vision_model.embeddings.patch_embedding.weight"] == 1e-3 * 0.5**vision
    assert found["model.text_model.embed_tokens.weight"] == 1e-3 * 0.5 ** len(texts)
    assert found["model.vision_model.post_layernorm.weight"] == found["model.logit_scale"] == 1e-3
    if hasattr(model.model.text_model, "cross_layers"):
        layer = model.config.text_config.cross_attn_layers[0]
        assert found["model.text_model.cross_layers.0.cross_attn.q_proj.weight"] == 1e-3 * 0.5 ** (
            len(texts) - 1 - layer
        )
    assert layer_rates(model, 1e-3, None) == {}


def test_patches_are_dropped_while_training_only():
    torch.manual_seed(0)
    kept = kept_patches(torch.zeros(64, 17, 4), 0.75, num_special=1)
    assert kept.shape == (64, 5)
    assert (kept[:, 0] == 0).all()
    assert (kept.diff(dim=1) > 0).all()
    assert kept[:, 1:].unique().tolist() == list(range(1, 17))
    assert kept_patches(torch.zeros(1, 3, 4), 0.99, num_special=0).shape == (1, 1)


@pytest.mark.parametrize("kind", MODELS)
def test_a_tower_reads_the_patches_that_stay_where_they_were(kind):
    model = MODELS[kind](vision_config={"patch_dropout": 0.5}).model.vision_model
    torch.manual_seed(0)
    size = model.config.image_size
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        whole = model.eval()(images).last_hidden_state
        model.train()
        dropped = model(images).last_hidden_state
    num_special = int(model.config.use_cls_token)
    num_patches = whole.shape[1] - num_special
    assert dropped.shape[1] == num_special + round(num_patches / 2)
    model.config.patch_dropout = 1e-9  # all stay, through the same code
    with torch.no_grad():
        torch.testing.assert_close(model(images).last_hidden_state, whole)


def test_what_cannot_lose_patches_says_so():
    with pytest.raises(
        StrictDataclassClassValidationError, match="`patch_dropout` must be at least 0 and below 1, got 1"
    ):
        tiny_model(vision_config={"patch_dropout": 1.0})
    with pytest.raises(StrictDataclassClassValidationError, match="`patch_dropout` is not for a detector"):
        MammutConfig.from_preset("mammut-base", vision_config={"patch_dropout": 0.5}, detection_config={})


@pytest.mark.parametrize("kind", MODELS)
def test_sizes_of_a_checkpoint_grow(kind, tmp_path):
    model = MODELS[kind]()
    vision, text = model.config.vision_config, model.config.text_config
    size, length = vision.image_size, text.max_position_embeddings
    ids = torch.randint(5, 20, (1, length - 2))
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        expected = model.eval()(input_ids=ids, pixel_values=images)
    tables = {name: each for name, each in model.state_dict().items() if "position_embedding" in name}
    larger = size + 2 * vision.patch_size
    model.model.resize_positions(larger, length + 7)
    assert (model.config.vision_config.image_size, model.config.text_config.max_position_embeddings) == (
        larger,
        length + 7,
    )
    with torch.no_grad():
        same = model(input_ids=ids, pixel_values=images, interpolate_pos_encoding=True)
        wide = torch.randn(1, 3, larger, larger)
        longer = model(input_ids=torch.randint(5, 20, (1, length + 5)), pixel_values=wide)
    assert longer.logits.shape[1] == length + 5
    if model.model.vision_model.embeddings.position_embedding is None:
        torch.testing.assert_close(same.logits, expected.logits)
    for name, table in tables.items():
        resized = model.state_dict()[name]
        if "text_model" in name:
            has_cls = hasattr(model.model.text_model, "cls_token")  # whose position is the last
            rows = len(table) - int(has_cls)
            torch.testing.assert_close(resized[:rows], table[:rows])
            if has_cls:
                torch.testing.assert_close(resized[-1], table[-1])
            assert len(resized) == len(table) + 7
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            again(input_ids=ids, pixel_values=wide).logits, model(input_ids=ids, pixel_values=wide).logits
        )
    model.model.resize_positions(larger, length)
    assert model.config.text_config.max_position_embeddings == length
    for name in tables:
        if "text_model" in name:
            torch.testing.assert_close(model.state_dict()[name], tables[name])
    with pytest.raises(ValueError, match="`image_size` must be a multiple of `patch_size`"):
        model.model.resize_positions(larger + 1, length)


@pytest.mark.parametrize("kind", ["grr", "mammut"])
def test_scripts_go_on_from_a_checkpoint_as_their_flags_say(kind, tmp_path):
    family = {"grr": "grr-coca", "mammut": "mammut"}[kind]
    model = MODELS[kind]()
    processor = tiny_processor() if kind == "grr" else tiny_mammut_processor()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    length, size = model.config.max_position_embeddings, model.config.vision_config.image_size
    larger = size + model.config.vision_config.patch_size
    args = ModelArguments(
        model_name_or_path=str(tmp_path), lock_image_tower=True, unlock_layers=1, patch_dropout=0.25, image_size=larger,
        context_length=length + 3, layer_decay=0.8,
    )  # fmt: skip
    config = config_of(family, args)
    loaded, found = load_or_build(family, args, config, [])
    assert (config.vision_config.image_size, config.max_position_embeddings) == (larger, length + 3)  # for the script
    assert loaded.config.vision_config.patch_dropout == 0.25
    assert (loaded.config.vision_config.image_size, loaded.config.max_position_embeddings) == (larger, length + 3)
    assert found.image_processor.crop_size["height"] == larger
    assert found.tokenizer.model_max_length == length + 3
    assert not loaded.model.vision_model.embeddings.patch_embedding.weight.requires_grad
    assert loaded.model.vision_model.layers[-1].layer_norm1.weight.requires_grad
    assert isinstance(loaded, GrrCocaForConditionalGeneration if kind == "grr" else MammutForConditionalGeneration)
    plain = ModelArguments(model_name_or_path=str(tmp_path))
    loaded, _ = load_or_build(family, plain, config_of(family, plain), [])
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lock_image_tower": True}, "`lock_image_tower` is for a tower that has learned"),
        ({"unlock_layers": 2}, "`unlock_layers` is for `lock_image_tower`"),
        ({"layer_decay": 1.5}, "`layer_decay` must lie above 0 and not above 1, got 1.5"),
        ({"image_size": 0}, "`image_size` must be at least 1, got 0"),
    ],
)
def test_flags_that_could_not_be_honoured_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ModelArguments(**given)


def test_the_scripts_pass_the_rates_on():
    """Every script with `layer_decay` hands its rates to the optimiser."""
    for name in ("pretrain", "finetune_vqa", "finetune_video_qa", "trainer_grr_coca", "trainer_mammut"):
        assert load_example(name).layer_rates is layer_rates, name


def test_a_model_trained_with_dropped_patches_becomes_a_detector(tmp_path):
    tiny_mammut(vision_config={"patch_dropout": 0.5}).save_pretrained(tmp_path)
    tiny_mammut_processor().save_pretrained(tmp_path)
    detector, _ = build_detector(DetectorArguments(str(tmp_path), detection_config='{"image_size": 64}'), ["a cat"])
    assert detector.config.vision_config.patch_dropout == 0
