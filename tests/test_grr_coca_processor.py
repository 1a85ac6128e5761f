"""Images and texts to tensors: special tokens, lengths, saving, and refusals."""

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models
from transformers import AutoProcessor, CLIPImageProcessor, PreTrainedTokenizerFast

import triptych
from tests.conftest import CAPTIONS, tiny_config, tiny_model, tiny_processor
from triptych.training.tokenizer import load_tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def picture(mode: str = "RGB", size: tuple[int, int] = (30, 20)) -> Image.Image:
    return Image.new(mode, size, 100 if mode in ("L", "P") else None)


def test_texts_have_bos_and_eos_once_and_fixed_length(processor):
    inputs = processor(text=["a red heart", "flag"], return_tensors="pt")
    tokenizer = processor.tokenizer
    assert inputs["input_ids"].shape == (2, 12)
    for ids, mask in zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True):
        assert ids[0] == tokenizer.bos_token_id
        assert ids[sum(mask) - 1] == tokenizer.eos_token_id
        assert ids.count(tokenizer.bos_token_id) == ids.count(tokenizer.eos_token_id) == 1
        assert set(ids[sum(mask) :]) == {tokenizer.pad_token_id}
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    assert tokenizer.pad_token_id == 0
    assert processor(text=["a red heart", "flag"], padding="longest", return_tensors="pt")["input_ids"].shape[1] < 12


def test_texts_survive_a_round_trip(processor):
    texts = [*CAPTIONS, "Côte d’Ivoire 😀 !!!"]  # noqa: RUF001
    ids = processor(text=texts, padding="longest", max_length=64).input_ids
    assert processor.batch_decode(ids, skip_special_tokens=True) == texts


def test_images_of_any_mode_and_size_become_normalised_tensors(processor):
    images = [picture(), picture("L", (5, 40)), picture("RGBA"), np.zeros((20, 30, 3), np.uint8)]
    pixel_values = processor(images=images, return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (4, 3, 16, 16)
    expected = (0 - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor(
        [0.26862954, 0.26130258, 0.27577711]
    )
    torch.testing.assert_close(pixel_values[3].mean(dim=(1, 2)), expected, atol=1e-5, rtol=0)


def test_captions_stop_at_strings(processor):
    model = tiny_model(text_config={"vocab_size": len(processor.tokenizer)})
    word = next(token for token in processor.tokenizer.get_vocab() if token.isalpha() and token.isascii())
    index = processor.tokenizer.convert_tokens_to_ids(word)
    options = {"max_new_tokens": 4, "sequence_bias": [[[index], 1000.0]], "tokenizer": processor.tokenizer}
    pixel_values = processor(images=picture(), return_tensors="pt")["pixel_values"]
    ids = model.generate(pixel_values=pixel_values, **options, stop_strings=[word])
    assert ids[0].tolist() == [processor.tokenizer.bos_token_id, index]


def test_one_call_serves_retrieval_and_prompted_captions(processor):
    model = tiny_model(text_config={"vocab_size": len(processor.tokenizer)})
    inputs = processor(images=[picture(), picture("L")], text=["a red", ""], return_tensors="pt")
    assert model.model(**inputs).logits_per_image.shape == (2, 2)
    ids = model.generate(**inputs, max_new_tokens=3, eos_token_id=None)
    assert ids.shape == (2, inputs["input_ids"].shape[1] + 3)
    assert processor.batch_decode(ids, skip_special_tokens=True)[0].strip().startswith("a red")


def test_saves_and_loads_through_the_auto_class(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    tiny_config().save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is triptych.GrrCocaProcessor
    expected = processor(images=picture(), text="a red heart", return_tensors="pt")
    found = loaded(images=picture(), text="a red heart", return_tensors="pt")
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"images": [picture(), np.zeros((6, 6, 2), np.uint8)]}, r"`images\[1\]` has shape \(6, 6, 2\); expected"),
        (
            {"images": torch.zeros(5, 8, 8)},
            r"`images` has shape \(5, 8, 8\); expected \(height, width\), .* 1, 3 or 4 channels",
        ),
        ({"images": np.zeros(8, np.uint8)}, r"`images` has shape \(8,\)"),
        (
            {"images": np.zeros((0, 8, 3), np.uint8)},
            r"`images` has shape \(0, 8, 3\); expected \(height, width\), both at least 1",
        ),
        ({"images": [picture(size=(0, 4))]}, r"`images\[0\]` has size \(0, 4\)"),
        ({"images": []}, r"`images` is empty"),
        ({"text": []}, r"`text` is empty"),
        (
            {"text": ["a red heart", "a " * 40]},
            r"`text\[1\]` has 4[0-9] tokens, the context is 12 tokens.*truncation=True",
        ),
        ({}, r"at least one input"),
    ],
)
def test_bad_input_names_the_argument(processor, inputs, message):
    with pytest.raises(ValueError, match=message):
        processor(**inputs, return_tensors="pt")


def test_truncation_on_request_keeps_eos(processor):
    ids = processor(text=["a " * 40], truncation=True).input_ids[0]
    assert len(ids) == 12
    assert ids[-1] == processor.tokenizer.eos_token_id


def test_any_tokenizer_learns_to_write_bos_and_eos_and_to_pad_with_its_own_token(tmp_path):
    # GPT-2's habits: one token for BOS and EOS, none for padding, no template.
    backend = Tokenizer(models.BPE({"a": 0, "b": 1, "<|endoftext|>": 2}, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path), max_length=8)
    ids = loaded(["ab", "a"], padding="max_length").input_ids
    bos, eos, pad = loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id
    assert ids == [[bos, 0, 1, eos, pad, pad, pad, pad], [bos, 0, eos, pad, pad, pad, pad, pad]]
    assert len({bos, eos, pad}) == 3


def test_a_tokenizer_needs_captions():
    with pytest.raises(ValueError, match="`captions` holds no text"):
        train_tokenizer(["", "  "], vocab_size=300, max_length=8)


def test_image_processor_is_transformers_own():
    assert type(tiny_processor().image_processor) is type(CLIPImageProcessor())
