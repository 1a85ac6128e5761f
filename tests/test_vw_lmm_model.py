"""VW-LMM: parity with the authors' code, both losses, padding, caches, adapters."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.conftest import converted, tiny_mammut, tiny_model, tiny_vw_lmm, tiny_vw_lmm_config, vw_lmm_batch
from triptych import VwLmmConfig, VwLmmForCausalLM, VwLmmModel
from triptych.convert.vw_lmm import convert_config, origins
from triptych.modeling.losses import captioning_loss, visual_modeling_loss
from triptych.modeling.transformers_versions import SHARES_IMAGES_OUT


FIXTURES = Path(__file__).parent / "fixtures"


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


# The authors' code


class Fixture:
    def __init__(self, name: str):
        folder = FIXTURES / name
        config = json.loads((folder / "config.json").read_text())
        self.config = convert_config(config, pseudo_image_features="pif" in name)
        self.model = VwLmmForCausalLM(self.config).eval()
        original = load_file(folder / "original_state_dict.safetensors")
        self.model.load_state_dict(converted(original, origins(self.model.state_dict())))
        self.inputs = load_file(folder / "inputs.safetensors")
        self.expected = load_file(folder / "expected.safetensors")
        self.pixel_values = self.inputs["pixel_values"][self.inputs["used_image_rows"]]

    def expand(self, ids: list[int], others: list[int]) -> tuple[list[int], list[int]]:
        """-200 stands for a whole image there, one of our placeholders for a patch."""
        wide_ids, wide_others = [], []
        for token, other in zip(ids, others, strict=True):
            count = self.config.image_seq_length if token == -200 else 1
            wide_ids += [self.config.image_token_id if token == -200 else token] * count
            wide_others += [other] * count
        return wide_ids, wide_others

    def batch(self) -> dict[str, torch.Tensor]:
        mask = self.expected["spliced_attention_mask"].long()
        ids, labels = torch.zeros_like(mask), torch.full_like(mask, -100)
        for row in range(len(mask)):
            real = self.inputs["attention_mask"][row].bool()
            wide = self.expand(self.inputs["input_ids"][row][real].tolist(), self.inputs["labels"][row][real].tolist())
            ids[row, : len(wide[0])], labels[row, : len(wide[1])] = map(torch.tensor, wide)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, "pixel_values": self.pixel_values}


@pytest.fixture(scope="module", params=["vw_llama", "vw_pif_llama"])
def authors(request) -> Fixture:
    return Fixture(request.param)


def test_parity_of_logits_and_losses(authors):
    with torch.no_grad():
        outputs = authors.model(**authors.batch())
    expected, real = authors.expected, authors.expected["spliced_attention_mask"].bool()
    close(outputs.image_hidden_states, expected["image_features"])
    words = expected["logits"].shape[-1]
    close(outputs.logits[real][:, :words], expected["logits"][real], 5e-5)
    assert (outputs.logits[..., words:] == torch.finfo(torch.float32).min).all()
    close(outputs.language_loss, expected["lm_loss"])
    close(outputs.visual_loss, expected["visual_loss"])
    close(outputs.loss, expected["loss"], 2e-5)


def test_parity_of_the_stage_before(authors, monkeypatch):
    monkeypatch.setattr(authors.config, "visual_loss", "fit_vm_head")
    with torch.no_grad():
        close(authors.model(**authors.batch()).visual_loss, authors.expected["visual_loss_stage3"])


def test_parity_of_visual_words(authors):
    with torch.no_grad():
        words = authors.model.get_visual_words(authors.pixel_values, top_k=128)
    assert (words.ids[..., 0] == authors.expected["visual_word_ids"]).all()
    assert words.ids.max() < 128  # none is a reserved row
    by_id = torch.zeros_like(words.probabilities).scatter_(-1, words.ids, words.probabilities)
    close(by_id, authors.expected["visual_word_probs"])


def test_parity_of_answers(authors):
    prompt = authors.inputs["greedy_prompt_ids"][0].tolist()
    ids = torch.tensor([authors.expand(prompt, prompt)[0]])
    image = authors.inputs["pixel_values"][authors.inputs["greedy_image_row"]]
    answer = authors.model.generate(ids, pixel_values=image, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    assert (answer[:, ids.shape[1] :] == authors.expected["greedy_new_ids"]).all()


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("vw-lmm-vicuna-7b", 7_193_974_784),
        ("vw-lmm-vicuna-7b-pif", 7_193_974_784),
        ("vw-lmm-mistral-7b", 7_697_291_264),
    ],
)
def test_presets_have_the_released_number_of_parameters(preset, parameters):
    config = VwLmmConfig.from_preset(preset)
    with torch.device("meta"):
        model = VwLmmForCausalLM(config)
    reserved = 3 * config.num_reserved_tokens * config.text_config.hidden_size  # embeddings and two heads
    assert model.num_parameters() == parameters + reserved
    assert config.image_seq_length == 576
    assert config.pseudo_image_features == preset.endswith("pif")


# The specification's vectors (fp64, independent of any checkpoint)

POSITIONS, WORDS = torch.arange(5, dtype=torch.float64)[:, None], torch.arange(6, dtype=torch.float64)
LM_LOGITS = (1 + 0.7 * POSITIONS + 1.3 * WORDS).sin()
VM_LOGITS = (0.4 * POSITIONS + 0.9 * WORDS).cos()


class Passthrough(nn.Module):
    """A head whose states are logits already."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states


def identity(size: int = 6) -> nn.Linear:
    head = nn.Linear(size, size, bias=False).double()
    nn.init.eye_(head.weight)
    return head


@pytest.mark.parametrize("head", [identity, Passthrough])
@pytest.mark.parametrize(("kind", "expected"), [("visual_words", 0.06442044), ("fit_vm_head", 0.06515968)])
def test_visual_loss_of_the_vectors(head, kind, expected):
    loss = visual_modeling_loss(LM_LOGITS[0:3], VM_LOGITS[1:4], head(), head(), kind)
    assert loss.item() == pytest.approx(expected, abs=1e-7)


def test_language_loss_of_the_vectors():
    labels = torch.tensor([[-100, -100, -100, -100, 4]])
    assert captioning_loss(LM_LOGITS[None], labels, identity()).item() == pytest.approx(1.07732195, abs=1e-7)


def test_pseudo_features_of_the_vectors():
    model = tiny_vw_lmm(text_config={"vocab_size": 7, "hidden_size": 8}, image_token_id=6)
    dims = torch.arange(8, dtype=torch.float64)
    with torch.no_grad():
        model.double().get_input_embeddings().weight[:6] = (0.5 * WORDS[:, None] + dims).sin()
        model.vm_head.weight.zero_()
        model.vm_head.weight[:6, 0] = VM_LOGITS[1]
        one = torch.zeros(1, 1, 8, dtype=torch.float64)
        one[..., 0] = 1
        found = model.get_pseudo_image_features(one)[0, 0, :3]
    # the softmax is in fp32
    close(found, torch.tensor([0.41053970, 0.58650074, 0.22323571], dtype=torch.float64), 1e-7)


def test_a_certain_visual_word_is_its_embedding():
    model = tiny_vw_lmm()
    features = torch.randn(1, 2, 32)
    with torch.no_grad():
        model.vm_head.weight.zero_()
        model.vm_head.weight[[7, 9]] = 1000 * features[0] / features[0].norm(dim=-1, keepdim=True) ** 2
        model.vm_head.weight[7] -= (
            1000 * features[0, 1] * (features[0, 0] @ features[0, 1]) / features[0, 1].norm() ** 4
        )
        found = model.get_pseudo_image_features(features)
        word = model.vm_head(features).softmax(-1)
    rows = model.get_input_embeddings().weight[word[0].argmax(-1)]
    assert word.max(-1).values.min() > 1 - 1e-6
    close(found[0], rows)


# The chunked loss against its definition


def naive(states, features, lm_head, vm_head, kind, detach, temperature):
    target, student = vm_head(features) / temperature, lm_head(states) / temperature
    if kind == "fit_vm_head":
        target, student = student, target
    target = target.softmax(-1)
    target = target.detach() if detach else target
    return nn.functional.kl_div(student.log_softmax(-1), target, reduction="batchmean")


@pytest.mark.parametrize("kind", ["visual_words", "fit_vm_head"])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("plain", [False, True], ids=["modules", "weights"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_visual_loss_is_its_definition_in_value_and_gradient(kind, detach, plain, temperature):
    torch.manual_seed(0)
    states, features = torch.randn(13, 16, requires_grad=True), torch.randn(13, 16, requires_grad=True)
    heads = [nn.Linear(16, 40, bias=not plain) for _ in range(2)]
    inputs = [states, features, heads[0].weight, heads[1].weight]
    expected = naive(states, features, *heads, kind, detach, temperature)
    gradients = torch.autograd.grad(expected, inputs, allow_unused=True)
    for chunk_size in (4, 13, None):
        loss = visual_modeling_loss(states, features, *heads, kind, detach, temperature, chunk_size=chunk_size)
        close(loss, expected)
        for found, wanted in zip(torch.autograd.grad(loss, inputs, allow_unused=True), gradients, strict=True):
            close(torch.zeros(1) if found is None else found, torch.zeros(1) if wanted is None else wanted)


def test_visual_loss_is_zero_where_the_prediction_is_the_visual_word():
    states, head = torch.randn(5, 8), nn.Linear(8, 30, bias=False)
    assert visual_modeling_loss(states, states, head, head).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("chunk_size", [1, 2, None])
def test_visual_loss_of_half_precision_is_near_the_full_one(chunk_size):
    """Nine rows are also a last block that is shorter than the others."""
    torch.manual_seed(0)
    states, features = torch.randn(9, 32, requires_grad=True), torch.randn(9, 32, requires_grad=True)
    heads = [nn.Linear(32, 50, bias=False) for _ in range(2)]
    inputs = [states, features, heads[0].weight, heads[1].weight]
    full = visual_modeling_loss(states, features, *heads)
    gradients = torch.autograd.grad(full, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        half = visual_modeling_loss(states, features, *heads, chunk_size=chunk_size)
    assert half.dtype == torch.float32
    close(half, full, 0.02)
    for found, wanted in zip(torch.autograd.grad(half, inputs), gradients, strict=True):
        assert found.dtype == torch.float32
        assert (found - wanted).norm() < 0.02 * wanted.norm()


def test_bad_visual_losses():
    states, head = torch.randn(2, 4), nn.Linear(4, 5, bias=False)
    loss = visual_modeling_loss(states, states, head, head)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="call `backward` once per forward pass"):
        loss.backward()
    with pytest.raises(ValueError, match="`kind` must be"):
        visual_modeling_loss(states, states, head, head, "none")
    with pytest.raises(ValueError, match="got 2 `hidden_states` and 1 `image_features`"):
        visual_modeling_loss(states, states[:1], head, head)


# The model


@pytest.mark.parametrize("pif", [False, True], ids=["plain", "pif"])
def test_padding_and_batch_composition_change_nothing(pif):
    model, batch = tiny_vw_lmm(pseudo_image_features=pif), vw_lmm_batch()
    del batch["labels"]
    with torch.no_grad():
        together = model(**batch).logits
        left = {key: batch[key].clone() for key in ("input_ids", "attention_mask")}
        lengths = batch["attention_mask"].sum(-1).tolist()
        for row, length in enumerate(lengths):
            for key, value in left.items():
                value[row] = batch[key][row].roll(value.shape[1] - length)
        padded_left = model(**left, pixel_values=batch["pixel_values"]).logits
        for row, (length, images) in enumerate(zip(lengths, ([0], [], [1, 2]), strict=True)):
            pixels = batch["pixel_values"][images] if images else None
            alone = model(batch["input_ids"][row : row + 1, :length], pixels).logits[0]
            close(together[row, :length], alone)
            close(padded_left[row, -length:], alone)


def test_losses_do_not_depend_on_the_padding_side():
    model, batch = tiny_vw_lmm(), vw_lmm_batch()
    left = {key: value.clone() for key, value in batch.items()}
    for row, length in enumerate(batch["attention_mask"].sum(-1).tolist()):
        for key in ("input_ids", "attention_mask", "labels"):
            left[key][row] = batch[key][row].roll(left[key].shape[1] - length)
    with torch.no_grad():
        close(model(**left).loss, model(**batch).loss)


@pytest.mark.parametrize("pif", [False, True], ids=["plain", "pif"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 3},
        {"assistant_model": 1},
        {"prefill_chunk_size": 3},
        {"encoder_repetition_penalty": 1.5, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    ],
    ids=["greedy", "beams", "sequences", "static", "lookup", "assistant", "chunks", "penalties"],
)
def test_cached_answers_are_the_uncached_ones(pif, options):
    model, batch = tiny_vw_lmm(pseudo_image_features=pif), vw_lmm_batch()
    options = dict(options)
    rows = 1 if {"prompt_lookup_num_tokens", "assistant_model"} & options.keys() else 3
    if "assistant_model" in options:
        options["assistant_model"] = tiny_vw_lmm(pseudo_image_features=pif, seed=1)
    # Prompts of unequal length, padded on the left; the last one has two images.
    ids, mask = batch["input_ids"][-rows:].clone(), batch["attention_mask"][-rows:].clone()
    for row, length in enumerate(mask.sum(-1).tolist()):
        ids[row], mask[row] = ids[row].roll(-length), mask[row].roll(-length)
    pixels = batch["pixel_values"][-2:] if rows == 1 else batch["pixel_values"]
    common = {
        "attention_mask": mask,
        "pixel_values": pixels,
        "max_new_tokens": 6,
        "min_new_tokens": 6,
        "do_sample": False,
    }
    if "prefill_chunk_size" in options and not SHARES_IMAGES_OUT:
        with pytest.raises(ValueError, match="`prefill_chunk_size` of prompts with images needs a newer transformers"):
            model.generate(ids, **common, **options)
        return
    cached = model.generate(ids, **common, **options)
    for name in ("cache_implementation", "prompt_lookup_num_tokens", "assistant_model", "prefill_chunk_size"):
        options.pop(name, None)
    assert (cached[:, ids.shape[1] :] < 64).all()
    assert (cached == model.generate(ids, **common, **options, use_cache=False)).all()


@pytest.mark.parametrize("pif", [False, True], ids=["plain", "pif"])
def test_embeddings_stand_for_ids(pif):
    model, batch = tiny_vw_lmm(pseudo_image_features=pif), vw_lmm_batch()
    ids = batch.pop("input_ids")
    with torch.no_grad():
        embeds = model.get_input_embeddings()(ids)
        expected, found = model(ids, **batch), model(inputs_embeds=embeds, **batch)
    close(found.logits, expected.logits)
    close(found.loss, expected.loss)
    options = {"pixel_values": batch["pixel_values"][:1], "max_new_tokens": 6, "do_sample": False}
    answer = model.generate(inputs_embeds=embeds[:1, :7], **options)
    assert torch.equal(answer, model.generate(ids[:1, :7], **options)[:, 7:])


def test_reserved_rows_change_nothing():
    """The same words with one and with fifty reserved rows behind them: the same losses and gradients."""
    few, batch = tiny_vw_lmm(), vw_lmm_batch()
    many = tiny_vw_lmm(text_config={"vocab_size": 114}, image_token_id=64, num_reserved_tokens=50)
    state = few.state_dict()
    for name, tensor in many.state_dict().items():
        tensor[: len(state[name])] = state[name]
    outputs = [model(**batch) for model in (few, many)]
    close(outputs[1].logits[..., :64], outputs[0].logits[..., :64])
    for name in ("language_loss", "visual_loss"):
        close(outputs[1][name], outputs[0][name])
    for model, output in zip((few, many), outputs, strict=True):
        output.loss.backward()
        for head in (model.lm_head, model.vm_head):
            assert not head.weight.grad[64:].any()
    close(many.lm_head.weight.grad[:64], few.lm_head.weight.grad[:64])
    close(many.vm_head.weight.grad[:64], few.vm_head.weight.grad[:64])
    with pytest.raises(StrictDataclassError, match="lies behind the vocabulary of 114 tokens"):
        tiny_vw_lmm_config(text_config={"vocab_size": 114}, image_token_id=64, num_reserved_tokens=51)


def test_plain_inference_never_runs_the_vm_head():
    model, batch = tiny_vw_lmm(), vw_lmm_batch()
    del batch["labels"]
    model.vm_head.register_forward_hook(lambda *_: pytest.fail("`vm_head` was run"))
    with torch.no_grad():
        model(**batch)


@pytest.mark.parametrize("case", ["both", "no images", "no answers", "neither"])
@pytest.mark.parametrize("visual_loss", ["visual_words", "fit_vm_head", "none"])
def test_degenerate_batches_touch_every_trainable_parameter(case, visual_loss):
    model, batch = tiny_vw_lmm(visual_loss=visual_loss).train(), vw_lmm_batch()
    if case in ("no images", "neither"):
        batch = {key: value[1:2] for key, value in batch.items() if key != "pixel_values"}
    if case in ("no answers", "neither"):
        batch["labels"] = torch.full_like(batch["labels"], -100)
    loss = model(**batch).loss
    assert loss.isfinite()
    loss.backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_the_first_patch_is_predicted_by_the_token_before_it_and_by_nothing_else():
    model, batch = tiny_vw_lmm(), vw_lmm_batch()
    loss_of = partial(visual_modeling_loss, reserved=model.config.reserved)
    ids, pixels = batch["input_ids"][:1, 2:7], batch["pixel_values"][:1]  # one token, then four patches
    with torch.no_grad():
        outputs = model(ids, pixels, labels=torch.full_like(ids, -100), output_hidden_states=True)
        states, features = outputs.hidden_states[-1][0], outputs.image_hidden_states[0]
        close(outputs.visual_loss, loss_of(states[:4], features, model.lm_head, model.vm_head))
        # An image that nothing precedes has one patch less to predict.
        outputs = model(ids[:, 1:], pixels, labels=torch.full_like(ids[:, 1:], -100), output_hidden_states=True)
        states = outputs.hidden_states[-1][0]
        close(outputs.visual_loss, loss_of(states[:3], features[1:], model.lm_head, model.vm_head))


def test_a_detached_target_gets_no_gradient():
    batch = vw_lmm_batch()
    for detached in (False, True):
        model = tiny_vw_lmm(detach_visual_target=detached)
        model(**batch).visual_loss.backward()
        assert (model.vm_head.weight.grad is None) == detached


def test_placeholders_and_images_must_match():
    model, batch = tiny_vw_lmm(), vw_lmm_batch()
    with pytest.raises(ValueError, match=r"placeholders for 3 images \(by sample: \[1, 0, 2\]\), got 2 images"):
        model(batch["input_ids"], batch["pixel_values"][:2])
    with pytest.raises(ValueError, match=r"placeholders for 3 images .* got 0 images"):
        model(batch["input_ids"])
    with pytest.raises(ValueError, match=r"`input_ids\[0\]` holds 3 image placeholders, no multiple of the 4"):
        model(batch["input_ids"][:1, 4:], batch["pixel_values"][:1])
    for unknown in (65, 66, -200):  # a row that rounds up, none, and the authors' placeholder
        with pytest.raises(ValueError, match=f"`input_ids` hold {unknown}, which is no token of this model"):
            model(torch.tensor([[1, unknown]]))
    with pytest.raises(ValueError, match="`pixel_values` must have shape"):
        model(batch["input_ids"], batch["pixel_values"][0])
    with pytest.raises(ValueError, match="`top_k` must lie between 1 and 64, got 65"):
        model.get_visual_words(batch["pixel_values"], top_k=65)


@pytest.mark.parametrize("attention", ["eager", "flex_attention"])
def test_attention_implementations_agree(attention):
    batch = vw_lmm_batch()
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        expected = tiny_vw_lmm()(**batch).logits[real]
        close(tiny_vw_lmm(attention)(**batch).logits[real], expected, 1e-4)


def test_checkpoints_come_back_through_the_auto_classes(tmp_path):
    model, batch = tiny_vw_lmm(pseudo_image_features=True), vw_lmm_batch()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(**batch)
        for auto in (AutoModelForImageTextToText, AutoModelForCausalLM):
            loaded, info = auto.from_pretrained(tmp_path, output_loading_info=True)
            assert not info["missing_keys"]
            assert not info["unexpected_keys"]
            close(loaded(**batch).loss, expected.loss)
        base = AutoModel.from_pretrained(tmp_path)
    assert isinstance(base, VwLmmModel)
    with pytest.raises(ValueError, match="Pseudo image features are made by the VM head"):
        base(batch["input_ids"], batch["pixel_values"])


def test_checkpoints_without_a_fitting_vm_head_are_refused(tmp_path):
    model = tiny_vw_lmm(pseudo_image_features=True)
    state = model.state_dict()
    model.save_pretrained(tmp_path / "without", state_dict={k: v for k, v in state.items() if k != "vm_head.weight"})
    with pytest.raises(ValueError, match=r"no `vm_head.weight`, but `pseudo_image_features`"):
        VwLmmForCausalLM.from_pretrained(tmp_path / "without")
    model.save_pretrained(tmp_path / "small", state_dict={**state, "vm_head.weight": state["vm_head.weight"][:60]})
    with pytest.raises(ValueError, match=r"`vm_head.weight` of the checkpoint has shape \(60, 32\)"):
        VwLmmForCausalLM.from_pretrained(tmp_path / "small")


def test_both_heads_grow_with_the_vocabulary():
    model = tiny_vw_lmm()
    model.resize_token_embeddings(70)
    assert model.get_input_embeddings().weight.shape[0] == 70
    assert model.lm_head.weight.shape[0] == model.vm_head.weight.shape[0] == 70
    assert model.config.text_config.vocab_size == 70
    logits = model(torch.tensor([[1, 2]])).logits
    lowest = logits == torch.finfo(logits.dtype).min
    assert lowest[..., 64].all()
    assert lowest.sum() == 2  # the row behind the placeholder is a word now
    with pytest.raises(ValueError, match=r"`new_num_tokens` must be above `image_token_id` \(64\), got 64"):
        model.resize_token_embeddings(64)


# Any tower, any language model


def towers(folder: Path) -> dict[str, int]:
    """Checkpoints with a vision tower of 16 x 16 pixels, and the tokens that each makes of an image."""
    size = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
    }
    CLIPVisionModel(CLIPVisionConfig(**size, patch_size=8)).save_pretrained(folder / "clip")
    SiglipVisionModel(SiglipVisionConfig(**size, patch_size=4)).save_pretrained(folder / "siglip")
    tiny_model().save_pretrained(folder / "grr_coca")
    tiny_mammut("laion").save_pretrained(folder / "mammut")
    return {"clip": 4, "siglip": 16, "grr_coca": 16, "mammut": 16}


def test_assembled_from_any_vision_tower(tmp_path):
    text = LlamaForCausalLM(LlamaConfig(**{**tiny_vw_lmm_config().text_config.to_dict(), "vocab_size": 64}))
    text.save_pretrained(tmp_path / "text")
    for name, tokens in towers(tmp_path).items():
        model = VwLmmForCausalLM.from_vision_text_pretrained(str(tmp_path / name), str(tmp_path / "text"))
        assert model.config.image_seq_length == tokens, name
        assert model.config.image_token_id == 64
        assert model.config.text_config.vocab_size == model.config.image_token_id + model.config.num_reserved_tokens
        close(model.lm_head.weight[:64], text.lm_head.weight)
        assert not any(p.is_meta or p.isnan().any() for p in model.parameters())
        ids = torch.tensor([[1] + [64] * tokens + [5, 6]])
        pixels = torch.randn(1, 3, 16, 16)
        with torch.no_grad():
            expected = model(ids, pixels, labels=ids).loss
            model.save_pretrained(tmp_path / "both")
            again = VwLmmForCausalLM.from_pretrained(tmp_path / "both")
            close(again(ids, pixels, labels=ids).loss, expected)
    with pytest.raises(ValueError, match="`vision` must name a vision tower of patches"):
        VwLmmForCausalLM.from_vision_text_pretrained(str(tmp_path / "text"), str(tmp_path / "text"))


def test_assembled_with_tied_embeddings(tmp_path):
    towers(tmp_path)
    config = LlamaConfig(**{**tiny_vw_lmm_config().text_config.to_dict(), "tie_word_embeddings": True})
    LlamaForCausalLM(config).save_pretrained(tmp_path / "text")
    model = VwLmmForCausalLM.from_vision_text_pretrained(str(tmp_path / "clip"), str(tmp_path / "text"))
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.vm_head.weight is not model.lm_head.weight


def test_tied_embeddings_can_be_untied(tmp_path):
    tied = {**tiny_vw_lmm_config().text_config.to_dict(), "tie_word_embeddings": True}
    config = VwLmmConfig.from_dict(
        {**tiny_vw_lmm_config().to_dict(), "text_config": tied, "tie_word_embeddings": False}
    )
    VwLmmForCausalLM(config).save_pretrained(tmp_path)
    model = VwLmmForCausalLM.from_pretrained(tmp_path)
    assert model.config.tie_word_embeddings is False
    assert model.lm_head.weight is not model.get_input_embeddings().weight


def test_fresh_weights_are_initialised():
    torch.manual_seed(0)
    config = tiny_vw_lmm_config()
    loaded = VwLmmForCausalLM.from_pretrained(None, config=config, state_dict={})
    for name, parameter in loaded.named_parameters():
        assert parameter.isfinite().all(), name
        assert parameter.abs().max() < 3, name


def test_a_tower_whose_weights_are_not_there_is_refused(tmp_path):
    tiny_vw_lmm().save_pretrained(tmp_path / "vlm")  # CLIP's names, behind a prefix that CLIP does not know
    with pytest.raises(ValueError, match=r"lacks \d+ of the tower's weights .* would stay random"):
        VwLmmForCausalLM.from_vision_text_pretrained(str(tmp_path / "vlm"), str(tmp_path / "nowhere"))


@pytest.mark.parametrize("model_type", ["clip_vision_model", "siglip_vision_model"])
def test_weights_that_a_checkpoint_lacks_start_as_those_of_a_fresh_model(model_type):
    """Attention of these towers starts at a scale of its own, which transformers sets at modules without tensors."""
    config = tiny_vw_lmm_config(vision_config={"model_type": model_type}, vision_feature_select_strategy="full")
    fresh = VwLmmForCausalLM(config).state_dict()
    loaded = VwLmmForCausalLM.from_pretrained(None, config=config, state_dict={}).state_dict()
    for name, weight in fresh.items():
        if weight.ndim > 1 and weight.numel() > 500:
            assert loaded[name].std().item() == pytest.approx(weight.std().item(), rel=0.2), name
