"""Captioning through transformers' `generate`: caches, beams, prompts, and that each image is encoded once."""

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, set_seed

from tests.conftest import random_batch, tiny_model
from triptych.modeling.inputs import align_prompts
from triptych.modeling.layers import Attention
from triptych.modeling.transformers_versions import CACHE_NAME, named_cache


NO_EOS = {"eos_token_id": None, "max_new_tokens": 8}


@pytest.fixture
def model(variant):
    return tiny_model(variant)


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_cached_logits_equal_uncached_ones(model):
    batch = random_batch(model.config, lengths=(12, 12, 12))
    full = model(batch["input_ids"], batch["pixel_values"], use_cache=False)
    assert full.get(CACHE_NAME) is None
    outputs = model(batch["input_ids"][:, :4], batch["pixel_values"], use_cache=True)
    steps = [outputs.logits]
    for start in (4, 5, 6, 9):  # one token, one token, then several at once
        ids = batch["input_ids"][:, start : {4: 5, 5: 6, 6: 9, 9: 12}[start]]
        outputs = model(ids, **named_cache(outputs[CACHE_NAME]))
        steps.append(outputs.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), full.logits, atol=1e-5, rtol=0)


MODES = {
    "greedy": {},
    "beam": {"num_beams": 3, "num_return_sequences": 2},
    "sample": {"do_sample": True, "top_k": 20, "temperature": 0.8},
    "beam-sample": {"num_beams": 2, "do_sample": True},
    "prompt-lookup": {"prompt_lookup_num_tokens": 3},
    "static": {"cache_implementation": "static"},
    "static-beam": {"cache_implementation": "static", "num_beams": 3},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("prompted", [False, True])
def test_every_mode_equals_its_cacheless_run(model, mode, prompted):
    options = {**NO_EOS, **MODES[mode]}
    # transformers decodes candidates for one prompt at a time
    pixel_values = images(1 if mode == "prompt-lookup" else 3)
    inputs = {"pixel_values": pixel_values}
    if prompted:
        inputs["input_ids"] = torch.tensor([[1, 7, 9, 7], [1, 5, 0, 0], [1, 8, 6, 0]])[: len(pixel_values)]
        inputs["attention_mask"] = (inputs["input_ids"] != 0).long()
    set_seed(0)
    cached = model.generate(**inputs, **options)
    set_seed(0)
    options = {
        key: value for key, value in options.items() if key not in ("cache_implementation", "prompt_lookup_num_tokens")
    }
    assert cached.tolist() == model.generate(**inputs, **options, use_cache=False).tolist()


def test_prompts_of_unequal_length_equal_single_ones_on_either_padding_side(model):
    prompts = [[1, 7, 9, 6], [1, 5], [1, 8, 6]]
    alone = [
        model.generate(torch.tensor([prompt]), images()[row : row + 1], **NO_EOS)[0, len(prompt) :].tolist()
        for row, prompt in enumerate(prompts)
    ]
    for side in ("left", "right"):
        ids, mask = torch.zeros(3, 4, dtype=torch.long), torch.zeros(3, 4, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            columns = slice(4 - len(prompt), 4) if side == "left" else slice(0, len(prompt))
            ids[row, columns], mask[row, columns] = torch.tensor(prompt), 1
        together = model.generate(pixel_values=images(), input_ids=ids, attention_mask=mask, **NO_EOS)
        assert together[:, 4:].tolist() == alone, side


@pytest.mark.parametrize("filler", [0, 2], ids=["padding", "eos"])
def test_what_follows_a_prompt_begins_at_its_width(model, filler):
    alone = [
        model.generate(torch.tensor([prompt]), images()[row : row + 1], **NO_EOS)[0, len(prompt) :].tolist()
        for row, prompt in enumerate([[1, 7, 9], [1, 5], [1]])
    ]
    prompts = torch.tensor([[1, 7, 9, 2, 0], [1, 5, 2, 0, 0], [1, 2, 0, 0, 0]])  # as a tokenizer writes texts
    options = {**NO_EOS, "pad_token_id": filler}
    ids = model.generate(prompts, images(), **options)
    assert ids[:, 5:].tolist() == alone
    assert ids[:, :2].tolist() == [[filler] * 2] * 3
    # The same in two calls, the second from the cache of the first
    first = model.generate(prompts, images(), **{**options, "max_new_tokens": 2}, return_dict_in_generate=True)
    rest = model.generate(first.sequences, **named_cache(first[CACHE_NAME]), **{**options, "max_new_tokens": 6})
    assert rest.tolist() == ids.tolist()


def test_prompts_lose_their_closing_eos():
    ids = torch.tensor([[1, 7, 2, 0, 0], [1, 5, 6, 8, 2], [1, 2, 0, 0, 0]])
    aligned, mask = align_prompts(ids, (ids != 0).long(), pad_token_id=0, eos_token_id=[2, 3], filler=9)
    assert aligned.tolist() == [[9, 9, 1, 7], [1, 5, 6, 8], [9, 9, 9, 1]]
    assert mask.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]]


def test_without_a_mask_padding_at_the_ends_is_inferred_and_inside_it_is_a_token():
    ids = torch.tensor([[1, 7, 2, 0, 0], [0, 1, 0, 8, 2]])
    aligned, mask = align_prompts(ids, None, pad_token_id=0, eos_token_id=2, filler=0)
    assert aligned.tolist() == [[0, 1, 7], [1, 0, 8]]
    assert mask.tolist() == [[0, 1, 1], [1, 1, 1]]
    aligned, mask = align_prompts(ids, None, pad_token_id=None, eos_token_id=None, filler=0)
    assert mask.all()


def test_an_assistant_of_another_width_reads_the_image_itself():
    model = tiny_model()
    assistant = tiny_model(
        seed=3,
        vision_config={"hidden_size": 16, "num_caption_queries": 3},
        text_config={"hidden_size": 16, "num_multimodal_layers": 1},
    )
    expected = model.generate(pixel_values=images(1), **NO_EOS)
    assert model.generate(pixel_values=images(1), assistant_model=assistant, **NO_EOS).tolist() == expected.tolist()


def test_generation_ends_at_eos_and_pads():
    model = tiny_model()
    free = model.generate(pixel_values=images(), **NO_EOS)
    stop = free[0, 3].item()
    ids = model.generate(pixel_values=images(), max_new_tokens=8, eos_token_id=stop)
    assert ids[0, : free[0].tolist().index(stop) + 1].tolist()[-1] == stop
    assert set(ids[0, free[0].tolist().index(stop) + 1 :].tolist()) <= {0}


def test_each_image_is_encoded_and_projected_once(model, monkeypatch):
    encoded, projected = [], []
    model.model.vision_model.layers[0].register_forward_hook(lambda module, args, output: encoded.append(len(output)))
    cross_attention = model.model.multimodal_decoder.layers[0].cross_block.cross_attn
    cross_attention.k_proj.register_forward_hook(lambda module, args, output: projected.append(len(output)))
    assert isinstance(cross_attention, Attention)
    model.generate(pixel_values=images(2), num_beams=3, **NO_EOS)
    assert encoded == [2]  # before beams multiply the batch
    assert projected == [2]  # so are its keys, at the first step only


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
def test_texts_that_share_an_image_see_it_as_their_own(attention):
    model = tiny_model()
    model.set_attn_implementation(attention)
    ids = random_batch(model.config, lengths=(5,) * 6)["input_ids"]
    options = {"use_cache": False, "output_attentions": attention == "eager"}
    with torch.no_grad():
        shared = model(ids, images(2), texts_per_image=3, **options)
        own = model(ids, images(2), image_index=torch.arange(2).repeat_interleave(3), **options)
    torch.testing.assert_close(shared.logits, own.logits, atol=1e-5, rtol=0)
    if attention == "eager":
        for name in ("attentions", "cross_attentions"):
            for found, expected in zip(shared[name], own[name], strict=True):
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_texts_that_share_an_image_are_counted_and_not_compared():
    model, batch = tiny_model(), random_batch(tiny_model().config, lengths=(5,) * 4)
    with pytest.raises(ValueError, match=r"`texts_per_image` = 3 share one: got 2 images and 4 texts"):
        model(batch["input_ids"], images(2), texts_per_image=3)
    with pytest.raises(ValueError, match="`texts_per_image` lets texts share images"):
        model(batch["input_ids"], images(2), texts_per_image=2, labels=batch["input_ids"])


def test_beams_fill_a_cache_that_somebody_brings():
    model = tiny_model()
    expected = model.generate(pixel_values=images(), num_beams=3, **NO_EOS)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    found = model.generate(pixel_values=images(), num_beams=3, **named_cache(cache), **NO_EOS)
    assert found.tolist() == expected.tolist()
    assert (len(cache.self_attention_cache.layers[0].keys), len(cache.cross_attention_cache.layers[0].keys)) == (9, 3)


def test_image_tokens_replace_the_image(model):
    features = model.get_image_features(images())
    ids = model.generate(image_tokens=features.image_tokens, **NO_EOS)
    assert ids.tolist() == model.generate(pixel_values=images(), **NO_EOS).tolist()


@torch.no_grad()
def test_generation_continues_from_a_cache(model):
    whole = model.generate(pixel_values=images(), **NO_EOS)
    outputs = model(whole[:, :4], images(), use_cache=True)
    cache = outputs[CACHE_NAME]
    cache.crop(-1)
    assert isinstance(cache, EncoderDecoderCache)
    rest = model.generate(whole[:, :4], **named_cache(cache), max_new_tokens=5, eos_token_id=None)
    assert rest.tolist() == whole.tolist()


def test_compiled_static_generation_equals_eager():
    model = tiny_model()
    expected = model.generate(pixel_values=images(), **NO_EOS)
    model.forward = torch.compile(model.forward, backend="aot_eager", fullgraph=True)
    found = model.generate(pixel_values=images(), cache_implementation="static", **NO_EOS)
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"`pixel_values` .*is missing"),
        ({"pixel_values": images(2), "input_ids": torch.ones(3, 2, dtype=torch.long)}, r"3 prompts and 2 images"),
        ({"pixel_values": images(1), "max_new_tokens": 40}, r"context is 12 tokens"),
        ({"pixel_values": images(1), "input_ids": torch.tensor([[2, 0]])}, r"`input_ids\[0\]` is an empty prompt"),
        (
            {"pixel_values": images(1), "image_tokens": torch.zeros(1, 6, 32)},
            r"either `pixel_values` or `image_tokens`",
        ),
    ],
)
def test_bad_requests_say_what_is_wrong(inputs, message):
    with pytest.raises(ValueError, match=message):
        tiny_model().generate(**inputs)


def test_forward_refuses_a_cache_without_room_for_the_image():
    with pytest.raises(ValueError, match=rf"`{CACHE_NAME}` must be an `EncoderDecoderCache`.*DynamicCache"):
        tiny_model()(torch.ones(1, 2, dtype=torch.long), images(1), **named_cache(DynamicCache()))
