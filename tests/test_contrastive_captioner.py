"""What GRR-CoCa and MaMMUT share: embeddings in fp32, learned scalars that shard, several texts per image, keys for ever."""

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tests.conftest import random_batch, tiny_config, tiny_mammut, tiny_mammut_config, tiny_model
from tests.processes import run_in_processes
from triptych.modeling.transformers_versions import CACHE_NAME, named_cache


MODELS = {"grr_coca": tiny_model, "mammut": tiny_mammut, "mammut with a bias": lambda: tiny_mammut("video")}


@pytest.fixture(params=list(MODELS))
def model(request):
    return MODELS[request.param]()


def test_embeddings_are_normalised_in_fp32_also_under_autocast(model):
    batch = random_batch(model.config)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outputs = model.model(batch["input_ids"], batch["pixel_values"], batch["attention_mask"])
        joint = model(**batch)
    for found in (outputs, joint):
        for embeds in (found.image_embeds, found.text_embeds):
            assert embeds.dtype == torch.float32
            torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(3), atol=1e-6, rtol=0)


def test_the_type_of_a_model_is_that_of_its_weights(model):
    half = model.to(torch.bfloat16)
    half.model.logit_scale.data = half.model.logit_scale.data.float()  # as `_keep_in_fp32_modules_strict` leaves it
    assert half.dtype == half.model.dtype == half.model.text_model.dtype == torch.bfloat16


def shard(rank: int, world_size: int, name: str) -> list[str]:
    model = MODELS[name]().train()
    for block in (*model.model.vision_model.layers, *model.model.text_model.layers):
        fully_shard(block)
    fully_shard(model)  # which refuses parameters without a dimension
    batch = random_batch(model.config)
    model(**batch).loss.backward()
    parameters = dict(model.named_parameters())
    assert all(isinstance(parameter, DTensor) for parameter in parameters.values())
    return [key for key, parameter in parameters.items() if "logit_" in key and parameter.grad is not None]


@pytest.mark.parametrize("name", ["grr_coca", "mammut with a bias"])
def test_fsdp2_shards_learned_scalars_too(name):
    found = run_in_processes(shard, 2, name)
    assert found == ["model.logit_scale"] + ["model.logit_bias"] * ("bias" in name)


@torch.no_grad()
def test_several_texts_of_one_image_encode_it_once(model):
    encoded = []
    model.model.vision_model.register_forward_hook(lambda *_: encoded.append(1))
    pixel_values = random_batch(model.config)["pixel_values"][:2]
    index, prompts = torch.tensor([1, 0, 1]), torch.tensor([[1, 7], [1, 8], [1, 9]])
    together = model(prompts, pixel_values, image_index=index).logits
    assert len(encoded) == 1
    torch.testing.assert_close(together, model(prompts, pixel_values[index]).logits, atol=1e-5, rtol=0)
    options = {"max_new_tokens": 5, "eos_token_id": None}
    shared = model.generate(prompts, pixel_values, image_index=index, **options)
    assert shared.tolist() == model.generate(prompts, pixel_values[index], **options).tolist()
    with pytest.raises(ValueError, match=r"`image_index` must lie between 0 and 1.*from 0 to 2"):
        model(prompts, pixel_values, image_index=torch.tensor([0, 1, 2]))


# Renaming a parameter makes every published checkpoint useless: some of each kind, with their shapes.
ANCHORS = {
    "grr_coca": {
        "lm_head.weight": (64, 32),
        "model.logit_scale": (1,),
        "model.visual_projection.weight": (32, 32),
        "model.text_projection.weight": (32, 32),
        "model.vision_model.embeddings.patch_embedding.weight": (32, 3, 4, 4),
        "model.vision_model.layers.1.self_attn.q_proj.weight": (32, 32),
        "model.vision_model.layers.1.mlp.gate_proj.weight": (48, 32),
        "model.vision_model.caption_pooler.query": (6, 32),
        "model.vision_model.contrastive_pooler.cross_attn.out_proj.bias": (32,),
        "model.text_model.embed_tokens.weight": (64, 32),
        "model.text_model.cls_token": (32,),
        "model.text_model.final_layer_norm.weight": (32,),
        "model.multimodal_decoder.layers.0.self_block.layer_norm1.weight": (32,),
        "model.multimodal_decoder.layers.1.cross_block.cross_attn.k_proj.weight": (32, 32),
        "model.multimodal_decoder.layers.1.cross_block.mlp.down_proj.weight": (32, 48),
    },
    "mammut with a bias": {
        "lm_head.weight": (64, 32),
        "model.logit_scale": (1,),
        "model.logit_bias": (1,),
        "model.vision_to_text_projection.weight": (32, 32),
        "model.vision_model.embeddings.position_gate": (1,),
        "model.vision_model.embeddings.class_embedding": (32,),
        "model.vision_model.embeddings.position_embedding.weight": (17, 32),
        "model.vision_model.embeddings.tube_embedding.kernel": (32, 3, 2, 2, 2),
        "model.vision_model.post_layernorm.weight": (32,),
        "model.text_model.position_embedding.weight": (12, 32),
        "model.text_model.layers.3.self_attn.v_proj.weight": (32, 32),
        "model.text_model.layers.0.mlp.fc1.weight": (48, 32),
        "model.text_model.cross_layers.0.cross_attn.q_proj.weight": (32, 32),
    },
}


@pytest.mark.parametrize("name", ANCHORS)
def test_parameters_keep_their_names_and_shapes(name):
    shapes = {key: tuple(value.shape) for key, value in MODELS[name]().state_dict().items()}
    assert {key: shapes.get(key) for key in ANCHORS[name]} == ANCHORS[name]
    assert not [key for key, shape in shapes.items() if shape == ()]


def test_a_tower_of_a_detector_reports_nothing_but_what_is_its_own(tmp_path, caplog):
    model = tiny_mammut()
    model.save_pretrained(tmp_path)
    from triptych import MammutVisionModel

    state = {
        **model.state_dict(),
        "pyramid.weight": torch.zeros(1),
        "model.vision_model.layers.9.extra": torch.zeros(1),
    }
    _, info = MammutVisionModel.from_pretrained(
        None, config=model.config.vision_config, state_dict=state, output_loading_info=True
    )
    assert info["missing_keys"] == set()
    assert info["unexpected_keys"] == {"layers.9.extra"}


@torch.no_grad()
@pytest.mark.parametrize("make", [tiny_model, tiny_mammut])
def test_a_cache_is_continued_also_behind_padding_ids_within_the_text(make):
    """open_clip's padding id is the token "!": transformers' own guess masks it wherever it stands."""
    model = make()
    pixel_values = random_batch(model.config)["pixel_values"]
    ids = torch.tensor([[1, 7, 0, 9], [1, 0, 8, 6], [1, 5, 4, 3]])
    options = {"max_new_tokens": 5, "eos_token_id": None}
    expected = model.generate(ids, pixel_values, attention_mask=torch.ones_like(ids), **options)
    outputs = model(ids[:, :3], pixel_values, use_cache=True)
    found = model.generate(ids, **named_cache(outputs[CACHE_NAME]), **options)
    assert found.tolist() == expected.tolist()


@torch.no_grad()
@pytest.mark.parametrize("make", [tiny_model, tiny_mammut])
def test_another_picture_beside_a_cache_is_refused(make):
    model = make()
    pixel_values, ids = random_batch(model.config)["pixel_values"], torch.ones(3, 2, dtype=torch.long)
    features = model.get_image_features(pixel_values).image_tokens
    cache = model(ids, pixel_values, use_cache=True)[CACHE_NAME]
    for call in (
        lambda: model(ids, pixel_values, **named_cache(cache)),
        lambda: model.generate(ids, pixel_values, **named_cache(cache)),
        lambda: model.generate(ids, image_tokens=features, **named_cache(cache)),
    ):
        with pytest.raises(ValueError, match=rf"`{CACHE_NAME}` holds the image"):
            call()


@pytest.mark.parametrize("make_config", [tiny_config, tiny_mammut_config])
def test_the_longest_text_is_set_where_it_is_read(make_config):
    config = make_config()
    config.max_position_embeddings = 9
    assert config.text_config.max_position_embeddings == config.max_position_embeddings == 9
    assert "max_position_embeddings" not in config.to_diff_dict()
