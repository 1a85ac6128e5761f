"""What a model that only answers is made into."""

import copy

import pytest
import torch
from torch import nn

from tests.conftest import PAIRS, random_batch, tiny_model
from triptych import hardware
from triptych.hardware import PackedLinear, pack_linear_layers, prepare_for_inference


@pytest.mark.parametrize("name", PAIRS)
@torch.no_grad()
def test_packed_models_answer_alike(name):
    model, processor = PAIRS[name]()
    packed = pack_linear_layers(copy.deepcopy(model))
    assert any(isinstance(module, PackedLinear) for module in packed.modules())
    assert not any(type(module) is nn.Linear for module in packed.modules())
    texts = ["<image> a", "<image> b"] if name == "vw_lmm" else ["a", "b"]
    pixel_values = torch.randn(2, 3, 32, 32).clamp(-1, 1).add(1).mul(127).byte()
    inputs = processor(images=list(pixel_values), text=texts, padding=True, return_tensors="pt")
    expected, found = model.eval()(**inputs), packed(**inputs)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
    options = {"max_new_tokens": 4, "num_beams": 2, "do_sample": False}
    assert packed.generate(**inputs, **options).tolist() == model.generate(**inputs, **options).tolist()
    if name == "vw_lmm":
        expected, found = (each.get_visual_words(inputs["pixel_values"]) for each in (model, packed))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_packed_is_refused_or_left_alone():
    with pytest.raises(ValueError, match=r"`model` must be on a CPU.*got torch.float16 on cpu"):
        pack_linear_layers(tiny_model().half())
    other = nn.Sequential(nn.LSTM(2, 2), nn.Bilinear(2, 2, 2))
    before = [type(module) for module in other.modules()]
    assert [type(module) for module in pack_linear_layers(other).modules()] == before


@pytest.mark.parametrize(("precision", "expected"), [("no", torch.float32), ("bf16", torch.bfloat16)])
@torch.no_grad()
def test_a_cpu_answers_in_what_it_multiplies(monkeypatch, precision, expected):
    monkeypatch.setattr(hardware, "best_precision", lambda: precision)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = prepare_for_inference(tiny_model().to(torch.bfloat16))
    assert model.dtype == expected
    batch = random_batch(model.config)
    assert model(**batch).logits.dtype == expected
    assert prepare_for_inference(tiny_model().half()).dtype == torch.float32
