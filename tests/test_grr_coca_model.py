"""The dual encoder and the captioner's forward pass: parity, invariances, saving, precision, bad input."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageTextToText, AutoModelForZeroShotImageClassification

from tests.conftest import converted, random_batch, tiny_config, tiny_model
from triptych import GrrCocaForConditionalGeneration, GrrCocaModel, GrrCocaTextModel, GrrCocaVisionModel
from triptych.convert.open_clip_coca import COCA, convert_config
from triptych.modeling.transformers_versions import checkpoint_activations


FIXTURE = Path(__file__).parent / "fixtures" / "coca_open_clip"


@pytest.fixture(scope="module")
def open_clip_tensors() -> tuple[dict, dict]:
    return load_file(FIXTURE / "inputs.safetensors"), load_file(FIXTURE / "expected.safetensors")


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def open_clip_model(request) -> GrrCocaForConditionalGeneration:
    config = convert_config(json.loads((FIXTURE / "config.json").read_text()))
    model = GrrCocaForConditionalGeneration._from_config(config, attn_implementation=request.param)
    original = load_file(FIXTURE / "original_state_dict.safetensors")
    model.load_state_dict(converted(original, COCA.origins(model.state_dict())))
    return model.eval()


def close(a: torch.Tensor, b: torch.Tensor, atol: float) -> None:
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


@torch.no_grad()
def test_parity_with_open_clip(open_clip_model, open_clip_tensors):
    inputs, expected = open_clip_tensors
    ids = inputs["input_ids"]
    mask = (ids != 0).long()
    outputs = open_clip_model(ids, inputs["pixel_values"], mask, labels=ids.masked_fill(ids == 0, -100))
    close(outputs.image_embeds, expected["image_features"], 1e-5)
    close(outputs.text_embeds, expected["text_features"], 1e-5)
    close(outputs.logits[mask.bool()], expected["caption_logits_valid"], 5e-5)
    close(outputs.contrastive_loss, expected["contrastive_loss"].reshape(()), 2e-5)
    close(outputs.caption_loss, expected["caption_loss"].reshape(()), 2e-5)
    close(outputs.loss, expected["total_loss_1_2"].reshape(()), 5e-5)
    close(open_clip_model.model.logit_scale.exp(), expected["logit_scale"].reshape(1), 1e-4)


def test_greedy_captions_equal_open_clip(open_clip_model, open_clip_tensors):
    inputs, expected = open_clip_tensors
    ids = open_clip_model.generate(pixel_values=inputs["pixel_values"][:2], max_new_tokens=11, eos_token_id=None)
    assert ids.tolist() == expected["greedy_ids"].tolist()


def legacy_cls_mask(ids: torch.Tensor) -> torch.Tensor:
    """open_clip's mask of the CLS row over [tokens, CLS], written from its definition: validity shifted by one."""
    return torch.cat([torch.ones(len(ids), 1, dtype=torch.bool), ids != 0], dim=1)


@torch.no_grad()
def test_legacy_cls_mask_follows_its_definition_with_padding_ids_inside():
    # An independent forward pass over the padded text with the shifted mask on the CLS row, as the weights were trained.
    model = tiny_model("open_clip", attn_implementation="eager").model.text_model
    longest = model.config.max_position_embeddings
    ids = torch.tensor([[1, 5, 0, 7, 8, 0, 9, 2], [1, 5, 6, 7, 8, 4, 9, 0]])
    mask = torch.ones_like(ids)
    padded = torch.nn.functional.pad(ids, (0, longest - ids.shape[1]))
    states = torch.cat([model.embed_tokens(padded), model.cls_token.expand(2, 1, -1)], dim=1)
    states = states + model.position_embedding.weight
    allowed = torch.ones(longest + 1, longest + 1).tril().bool().repeat(2, 1, 1)
    allowed[:, -1] = legacy_cls_mask(padded)
    bias = torch.zeros_like(allowed, dtype=torch.float).masked_fill(~allowed, -1e9)[:, None]
    for layer in model.layers:
        states = layer(states, attention_mask=bias)
    close(model(ids, attention_mask=mask).pooler_output, model.final_layer_norm(states[:, -1]), 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_results_do_not_depend_on_padding_or_batch(variant, attn_implementation):
    model = tiny_model(variant, attn_implementation)
    batch = random_batch(model.config, lengths=(5, 12, 8))
    together = model(**batch)
    for row, length in enumerate((5, 12, 8)):
        pixel_values, ids = batch["pixel_values"][row : row + 1], batch["input_ids"][row : row + 1, :length]
        alone = model(ids, pixel_values, labels=ids)
        close(together.text_embeds[row : row + 1], alone.text_embeds, 1e-5)
        close(together.logits[row : row + 1, :length], alone.logits, 1e-5)
        left = torch.nn.functional.pad(ids, (12 - length, 0))
        mask = torch.nn.functional.pad(torch.ones_like(ids), (12 - length, 0))
        on_left = model(left, pixel_values, mask, labels=left)
        close(on_left.text_embeds, alone.text_embeds, 1e-5)
        close(on_left.logits[:, 12 - length :], alone.logits, 1e-5)
        close(on_left.caption_loss, alone.caption_loss, 1e-5)
        close(model(left, pixel_values, labels=left).loss, on_left.loss, 1e-5)  # the mask is inferred


@torch.no_grad()
def test_token_states_are_causal_and_the_text_embedding_reads_every_token(variant):
    model = tiny_model(variant)
    batch = random_batch(model.config, lengths=(9, 9))
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][:, 6] = (changed["input_ids"][:, 6] - 3 + 7) % 61 + 3
    before, after = model(**batch), model(**changed)
    close(before.logits[:, :6], after.logits[:, :6], 1e-6)
    assert (before.logits[:, 6:] - after.logits[:, 6:]).abs().max() > 1e-3
    assert (before.text_embeds - after.text_embeds).abs().max() > 1e-4


@torch.no_grad()
def test_logits_depend_on_the_image_and_text_embeddings_do_not(variant):
    model = tiny_model(variant)
    batch = random_batch(model.config)
    other = {**batch, "pixel_values": batch["pixel_values"].flip(0)}
    before, after = model(**batch), model(**other)
    assert (before.logits - after.logits).abs().max() > 1e-3
    close(before.text_embeds, after.text_embeds, 0)


@torch.no_grad()
def test_numbers_of_images_and_texts_may_differ():
    model = tiny_model().model
    batch = random_batch(model.config, lengths=(5, 12, 8))
    outputs = model(batch["input_ids"], batch["pixel_values"][:2], batch["attention_mask"])
    assert outputs.logits_per_image.shape == (2, 3)
    close(outputs.logits_per_image, outputs.logits_per_text.T, 0)
    close(outputs.image_embeds.norm(dim=-1), torch.ones(2), 1e-5)
    with pytest.raises(ValueError, match=r"2 `image_embeds` and 3 `text_embeds`"):
        model(batch["input_ids"], batch["pixel_values"][:2], batch["attention_mask"], return_loss=True)


@torch.no_grad()
def test_joint_forward_agrees_with_the_dual_encoder_and_weights_the_parts():
    model = tiny_model(contrastive_loss_weight=0.5, caption_loss_weight=3.0)
    batch = random_batch(model.config)
    joint = model(**batch)
    dual = model.model(batch["input_ids"], batch["pixel_values"], batch["attention_mask"], return_loss=True)
    close(joint.contrastive_loss, dual.loss, 1e-6)
    close(joint.logits_per_image, dual.logits_per_image, 1e-5)
    close(joint.loss, 0.5 * joint.contrastive_loss + 3.0 * joint.caption_loss, 1e-6)
    targets = batch["labels"][:, 1:].flatten()
    expected = torch.nn.functional.cross_entropy(joint.logits[:, :-1].flatten(0, 1), targets, ignore_index=-100)
    close(joint.caption_loss, expected, 1e-5)


@torch.no_grad()
def test_logits_can_be_restricted_or_left_out():
    model = tiny_model()
    batch = random_batch(model.config)
    full = model(**batch).logits
    close(model(**batch, logits_to_keep=2).logits, full[:, -2:], 1e-6)
    close(model(**batch, logits_to_keep=torch.tensor([0, 3])).logits, full[:, [0, 3]], 1e-6)
    supervised = batch["labels"] != -100
    close(model(**batch, logits_to_keep=supervised).logits, full[supervised], 1e-6)
    assert model(**batch, skip_logits=True).logits is None
    assert model.train()(**batch).logits is None
    assert model(**batch, skip_logits=False).logits is not None


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa", "flex_attention"])
@torch.no_grad()
def test_attention_implementations_agree(variant, attn_implementation):
    if attn_implementation == "flex_attention" and torch.cuda.is_available():
        pytest.skip("the CPU kernel is meant")
    reference, model = tiny_model(variant, "eager"), tiny_model(variant)
    model.set_attn_implementation(attn_implementation)
    batch = random_batch(model.config)
    expected, outputs = reference(**batch), model(**batch)
    real = batch["attention_mask"].bool()
    close(outputs.logits[real], expected.logits[real], 1e-5)
    close(outputs.text_embeds, expected.text_embeds, 1e-5)
    close(outputs.image_embeds, expected.image_embeds, 1e-5)


def test_the_legacy_mask_refuses_flash_attention_instead_of_ignoring_it():
    model = tiny_model("open_clip").model.text_model
    model.config._attn_implementation = "flash_attention_2"  # the package itself needs a GPU
    with pytest.raises(ValueError, match=r"legacy.*flash attention cannot.*sdpa"):
        model(torch.ones(1, 3, dtype=torch.long))


@torch.no_grad()
def test_hidden_states_and_attention_maps(variant):
    model = tiny_model(variant, "eager")
    batch = random_batch(model.config)
    batch.pop("labels")
    outputs = model(**batch, output_hidden_states=True, output_attentions=True)
    text, vision = model.config.text_config, model.config.vision_config
    assert len(outputs.hidden_states) == text.num_multimodal_layers + 1
    assert len(outputs.text_model_output.hidden_states) == text.num_unimodal_layers + 1
    assert len(outputs.vision_model_output.hidden_states) == vision.num_hidden_layers + 1
    assert len(outputs.attentions) == len(outputs.cross_attentions) == text.num_multimodal_layers
    num_image_tokens = outputs.image_tokens.shape[1]
    assert outputs.cross_attentions[0].shape == (3, text.num_attention_heads, 12, num_image_tokens)
    close(outputs.cross_attentions[0].sum(-1), torch.ones(3, text.num_attention_heads, 12), 1e-5)


def test_fresh_models_are_initialised_everywhere(variant):
    # Loading nothing must give what construction gives: an uncovered parameter would hold uninitialised memory.
    torch.manual_seed(0)
    model = GrrCocaForConditionalGeneration.from_pretrained(None, config=tiny_config(variant), state_dict={})
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), name
        if name.endswith("query"):
            assert 0.7 < parameter.std() < 1.3, name
        elif parameter.ndim >= 2 or name.endswith(("cls_token", "class_embedding")):
            assert 0.01 < parameter.std() < 0.03, name
        elif name.endswith("norm.weight") or ("layer_norm" in name and name.endswith("weight")):
            assert (parameter == 1).all(), name
    assert model.model.logit_scale.item() == pytest.approx(math.log(1 / 0.07))


@torch.no_grad()
def test_save_and_load_through_every_class(tmp_path, variant):
    model = tiny_model(variant)
    batch = random_batch(model.config)
    expected = model(**batch)
    model.save_pretrained(tmp_path / "head")
    head, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "head", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    close(head(**batch).logits, expected.logits, 0)
    base = AutoModel.from_pretrained(tmp_path / "head")
    assert type(base) is GrrCocaModel
    batch.pop("labels")
    close(base(**batch).logits_per_image, expected.logits_per_image, 1e-6)
    base.save_pretrained(tmp_path / "base")
    again = AutoModelForZeroShotImageClassification.from_pretrained(tmp_path / "base")
    close(again(**batch).logits_per_image, expected.logits_per_image, 1e-6)
    back, info = GrrCocaForConditionalGeneration.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert set(info["missing_keys"]) == {"lm_head.weight"}
    real = batch["attention_mask"].bool()  # what stands at padding means nothing
    states = back(**batch).text_model_output.last_hidden_state[real]
    close(states, expected.text_model_output.last_hidden_state[real], 1e-6)


@torch.no_grad()
def test_towers_load_from_the_whole_checkpoint_and_from_their_own(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "whole")
    pixel_values, ids = torch.randn(1, 3, 16, 16), torch.tensor([[1, 5, 2]])
    for source in ("whole", "own"):
        vision = GrrCocaVisionModel.from_pretrained(tmp_path / ("whole" if source == "whole" else "vision"))
        text = GrrCocaTextModel.from_pretrained(tmp_path / ("whole" if source == "whole" else "text"))
        close(vision(pixel_values).pooler_output, model.model.vision_model(pixel_values).pooler_output, 1e-6)
        close(text(ids).pooler_output, model.model.text_model(ids).pooler_output, 1e-6)
        vision.save_pretrained(tmp_path / "vision")
        text.save_pretrained(tmp_path / "text")


@torch.no_grad()
def test_similarities_stay_in_full_precision_under_autocast():
    model = tiny_model()
    batch = random_batch(model.config)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(**batch)
    assert outputs.logits_per_image.dtype == outputs.loss.dtype == torch.float32
    expected = model.model.logit_scale.exp() * outputs.text_embeds.float() @ outputs.image_embeds.float().T
    close(outputs.logits_per_text, expected, 1e-5)


def test_tied_embeddings_stay_tied(tmp_path):
    model = tiny_model(tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.text_model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    loaded = GrrCocaForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.text_model.embed_tokens.weight
    close(loaded.lm_head.weight, model.lm_head.weight, 0)


def test_resizing_the_vocabulary():
    model = tiny_model()
    model.resize_token_embeddings(70)
    batch = random_batch(model.config)
    assert model.config.text_config.vocab_size == 70
    assert model(**batch).logits.shape[-1] == 70


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_temperature_and_stays_close(tmp_path, variant, dtype):
    model = tiny_model(variant)
    batch = random_batch(model.config)
    expected = model(**batch)
    model.save_pretrained(tmp_path)
    half = GrrCocaForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    assert half.lm_head.weight.dtype == dtype
    assert half.model.logit_scale.dtype == torch.float32
    outputs = half(**batch)
    assert outputs.loss.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(outputs.image_embeds.float(), expected.image_embeds).min() > 0.99
    assert outputs.loss.item() == pytest.approx(expected.loss.item(), rel=0.05)


def gradients(model: torch.nn.Module, batch: dict) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**batch).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_gradient_checkpointing_changes_nothing_and_reaches_every_parameter(variant):
    model = tiny_model(variant).train()
    batch = random_batch(model.config)
    expected = gradients(model, batch)
    assert expected.keys() == dict(model.named_parameters()).keys()
    checkpoint_activations(model)
    found = gradients(model, batch)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        close(found[name], gradient, 1e-5)


@torch.no_grad()
def test_compiled_forward_equals_eager():
    model = tiny_model()
    batch = random_batch(model.config)
    expected = model(**batch)
    outputs = torch.compile(model, fullgraph=True, backend="aot_eager")(**batch)
    close(outputs.logits, expected.logits, 1e-5)
    close(outputs.loss, expected.loss, 1e-5)


def test_compiled_training_step_equals_eager():
    model = tiny_model().train()
    batch = random_batch(model.config)
    expected = gradients(model, batch)
    model.zero_grad()
    torch.compile(model, fullgraph=True, backend="aot_eager")(**batch).loss.backward()
    for name, parameter in model.named_parameters():
        close(parameter.grad, expected[name], 1e-5)


@torch.no_grad()
def test_other_image_sizes_on_request(variant):
    model = tiny_model(variant)
    larger = torch.randn(1, 3, 24, 20)
    assert model.get_image_features(larger, interpolate_pos_encoding=True).image_tokens.isfinite().all()
    same = torch.randn(1, 3, 16, 16)
    close(
        model.get_image_features(same, interpolate_pos_encoding=True).pooler_output,
        model.get_image_features(same).pooler_output,
        0,
    )


@torch.no_grad()
def test_two_axes_of_rope_tell_rows_from_columns():
    # One-dimensional RoPE over the flattened grid sees a patch and the one below it 4 steps apart, axial RoPE one row.
    model = tiny_model("grr-axial").model.vision_model
    positions = model.embeddings.rotary_positions(torch.zeros(1, 3, 16, 16))
    assert positions.shape == (1, 17, 2)
    assert positions[0, 0].tolist() == [0, 0]  # class token
    assert positions[0, 1 + 4 * 2 + 3].tolist() == [2, 3]


def test_overfits_eight_pairs():
    torch.manual_seed(0)
    model = GrrCocaForConditionalGeneration(tiny_config()).train()
    batch = random_batch(model.config, lengths=(5, 12, 8, 6, 9, 10, 7, 11))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        outputs = model(**batch)
        outputs.loss.backward()
        optimizer.step()
    assert outputs.caption_loss < 0.05
    assert outputs.contrastive_loss < 0.05
    prompt_free = model.eval().generate(pixel_values=batch["pixel_values"], max_new_tokens=11, eos_token_id=None)
    targets = batch["labels"]
    assert (prompt_free[targets != -100] == targets[targets != -100]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values": torch.zeros(3, 1, 16, 16)}, r"`pixel_values`.*\(batch_size, 3, .*got \(3, 1, 16, 16\)"),
        ({"pixel_values": torch.zeros(3, 4, 16, 16)}, r"`pixel_values`.*got \(3, 4, 16, 16\)"),
        ({"pixel_values": torch.zeros(3, 3, 20, 16)}, r"`pixel_values` must be 16 x 16 pixels, got 20 x 16"),
        ({"pixel_values": torch.zeros(0, 3, 16, 16)}, r"`pixel_values`.*at least one image"),
        ({"pixel_values": torch.zeros(2, 3, 16, 16)}, r"got 2 images and 3 texts"),
        ({"pixel_values": None}, r"`pixel_values` .*is missing"),
        ({"input_ids": torch.full((3, 12), 64)}, r"`input_ids` must lie between 0 and 63, got ids from 64 to 64"),
        ({"input_ids": torch.full((3, 12), -1)}, r"`input_ids` must lie between 0 and 63"),
        (
            {"input_ids": torch.ones(3, 13, dtype=torch.long)},
            r"`input_ids` holds texts of 13 tokens, the context is 12",
        ),
        ({"input_ids": torch.ones(0, 4, dtype=torch.long)}, r"`input_ids` must hold at least one text"),
        ({"labels": torch.full((3, 12), 64)}, r"`labels` must be -100 or lie between 0 and 63"),
        ({"labels": torch.full((3, 11), 5)}, r"`labels`.*expected shape \(3, 12\), got \(3, 11\)"),
        ({"inputs_embeds": torch.zeros(3, 12, 32)}, r"exactly one of `input_ids` and `inputs_embeds`"),
    ],
)
def test_bad_input_names_the_argument(change, message):
    model = tiny_model()
    batch = {**random_batch(model.config), **change}
    if "input_ids" in change:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        batch.pop("labels")
    with pytest.raises(ValueError, match=message):
        model(**batch)
