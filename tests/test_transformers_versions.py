"""One source for every version of transformers: the names each has for a cache, and an alarm for the next rename."""

import inspect
import logging

import pytest
import torch
from transformers import DynamicCache
from transformers.utils import logging as transformers_logging
from transformers.utils.deprecation import deprecate_kwarg

from tests.conftest import PAIRS, random_batch, tiny_mammut, tiny_model
from tests.deprecations import ROOT, DeprecationFromOurFile
from triptych.modeling import transformers_versions
from triptych.modeling.layers import slice_logits_to_keep
from triptych.modeling.transformers_versions import CACHE_NAME, checkpoint_activations, takes_cache


NAMES = {"cache", "past_key_values"}


@pytest.mark.parametrize("name", PAIRS)
def test_models_have_the_name_that_their_transformers_has(name):
    model, _ = PAIRS[name]()
    parts = [model, model.base_model] if name == "vw_lmm" else [model, model.model.text_model]
    for part in parts:
        assert NAMES & set(inspect.signature(part.forward).parameters) == {CACHE_NAME}
    outputs = type(model(torch.ones(1, 2, dtype=torch.long), **images_of(model)))
    assert NAMES & set(outputs.__dataclass_fields__) == {CACHE_NAME}
    assert list(outputs.__dataclass_fields__)[:2] == ["loss", "logits"]


def images_of(model) -> dict[str, torch.Tensor]:
    return {} if model.config.model_type == "vw_lmm" else {"pixel_values": torch.zeros(1, 3, 16, 16)}


def decorated_for(version_name: str, monkeypatch):
    monkeypatch.setattr(transformers_versions, "CACHE_NAME", version_name)

    def forward(self, cache=None):
        return cache

    return takes_cache(forward)


def test_both_names_work_up_to_5_23_and_the_signature_says_the_old_one(monkeypatch, recwarn):
    forward = decorated_for("past_key_values", monkeypatch)
    assert forward(None, past_key_values=1) == forward(None, cache=1) == forward(None, 1) == 1
    assert list(inspect.signature(forward).parameters) == ["self", "past_key_values"]
    assert not recwarn.list
    with pytest.raises(ValueError, match="two names of one argument"):
        forward(None, past_key_values=1, cache=2)


def test_the_old_name_is_translated_with_a_warning_from_5_24_on(monkeypatch):
    forward = decorated_for("cache", monkeypatch)
    assert list(inspect.signature(forward).parameters) == ["self", "cache"]
    with pytest.warns(FutureWarning, match=r"`past_key_values` is deprecated.*Use `cache` instead"):
        assert forward(None, past_key_values=1) == 1


@pytest.mark.parametrize("make", [tiny_model, tiny_mammut])
def test_a_checkpointed_layer_is_not_given_a_cache_that_it_would_write_twice(make):
    model = make().train()
    batch = random_batch(model.config)
    inputs = {name: batch[name] for name in ("input_ids", "pixel_values", "attention_mask")}
    expected = model(**inputs, use_cache=False).logits
    checkpoint_activations(model)
    outputs = model(**inputs, use_cache=True)
    torch.testing.assert_close(outputs.logits, expected)
    outputs.logits.sum().backward()
    assert outputs[CACHE_NAME].get_seq_length() == 0


def test_logits_are_kept_where_transformers_keeps_them():
    states = torch.arange(24.0).reshape(2, 4, 3)
    mask = torch.tensor([[True, False, False, True], [False, True, False, False]])
    for keep, expected in (
        (0, states),
        (1, states[:, 3:]),
        (torch.tensor([2, 0]), states[:, [2, 0]]),
        (torch.tensor([[3], [1]]), torch.stack([states[0, 3:], states[1, 1:2]])),
        (mask, torch.stack([states[0, 0], states[0, 3], states[1, 1]])),
    ):
        assert torch.equal(slice_logits_to_keep(states, keep), expected)


def run_as(file: str, code: str, **names) -> None:
    exec(compile(code, ROOT / file, "exec"), names)


@deprecate_kwarg("old", "99.0", new_name="new")
def renamed(new=None):
    return new


def test_a_deprecation_is_an_error_when_a_file_of_ours_is_behind_it():
    logger = transformers_logging.get_logger("transformers.cache_utils")
    assert logger.isEnabledFor(logging.WARNING)
    for name in ("modeling/layers.py", "triptych/cli.py", "examples/pretrain.py"):
        with pytest.raises(DeprecationFromOurFile, match=rf"{name}: `old` is deprecated"):
            run_as(name, "renamed(old=1)", renamed=renamed)
        with pytest.raises(DeprecationFromOurFile, match=rf"{name}: `x` are deprecated"):
            run_as(name, "logger.warning('`x` are deprecated. Use `y` instead.')", logger=logger)
    with pytest.warns(FutureWarning, match="`old` is deprecated"):
        renamed(old=1)  # a test may
    logger.warning("`x` are deprecated.")


def test_a_cache_of_another_kind_is_refused_under_the_name_that_was_used():
    with pytest.raises(ValueError, match=rf"`{CACHE_NAME}` must be"):
        tiny_model()(torch.ones(1, 2, dtype=torch.long), torch.zeros(1, 3, 16, 16), **{CACHE_NAME: DynamicCache()})
