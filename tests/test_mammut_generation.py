"""MaMMUT's `generate`: caches, beams, prompts, questions with a bidirectional prefix, videos."""

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, set_seed

from tests.conftest import random_batch, tiny_mammut
from triptych.modeling.transformers_versions import CACHE_NAME, named_cache


NO_EOS = {"eos_token_id": None, "max_new_tokens": 6}
MODES = {
    "greedy": {},
    "beam": {"num_beams": 3, "num_return_sequences": 2},
    "sample": {"do_sample": True, "top_k": 20},
    "static": {"cache_implementation": "static"},
}
PROMPTS = torch.tensor([[1, 7, 9, 6], [1, 5, 0, 0], [1, 8, 6, 0]])


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_cached_logits_equal_uncached_ones(mammut_variant):
    model = tiny_mammut(mammut_variant)
    batch = random_batch(model.config, lengths=(12, 12, 12))
    full = model(batch["input_ids"], batch["pixel_values"], use_cache=False)
    outputs = model(batch["input_ids"][:, :4], batch["pixel_values"], use_cache=True)
    steps = [outputs.logits]
    for start, stop in ((4, 5), (5, 6), (6, 12)):
        outputs = model(batch["input_ids"][:, start:stop], **named_cache(outputs[CACHE_NAME]))
        steps.append(outputs.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), full.logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("prefix", [None, False, True])
def test_every_mode_equals_its_cacheless_run(mammut_variant, mode, prefix):
    model = tiny_mammut(mammut_variant, text_config={"bidirectional_prefix": bool(prefix)})
    inputs = {"pixel_values": images()}
    if prefix is not None:
        inputs |= {"input_ids": PROMPTS, "attention_mask": (PROMPTS != 0).long()}
    options = {**NO_EOS, **MODES[mode]}
    set_seed(0)
    cached = model.generate(**inputs, **options)
    set_seed(0)
    options.pop("cache_implementation", None)
    assert cached.tolist() == model.generate(**inputs, **options, use_cache=False).tolist()


def test_an_empty_cache_changes_nothing():
    model = tiny_mammut(text_config={"bidirectional_prefix": True})
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    given = model.generate(PROMPTS, images(), **named_cache(cache), **NO_EOS)
    assert given.tolist() == model.generate(PROMPTS, images(), **NO_EOS).tolist()


@pytest.mark.parametrize("prefix", [False, True])
def test_prompts_of_unequal_length_equal_single_ones(mammut_variant, prefix):
    model = tiny_mammut(mammut_variant, text_config={"bidirectional_prefix": prefix})
    together = model.generate(PROMPTS, images(), **NO_EOS)
    for row, length in enumerate((4, 2, 3)):
        alone = model.generate(PROMPTS[row : row + 1, :length], images()[row : row + 1], **NO_EOS)
        assert together[row, 4:].tolist() == alone[0, length:].tolist()


@torch.no_grad()
def test_a_bidirectional_prefix_is_not_read_in_parts():
    model = tiny_mammut(text_config={"bidirectional_prefix": True})
    inputs = {"input_ids": torch.tensor([[1, 5, 6, 7]]), "pixel_values": torch.randn(1, 3, 16, 16)}
    with pytest.raises(ValueError, match="`prefill_chunk_size` parts a prompt"):
        model.generate(**inputs, max_new_tokens=2, prefill_chunk_size=2)


def test_a_bidirectional_prefix_sees_itself_and_training_sees_what_generation_does():
    model = tiny_mammut(text_config={"bidirectional_prefix": True}, contrastive_loss_weight=0.0)
    ids = torch.tensor([[1, 7, 9, 6, 11, 12]])
    labels = ids.masked_fill(torch.arange(6) < 4, -100)  # a question of four tokens
    trained = model(ids, images(1), labels=labels)
    other = ids.clone()
    other[0, 3] = 20
    changed = model(other, images(1), labels=labels)
    assert (
        trained.logits[:, :3] - changed.logits[:, :3]
    ).abs().max() > 1e-4  # earlier question tokens see a later one
    other = ids.clone()
    other[0, 5] = 20
    changed = model(other, images(1), labels=labels)
    torch.testing.assert_close(trained.logits[:, :5], changed.logits[:, :5], atol=1e-6, rtol=0)  # answers stay causal
    generated = model.generate(
        ids[:, :4], images(1), max_new_tokens=1, eos_token_id=None, output_logits=True, return_dict_in_generate=True
    )
    torch.testing.assert_close(generated.logits[0], trained.logits[:, 3], atol=1e-5, rtol=0)


def test_each_image_is_encoded_once_also_for_several_questions():
    model = tiny_mammut()
    encoded = []
    model.model.vision_model.layers[0].register_forward_hook(lambda module, args, output: encoded.append(len(output)))
    index = torch.tensor([0, 1, 1])
    together = model.generate(PROMPTS, images(2), image_index=index, num_beams=3, **NO_EOS)
    assert encoded == [2]
    assert together.tolist() == model.generate(PROMPTS, images(2)[index], num_beams=3, **NO_EOS).tolist()


def test_videos_caption_and_answer_as_images_do():
    model = tiny_mammut("video")
    clips = torch.randn(3, 8, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    answers = model.generate(PROMPTS, pixel_values_videos=clips, **NO_EOS)
    tokens = model.get_video_features(clips).image_tokens
    assert answers.tolist() == model.generate(PROMPTS, image_tokens=tokens, **NO_EOS).tolist()
    assert model.generate(pixel_values_videos=clips, num_beams=2, max_new_tokens=4).shape[0] == 3


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"`pixel_values` .*is missing"),
        ({"pixel_values": images(2), "inputs": PROMPTS}, r"3 prompts and 2 images"),
        (
            {"pixel_values": images(2), "inputs": PROMPTS, "image_index": torch.tensor([0, 1, 2])},
            r"`image_index` must lie between 0 and 1, .* from 0 to 2",
        ),
        ({"pixel_values": images(1), "max_new_tokens": 40}, r"context is 12 tokens"),
        (
            {"pixel_values": images(1), "pixel_values_videos": torch.zeros(1, 8, 3, 16, 16)},
            r"one of `pixel_values`, `pixel_values_videos`",
        ),
    ],
)
def test_bad_requests_say_what_is_wrong(inputs, message):
    with pytest.raises(ValueError, match=message):
        tiny_mammut().generate(**inputs)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_prompt_of_embeddings_is_continued_as_its_ids_are(bidirectional):
    model = tiny_mammut(text_config={"bidirectional_prefix": bidirectional})
    batch = random_batch(model.config)
    ids, images = batch["input_ids"][:, :4], batch["pixel_values"]
    expected = model.generate(ids, images, max_new_tokens=5, eos_token_id=None)[:, 4:]
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(
        model.generate(inputs_embeds=embeds, pixel_values=images, max_new_tokens=5, eos_token_id=None), expected
    )
