"""MaMMUT's two passes: parity with LAION's fork, what each pass sees, losses, saving, bad input."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageTextToText

from tests.conftest import converted, random_batch, tiny_mammut, tiny_mammut_config
from triptych import MammutForConditionalGeneration, MammutModel, MammutTextModel, MammutVisionModel
from triptych.convert.openmammut import OPENMAMMUT, convert_config
from triptych.modeling import losses
from triptych.modeling.cropped_positions import crop_positions, random_position_crops
from triptych.modeling.transformers_versions import checkpoint_activations


FIXTURES = Path(__file__).parent / "fixtures"


def close(a: torch.Tensor, b: torch.Tensor, atol: float) -> None:
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["mammut_laion_mlp", "mammut_laion_nomlp"])
@torch.no_grad()
def test_parity_with_laion(name, attn_implementation):
    folder = FIXTURES / name
    config = convert_config(json.loads((folder / "config.json").read_text()))
    model = MammutForConditionalGeneration._from_config(config, attn_implementation=attn_implementation).eval()
    original = load_file(folder / "original_state_dict.safetensors")
    model.load_state_dict(converted(original, OPENMAMMUT.origins(model.state_dict())))
    inputs, expected = load_file(folder / "inputs.safetensors"), load_file(folder / "expected.safetensors")
    ids = inputs["input_ids"]
    mask = (ids != 0).long()
    outputs = model(ids, inputs["pixel_values"], attention_mask=mask, labels=ids.masked_fill(ids == 0, -100))
    close(outputs.image_embeds, expected["image_features"], 1e-5)
    close(outputs.text_embeds, expected["text_features"], 1e-5)
    close(outputs.logits[mask.bool()], expected["caption_logits_valid"], 5e-5)
    close(outputs.contrastive_loss, expected["contrastive_loss"].reshape(()), 2e-5)
    close(outputs.caption_loss, expected["caption_loss"].reshape(()), 2e-5)
    close(outputs.loss, expected["total_loss_1_2"].reshape(()), 5e-5)
    greedy = model.generate(pixel_values=inputs["pixel_values"][:2], max_new_tokens=11, eos_token_id=None)
    assert greedy.tolist() == expected["greedy_ids"].tolist()


@torch.no_grad()
def test_the_contrastive_pass_reads_every_token_and_never_the_image(mammut_variant):
    model = tiny_mammut(mammut_variant)
    batch = random_batch(model.config, lengths=(9, 9))
    before = model(**batch)
    other_image = model(**{**batch, "pixel_values": batch["pixel_values"].flip(0)})
    close(before.text_embeds, other_image.text_embeds, 0)
    assert (before.logits - other_image.logits).abs().max() > 1e-3
    for position in range(9):
        ids = batch["input_ids"].clone()
        ids[:, position] = (ids[:, position] + 7) % 61 + 3
        changed = model(**{**batch, "input_ids": ids})
        assert (changed.text_embeds - before.text_embeds).abs().amax(dim=1).min() > 1e-4
        close(changed.logits[:, :position], before.logits[:, :position], 1e-6)  # the captioning pass is causal


@torch.no_grad()
def test_cross_attention_layers_take_no_part_in_the_contrastive_pass(mammut_variant):
    model = tiny_mammut(mammut_variant)
    batch = random_batch(model.config)
    before = model.get_text_features(batch["input_ids"]).pooler_output
    for parameter in model.model.text_model.cross_layers.parameters():
        parameter.fill_(float("nan"))
    close(model.get_text_features(batch["input_ids"]).pooler_output, before, 0)


@torch.no_grad()
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_results_do_not_depend_on_padding_or_batch(mammut_variant, attn_implementation):
    model = tiny_mammut(mammut_variant, attn_implementation)
    batch = random_batch(model.config, lengths=(5, 12, 8))
    together = model(**batch)
    for row, length in enumerate((5, 12, 8)):
        pixel_values, ids = batch["pixel_values"][row : row + 1], batch["input_ids"][row : row + 1, :length]
        alone = model(ids, pixel_values, labels=ids)
        close(together.text_embeds[row : row + 1], alone.text_embeds, 1e-5)
        close(together.logits[row : row + 1, :length], alone.logits, 1e-5)
        left = torch.nn.functional.pad(ids, (12 - length, 0))
        mask = torch.nn.functional.pad(torch.ones_like(ids), (12 - length, 0))
        on_left = model(left, pixel_values, attention_mask=mask, labels=left)
        close(on_left.text_embeds, alone.text_embeds, 1e-5)
        close(on_left.logits[:, 12 - length :], alone.logits, 1e-5)
        close(on_left.caption_loss, alone.caption_loss, 1e-5)
        close(model(left, pixel_values, labels=left).loss, on_left.loss, 1e-5)  # the mask is inferred


@torch.no_grad()
def test_laion_mode_pools_padding_and_paper_mode_does_not():
    # What the modes are for: the same text with another padding embedding.
    for variant, moves in (("laion", True), ("paper", False)):
        model = tiny_mammut(variant)
        ids = random_batch(model.config, lengths=(5, 8))["input_ids"]
        before = model.get_text_features(ids).pooler_output
        model.get_input_embeddings().weight[0] *= -1
        assert ((model.get_text_features(ids).pooler_output - before).abs().max() > 1e-3) == moves


@torch.no_grad()
def test_joint_forward_agrees_with_the_dual_encoder_and_weights_the_parts(mammut_variant):
    model = tiny_mammut(mammut_variant, contrastive_loss_weight=0.5, caption_loss_weight=3.0)
    batch = random_batch(model.config)
    joint = model(**batch)
    dual = model.model(
        batch["input_ids"], batch["pixel_values"], attention_mask=batch["attention_mask"], return_loss=True
    )
    close(joint.contrastive_loss, dual.loss, 1e-6)
    close(joint.logits_per_image, dual.logits_per_image, 1e-5)
    close(joint.loss, 0.5 * joint.contrastive_loss + 3.0 * joint.caption_loss, 1e-5)
    targets = batch["labels"][:, 1:].flatten()
    expected = torch.nn.functional.cross_entropy(joint.logits[:, :-1].flatten(0, 1), targets, ignore_index=-100)
    close(joint.caption_loss, expected, 1e-5)


@torch.no_grad()
def test_the_image_is_encoded_once_per_step_and_the_head_never_sees_the_contrastive_pass(monkeypatch):
    model = tiny_mammut().train()
    encoded, scored, log_probabilities = [], [], losses._log_probabilities
    monkeypatch.setattr(
        losses, "_log_probabilities", lambda logits: scored.append(len(logits)) or log_probabilities(logits)
    )
    model.model.vision_model.layers[0].register_forward_hook(lambda module, args, output: encoded.append(len(output)))
    batch = random_batch(model.config, lengths=(5, 12, 8))
    model(**batch)
    assert encoded == [3]
    assert scored == [5 + 12 + 8 - 3]  # one row per target token, nothing for padding


@torch.no_grad()
def test_numbers_of_images_and_texts_may_differ():
    model = tiny_mammut().model
    batch = random_batch(model.config, lengths=(5, 12, 8))
    outputs = model(batch["input_ids"], batch["pixel_values"][:2])
    assert outputs.logits_per_image.shape == (2, 3)
    with pytest.raises(ValueError, match=r"2 `image_embeds` and 3 `text_embeds`"):
        model(batch["input_ids"], batch["pixel_values"][:2], return_loss=True)


@torch.no_grad()
def test_texts_may_share_an_image():
    model = tiny_mammut(contrastive_loss_weight=0.0)
    batch = random_batch(model.config, lengths=(5, 12, 8))
    index = torch.tensor([1, 0, 1])
    shared = model(**{**batch, "pixel_values": batch["pixel_values"][:2]}, image_index=index)
    repeated = model(**{**batch, "pixel_values": batch["pixel_values"][:2][index]})
    close(shared.logits, repeated.logits, 1e-5)
    with pytest.raises(ValueError, match=r"`image_index`.*contrastive_loss_weight"):
        tiny_mammut()(**batch, image_index=index)


@pytest.mark.parametrize("attn_implementation", ["sdpa", "flex_attention"])
@torch.no_grad()
def test_attention_implementations_agree(mammut_variant, attn_implementation):
    if attn_implementation == "flex_attention" and torch.cuda.is_available():
        pytest.skip("the CPU kernel is meant")
    reference, model = tiny_mammut(mammut_variant, "eager"), tiny_mammut(mammut_variant)
    model.set_attn_implementation(attn_implementation)
    batch = random_batch(model.config)
    expected, outputs = reference(**batch), model(**batch)
    real = batch["attention_mask"].bool()
    close(outputs.logits[real], expected.logits[real], 1e-5)
    close(outputs.text_embeds, expected.text_embeds, 1e-5)
    close(outputs.image_embeds, expected.image_embeds, 1e-5)


@torch.no_grad()
def test_hidden_states_and_attention_maps(mammut_variant):
    model = tiny_mammut(mammut_variant, "eager")
    outputs = model(**random_batch(model.config), output_hidden_states=True, output_attentions=True)
    text = model.config.text_config
    assert len(outputs.hidden_states) == len(outputs.text_model_output.hidden_states) == text.num_hidden_layers + 1
    assert len(outputs.attentions) == text.num_hidden_layers
    assert len(outputs.cross_attentions) == len(text.cross_attn_layers)


def test_saved_equals_loaded_head_base_and_towers(mammut_variant, tmp_path):
    model = tiny_mammut(mammut_variant)
    model.save_pretrained(tmp_path)
    batch = random_batch(model.config)
    with torch.no_grad():
        expected = model(**batch)
        head, base = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)
        assert isinstance(head, MammutForConditionalGeneration)
        assert isinstance(base, MammutModel)
        close(head(**batch).loss, expected.loss, 0)
        close(base(batch["input_ids"], batch["pixel_values"]).logits_per_image, expected.logits_per_image, 0)
        vision, text = MammutVisionModel.from_pretrained(tmp_path), MammutTextModel.from_pretrained(tmp_path)
        close(vision(batch["pixel_values"]).last_hidden_state, expected.vision_model_output.last_hidden_state, 0)
        close(text.encode(batch["input_ids"]).pooler_output, expected.text_model_output.pooler_output, 0)


def test_every_parameter_is_initialised(mammut_variant):
    # Loading nothing must give what building gives, statistically: no memory as it was found.
    config = tiny_mammut_config(mammut_variant)
    model = MammutForConditionalGeneration.from_pretrained(None, config=config, state_dict={})
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
        assert parameter.abs().max() <= max(10.5, 6 * config.text_config.initializer_range), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision(mammut_variant, dtype):
    model = tiny_mammut(mammut_variant)
    batch = random_batch(model.config)
    expected = model(**batch)
    half = model.to(dtype)
    batch["pixel_values"] = batch["pixel_values"].to(dtype)
    outputs = half(**batch)
    assert outputs.logits.dtype == dtype
    close(outputs.loss, expected.loss, 0.1 * expected.loss.item())


def test_gradient_checkpointing_changes_nothing(mammut_variant):
    grads = []
    for checkpointing in (False, True):
        model = tiny_mammut(mammut_variant).train()
        if checkpointing:
            checkpoint_activations(model)
        model(**random_batch(model.config)).loss.backward()
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in grads[0].items():
        if gradient is None:
            assert grads[1][name] is None
        else:
            close(grads[1][name], gradient, 1e-5)


def test_overfits_eight_pairs():
    torch.manual_seed(0)
    model = MammutForConditionalGeneration(tiny_mammut_config()).train()
    batch = random_batch(model.config, lengths=(5, 12, 8, 6, 9, 10, 7, 11))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        outputs = model(**batch)
        outputs.loss.backward()
        optimizer.step()
    assert outputs.caption_loss < 0.05
    with torch.no_grad():
        similarity = model.eval()(**batch).logits_per_text
    assert similarity.argmax(dim=1).tolist() == list(range(8))


@torch.no_grad()
def test_positions_resize_and_the_configured_size_is_left_alone(mammut_variant):
    model = tiny_mammut(mammut_variant)
    larger = torch.randn(1, 3, 24, 20)
    tokens = model.get_image_features(larger, interpolate_pos_encoding=True).image_tokens
    assert tokens.shape[1] == 6 * 5 + model.config.vision_config.use_cls_token
    same = torch.randn(1, 3, 16, 16)
    close(
        model.get_image_features(same, interpolate_pos_encoding=True).image_tokens,
        model.get_image_features(same).image_tokens,
        0,
    )


def test_the_whole_box_gives_back_the_positions_and_a_part_its_own():
    rows, columns = torch.meshgrid(torch.arange(14.0), torch.arange(14.0), indexing="ij")
    table = torch.stack([rows.flatten(), columns.flatten()], dim=1)
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.5, 0.0, 0.5, 0.5]])  # left, top, width, height
    whole, upper_right = crop_positions(table, 14, 64, boxes).reshape(2, 14, 14, 2)
    inside = slice(1, -1)  # linear up to the border, where interpolation is flat
    close(whole[inside, inside], table.reshape(14, 14, 2)[inside, inside], 0.05)
    close(upper_right[inside, inside, 0].mean(), torch.tensor(3.0), 0.1)  # rows 0 to 6.5
    close(upper_right[inside, inside, 1].mean(), torch.tensor(10.0), 0.1)
    torch.manual_seed(0)
    crops = random_position_crops(table, 14, 64, 500).reshape(500, 14, 14, 2)
    assert (crops[:, 1:, :, 0] >= crops[:, :-1, :, 0] - 1e-4).all()  # never mirrored, never outside
    assert crops.min() > -1e-4
    assert crops.max() < 13 + 1e-4
    height = (crops[:, -1, 0, 0] - crops[:, 0, 0, 0]) / 13
    width = (crops[:, 0, -1, 1] - crops[:, 0, 0, 1]) / 13
    assert (height * width).min() > 0.05  # area of at least a tenth, less half a step at each border
    assert (height * width).max() < 1.01


def test_cropped_positions_are_for_training_only():
    model = tiny_mammut(vision_config={"crop_positions": True, "crop_positions_grid": 16})
    pixel_values = torch.randn(2, 3, 16, 16)
    plain = tiny_mammut()
    with torch.no_grad():
        close(
            model.get_image_features(pixel_values).pooler_output,
            plain.get_image_features(pixel_values).pooler_output,
            0,
        )
        model.train()
        first, second = (model.get_image_features(pixel_values).pooler_output for _ in range(2))
    assert (first - second).abs().max() > 1e-3
    model.get_image_features(pixel_values).pooler_output.sum().backward()
    assert model.model.vision_model.embeddings.position_embedding.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values": torch.zeros(3, 1, 16, 16)}, r"`pixel_values`.*\(batch_size, 3, .*got \(3, 1, 16, 16\)"),
        ({"pixel_values": torch.zeros(3, 3, 20, 16)}, r"`pixel_values` must be 16 x 16 pixels, got 20 x 16"),
        ({"pixel_values": torch.zeros(2, 3, 16, 16)}, r"got 2 images and 3 texts"),
        ({"pixel_values": None}, r"`pixel_values` .*is missing"),
        ({"pixel_values_videos": torch.zeros(3, 8, 3, 16, 16)}, r"exactly one of `pixel_values`"),
        ({"input_ids": torch.full((3, 12), 64)}, r"`input_ids` must lie between 0 and 63, got ids from 64 to 64"),
        ({"input_ids": torch.ones(3, 13, dtype=torch.long)}, r"texts of 13 tokens, the context is 12"),
        ({"labels": torch.full((3, 12), 64)}, r"`labels` must be -100 or lie between 0 and 63"),
    ],
)
def test_bad_input_names_the_argument(change, message):
    model = tiny_mammut()
    batch = {**random_batch(model.config), **change}
    if "input_ids" in change:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        batch.pop("labels")
    with pytest.raises(ValueError, match=message):
        model(**batch)
