"""VW-LMM's processor: templates, chunk-wise tokenisation, placeholders, labels, padding, squares."""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers.processors import ByteLevel
from transformers import AddedToken, AutoProcessor, LlamaTokenizer, LlavaImageProcessor

from tests.conftest import CAPTIONS, tiny_mammut_processor, tiny_processor, tiny_vw_lmm_processor
from triptych import VwLmmProcessor
from triptych.processing.processing_vw_lmm import with_images
from triptych.training.tokenizer import train_tokenizer


FIXTURES = Path(__file__).parent / "fixtures"
RED = Image.new("RGB", (32, 16), "red")


def ask(question: str, *images: Image.Image) -> dict:
    blocks = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*blocks, {"type": "text", "text": question}]}


def say(answer: str) -> dict:
    return {"role": "assistant", "content": answer}


# Templates: the authors' strings


def test_vicuna_template():
    processor = tiny_vw_lmm_processor("vicuna_v1", eos_token="</s>")
    start = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
        "polite answers to the user's questions. USER: <image>\nQ1 ASSISTANT:"
    )
    assert processor.apply_chat_template([ask("Q1", RED)], add_generation_prompt=True) == start
    turns = [ask("Q1", RED), say("A1"), ask("Q2"), say("A2")]
    assert processor.apply_chat_template(turns) == start + " A1</s>USER: Q2 ASSISTANT: A2</s>"
    system = [{"role": "system", "content": "Be brief."}, ask("Q")]
    assert processor.apply_chat_template(system, add_generation_prompt=True) == "Be brief. USER: Q ASSISTANT:"


def test_mistral_template():
    processor = tiny_vw_lmm_processor("mistral", eos_token="</s>")
    assert processor.apply_chat_template([ask("Q1", RED)], add_generation_prompt=True) == "[INST] <image>\nQ1 [/INST]"
    turns = [ask("Q1", RED), say("A1"), ask("Q2"), say("A2")]
    expected = "[INST] <image>\nQ1 [/INST]A1</s>[INST] Q2 [/INST]A2</s>"
    assert processor.apply_chat_template(turns) == expected


CHATML = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def test_the_language_models_own_template():
    processor = tiny_vw_lmm_processor(None, tokenizer_template=CHATML)
    turns = [ask("which is red?", RED, RED), say("both")]
    assert processor.apply_chat_template(turns) == "<user><image>\n<image>\nwhich is red?<eos>\n<assistant>both<eos>\n"


def test_unknown_templates_and_unknown_image_tokens():
    with pytest.raises(ValueError, match=r"Unknown `chat_template` .vicuna_v2.\. Known: mistral, vicuna_v1"):
        tiny_vw_lmm_processor("vicuna_v2")
    tokenizer = train_tokenizer(CAPTIONS, 300, 64)
    with pytest.raises(ValueError, match="`tokenizer` has no token '<image>'"):
        VwLmmProcessor(LlavaImageProcessor(), tokenizer)


# Token ids


@pytest.fixture(scope="module", params=[True, False], ids=["legacy", "not-legacy"])
def mistral(request) -> VwLmmProcessor:
    tokenizer = LlamaTokenizer.from_pretrained(
        FIXTURES / "mistral_tokenizer", legacy=request.param, add_bos_token=True, pad_token="<unk>"
    )
    tokenizer.add_tokens([AddedToken("<image>", special=True, normalized=False)])
    return VwLmmProcessor(LlavaImageProcessor(), tokenizer, "mistral", image_seq_length=3)


def test_text_around_an_image_is_tokenised_in_chunks(mistral):
    ids = mistral(images=RED, text="[INST] <image>\nQ1 [/INST]").input_ids[0]
    assert ids[:8] == [1, 733, 16289, 28793, 28705, 32000, 32000, 32000]
    assert ids[8:10] == [28705, 13]  # the space piece that a whole string loses without `legacy`
    assert ids.count(1) == 1


def llama_tokenizer(legacy: bool) -> LlamaTokenizer:
    pieces = json.loads((FIXTURES / "llama_tokenizer" / "vocabulary.json").read_text(encoding="utf-8"))
    ids = {piece: index for index, piece in enumerate(pieces)}
    # SentencePiece merges any two pieces that give a third one, the one of the lowest id first.
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces[259:]
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    return LlamaTokenizer(vocab=ids, merges=merges, legacy=legacy, add_bos_token=True, pad_token="<unk>")


@pytest.mark.parametrize("legacy", [True, False], ids=["legacy", "not-legacy"])
def test_vicuna_ids(legacy):
    tokenizer = llama_tokenizer(legacy)
    tokenizer.add_tokens([AddedToken("<image>", special=True, normalized=False)])
    processor = VwLmmProcessor(LlavaImageProcessor(), tokenizer, "vicuna_v1", image_seq_length=3)
    prompt = processor.apply_chat_template([ask("Q1", RED)], add_generation_prompt=True)
    ids = processor(images=RED, text=prompt).input_ids[0]
    first = ids.index(32000)
    assert ids[:5] == [1, 319, 13563, 1546, 263]  # <s> A chat between a
    assert ids[first - 4 : first] == [3148, 1001, 29901, 29871]  # " USER: "
    assert ids[first + 3 :] == [29871, 13, 29984, 29896, 319, 1799, 9047, 13566, 29901]  # "\nQ1 ASSISTANT:"
    assert ids.count(1) == 1


def test_answers_alone_are_supervised(mistral):
    turns = [ask("Q1", RED), say("a red sky"), ask("Q2"), say("no")]
    batch = mistral.encode_conversations([turns, [ask("hi"), say("hello")]], padding=True, return_tensors="pt")
    supervised = [row[row != -100] for row in batch["labels"]]
    assert [mistral.decode(row) for row in supervised] == ["a red sky</s>no</s>", "hello</s>"]
    assert ((batch["labels"] == batch["input_ids"]) | (batch["labels"] == -100)).all()
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    assert batch["pixel_values"].shape[0] == 1


@pytest.mark.parametrize("template", ["vicuna_v1", "mistral", None])
@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_of_several_turns_with_every_template(template, side):
    processor = tiny_vw_lmm_processor(template, tokenizer_template=CHATML)
    turns = [
        ask("a red circle, then?", RED),
        say("blue square"),
        ask("and?"),
        say("woman, red hair"),
        ask("?"),
        say("no"),
    ]
    short = [ask("a?"), say("b")]
    batch = processor.encode_conversations([turns, short], padding=True, padding_side=side, return_tensors="pt")
    for row, expected in zip(batch["labels"], ("blue squarewoman, red hairno", "b"), strict=True):
        answer = processor.decode(row[row != -100], skip_special_tokens=True)
        assert answer.replace(" ", "") == expected.replace(" ", "")
    assert (batch["labels"] == processor.tokenizer.eos_token_id).sum() == 4
    prompt = processor.apply_chat_template(
        turns[:1], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )["input_ids"][0]
    real = batch["input_ids"][0][batch["attention_mask"][0].bool()]
    assert (real[: len(prompt)] == prompt).all()  # what is trained is what is asked later


def test_a_template_that_rewrites_the_past_is_refused():
    template = "{{ messages | length }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    processor = tiny_vw_lmm_processor(template)
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        processor.encode_conversations([[ask("a"), say("b"), ask("c"), say("d")]])


# Images


def test_every_image_becomes_its_placeholders():
    processor = tiny_vw_lmm_processor("mistral")
    batch = processor(
        images=[[RED], [], [RED, RED]],
        text=["<image> a", "b", "<image> and <image>"],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    counts = (batch["input_ids"] == processor.image_token_id).sum(-1).tolist()
    assert counts == [4, 0, 8]
    assert batch["pixel_values"].shape == (3, 3, 16, 16)
    assert (batch["attention_mask"][:, -1] == 1).all()
    flat = processor(images=[RED] * 3, text=["<image> a", "b", "<image> and <image>"])
    assert [len(row) for row in flat["input_ids"]] == batch["attention_mask"].sum(-1).tolist()


def test_images_are_padded_to_squares_of_the_mean():
    processor = tiny_vw_lmm_processor()
    pixels = processor(images=RED, text="<image>", return_tensors="pt")["pixel_values"][0]
    mean, std = (np.array(getattr(processor.image_processor, f"image_{name}")) for name in ("mean", "std"))
    levels = pixels.permute(1, 2, 0).numpy() * std + mean
    assert levels[0, 8] * 255 == pytest.approx([122, 116, 104], abs=0.5)
    assert levels[8, 8] == pytest.approx([1, 0, 0], abs=0.01)


@pytest.mark.parametrize(
    ("images", "text", "message"),
    [
        ([RED], ["<image>", "<image>"], r"2 times \(by text: \[1, 1\]\), got 1 images"),
        (None, "<image>", r"1 times \(by text: \[1\]\), got 0 images"),
        ([[RED], [RED]], ["<image><image>", "a"], r"`text\[0\]` has 2 <image>, but `images\[0\]` has 1"),
        ([[RED]], ["<image>", "a"], "lists for 1 texts, got 2 texts"),
        (RED, None, "`text` is missing"),
        (np.zeros((6, 6, 2)), "<image>", "expected .* 1, 3 or 4 channels"),
    ],
)
def test_bad_pairs(images, text, message):
    with pytest.raises(ValueError, match=message):
        tiny_vw_lmm_processor()(images=images, text=text)


def test_image_blocks_without_an_image():
    turns = [{"role": "user", "content": [{"type": "image"}]}, say("red")]
    with pytest.raises(ValueError, match="needs `image`, `url` or `path`, got 'type'"):
        tiny_vw_lmm_processor().encode_conversations([turns])


def test_long_texts_and_cut_images():
    processor = tiny_vw_lmm_processor()
    with pytest.raises(ValueError, match=r"more than `max_length` \(8\)"):
        processor(images=RED, text="<image> a red circle and a blue square", max_length=8)
    with pytest.raises(ValueError, match="would cut an image"):
        processor(images=RED, text="a red circle <image>", max_length=5, truncation=True)
    batch = processor(images=RED, text="<image> a red circle and a blue square", max_length=8, truncation=True)
    assert len(batch["input_ids"][0]) == 8


def test_round_trip(tmp_path):
    processor = tiny_vw_lmm_processor("vicuna_v1")
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is VwLmmProcessor
    assert loaded.chat_template == processor.chat_template
    turns = [ask("a red circle?", RED), say("no")]
    for key, value in processor.encode_conversations([turns], return_tensors="pt").items():
        assert torch.equal(loaded.encode_conversations([turns], return_tensors="pt")[key], value)


@pytest.mark.skipif(version("transformers") < "5.24", reason="older ones look for tokens that begin with the answer")
def test_what_the_assistant_says_is_marked_also_behind_images():
    processor = tiny_vw_lmm_processor(with_images("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }} {% else %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endif %}{% endfor %}"))  # fmt: skip
    picture = {"type": "image", "image": Image.new("RGB", (20, 10))}
    messages = []
    for question, answer in (("what", "red blue"), ("and this", "blue")):
        content = [picture, {"type": "text", "text": question}]
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    for conversation, answers in ((messages, "red blue blue"), (messages[1:2], "red blue")):
        options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        batch = processor.apply_chat_template([conversation], **options)
        marked = [
            token for token, mark in zip(batch["input_ids"][0], batch["assistant_masks"][0], strict=True) if mark
        ]
        assert processor.tokenizer.decode(marked).split() == answers.split()


def test_characters_and_kinds_of_tokens_are_told_on_either_padding_side():
    processor = tiny_vw_lmm_processor("{% for m in messages %}{% if m.role == 'user' %}<image> {{ m.content }} {% else %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endif %}{% endfor %}")  # fmt: skip
    rows = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": "red"}]
        for text in ("what", "what is it?")
    ]
    rows[0].append({"role": "user", "content": "sure?"})
    text = processor.apply_chat_template(rows)
    for side in ("left", "right"):
        kwargs = {
            "padding": True,
            "padding_side": side,
            "return_offsets_mapping": True,
            "return_mm_token_type_ids": True,
        }
        batch = processor(images=[Image.new("RGB", (20, 10))] * 3, text=text, **kwargs)
        for index, ids in enumerate(batch["input_ids"]):
            is_image = [int(token == processor.image_token_id) for token in ids]
            assert batch["mm_token_type_ids"][index] == is_image
            places = [(start, end) for start, end in batch["offset_mapping"][index] if end]
            assert "".join(text[index][start:end] for start, end in places) == text[index].replace("<image>", "")
    with pytest.raises(ValueError, match="`return_overflowing_tokens` has no meaning"):
        processor(text="a", return_overflowing_tokens=True)


@pytest.mark.parametrize("template", [{"default": "{{ 1 }}", "other": "{{ 2 }}"}, "two words"])
def test_any_template_comes_back(template, tmp_path):
    processor = tiny_vw_lmm_processor()
    processor.chat_template = template
    processor.save_pretrained(tmp_path)
    assert VwLmmProcessor.from_pretrained(tmp_path).chat_template == template


def test_only_the_processor_says_where_its_code_is(tmp_path):
    tiny_vw_lmm_processor().save_pretrained(tmp_path)
    files = [path.name for path in tmp_path.glob("*.json") if "processing_vw_lmm.VwLmmProcessor" in path.read_text()]
    assert files == ["processor_config.json"]


def test_options_are_given_once():
    for processor in (tiny_processor(), tiny_mammut_processor()):
        with pytest.raises(ValueError, match="`do_resize` stands in `images_kwargs` and beside it"):
            processor(images=Image.new("RGB", (20, 10)), do_resize=True, images_kwargs={"do_resize": False})


def test_white_space_of_answers_is_supervised_where_a_tokenizer_trims_it_from_offsets():
    processor = tiny_vw_lmm_processor()
    processor.tokenizer.backend_tokenizer.post_processor = ByteLevel(trim_offsets=True)
    answer = "red\n\n  blue  is"
    spaces = processor.tokenizer(" \n", add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    assert any(start == end for start, end in spaces)
    messages = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": answer}]
    labels = processor.encode_conversations([messages], return_tensors="pt")["labels"][0]
    assert processor.tokenizer.decode(labels[labels != -100], skip_special_tokens=True) == answer
