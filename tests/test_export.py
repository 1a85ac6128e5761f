"""`torch.export` with a dynamic batch: the encoders, and one step of decoding, of all three models."""

from collections.abc import Callable

import pytest
import torch
from torch.export import Dim, export
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from tests.conftest import random_batch, tiny_mammut, tiny_model, tiny_vw_lmm, vw_lmm_batch
from triptych.modeling.transformers_versions import CACHE_NAME, named_cache


CAPTIONERS = {
    "grr_coca": tiny_model,
    "coca": lambda: tiny_model("open_clip"),
    "mammut": tiny_mammut,
    "mammut, laion": lambda: tiny_mammut("laion"),
}


class Step(torch.nn.Module):
    """A function of a model and tensors as a module."""

    def __init__(self, model: torch.nn.Module, function: Callable[..., torch.Tensor]):
        super().__init__()
        self.model, self.function = model.eval(), function

    def forward(self, *tensors):
        return self.function(self.model, *tensors)


@torch.no_grad()
def check(model: torch.nn.Module, function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> None:
    """A graph that was traced with three rows gives what the model gives for one, two and six."""
    module = Step(model, function)
    batch = Dim("batch", min=1, max=64)
    graph = export(module, tensors, dynamic_shapes={"tensors": tuple({0: batch} for _ in tensors)}).module()
    for size in (1, 2, 6):
        rows = [torch.cat([tensor, tensor.flip(0)])[:size] for tensor in tensors]
        torch.testing.assert_close(graph(*rows), module(*rows), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [*CAPTIONERS, "vw_lmm"])
def test_encoders_of_images(name):
    model = tiny_vw_lmm() if name == "vw_lmm" else CAPTIONERS[name]()
    check(model, lambda model, pixels: model.get_image_features(pixels).pooler_output, torch.randn(3, 3, 16, 16))


@pytest.mark.parametrize("name", CAPTIONERS)
def test_encoders_of_texts(name):
    model = CAPTIONERS[name]()
    batch = random_batch(model.config)

    def encode(model, ids, mask):
        return model.get_text_features(ids, attention_mask=mask).pooler_output

    check(model, encode, batch["input_ids"], batch["attention_mask"])


def cache_of(layers: tuple[torch.Tensor, ...]) -> DynamicCache:
    """A cache of the keys and values of every layer, in turns."""
    cache = DynamicCache()
    for index in range(len(layers) // 2):
        cache.update(layers[2 * index], layers[2 * index + 1], index)
    return cache


def layers_of(cache: DynamicCache) -> tuple[torch.Tensor, ...]:
    return tuple(tensor for layer in cache.layers for tensor in (layer.keys, layer.values))


@pytest.mark.parametrize("name", CAPTIONERS)
@torch.no_grad()
def test_a_step_of_decoding_captions(name):
    model = CAPTIONERS[name]()
    ids, pixels = random_batch(model.config)["input_ids"][:, :5], torch.randn(3, 3, 16, 16)
    cache = model(ids, pixels, use_cache=True)[CACHE_NAME]
    texts, images = layers_of(cache.self_attention_cache), layers_of(cache.cross_attention_cache)

    def step(model, token, *layers):
        memory = EncoderDecoderCache(cache_of(layers[: len(texts)]), cache_of(layers[len(texts) :]))
        return model(token, **named_cache(memory), use_cache=True).logits

    check(model, step, torch.full((3, 1), 7), *texts, *images)


@torch.no_grad()
def test_a_step_of_decoding_answers():
    model, batch = tiny_vw_lmm(), vw_lmm_batch()
    del batch["labels"]
    cache = model(**batch, use_cache=True)[CACHE_NAME]

    def step(model, token, mask, *layers):
        return model(token, attention_mask=mask, **named_cache(cache_of(layers)), use_cache=True).logits

    mask = torch.nn.functional.pad(batch["attention_mask"], (0, 1), value=1)
    check(model, step, torch.full((3, 1), 7), mask, *layers_of(cache))
