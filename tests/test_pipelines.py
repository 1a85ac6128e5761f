"""Pipelines: the two that transformers dropped, sigmoid scores, and transformers' own."""

import base64
import io
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import pipeline as transformers_pipeline

from tests.conftest import PAIRS, grr_coca_pair, mammut_pair, save_pair
from tests.test_hub import ask_a_stranger
from triptych import GrrCocaModel, pipeline


COLOURS = ("red", "green", "blue")
PICTURES = [Image.new("RGB", (20, 20), colour) for colour in COLOURS]


@pytest.fixture(scope="module", params=PAIRS)
def saved(request, tmp_path_factory) -> tuple:
    """A model and the folder that it was saved to."""
    folder = tmp_path_factory.mktemp(request.param)
    return *save_pair(request.param, folder), str(folder)


def new_tokens(model, processor, inputs, **options) -> list[str]:
    ids = model.generate(**inputs, max_new_tokens=4, do_sample=False, num_beams=1, **options)
    chats = getattr(processor, "chat_template", None) is not None
    ids = ids[:, inputs["input_ids"].shape[1] :] if chats else ids
    return [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]


def chat(processor, picture, text: str):
    content = [{"type": "image", "image": picture}, {"type": "text", "text": text}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip


@torch.no_grad()
def test_image_to_text_takes_what_pipelines_take(saved, tmp_path, monkeypatch):
    model, processor, folder = saved
    monkeypatch.chdir(tmp_path)
    chats = getattr(processor, "chat_template", None) is not None
    expected = []
    for picture in PICTURES:
        inputs = chat(processor, picture, "What is this?") if chats else processor(images=picture, return_tensors="pt")
        expected += new_tokens(model, processor, inputs)
    options = {"max_new_tokens": 4, "generate_kwargs": {"num_beams": 1, "do_sample": False}}
    pipe = pipeline("image-to-text", folder)
    assert pipe(PICTURES[0], **options) == [{"generated_text": expected[0]}]
    PICTURES[1].save("green.png")
    buffer = io.BytesIO()
    PICTURES[2].save(buffer, format="PNG")
    mixed = [PICTURES[0], "green.png", base64.b64encode(buffer.getvalue()).decode()]
    for rows in (
        pipe(mixed, **options),
        pipe(PICTURES, batch_size=2, **options),
        list(pipe((picture for picture in PICTURES), **options)),
        list(pipe(Dataset.from_dict({"image": PICTURES})["image"], **options)),
        pipe([PICTURES[0], Path("green.png"), PICTURES[2]], **options),
    ):
        assert [row[0]["generated_text"] for row in rows] == expected
    several = pipe(PICTURES[0], max_new_tokens=4, generate_kwargs={"num_beams": 3, "num_return_sequences": 3})
    assert len(several) == 3
    with pytest.raises(ValueError, match="`max_new_tokens` is given twice"):
        pipe(PICTURES[0], max_new_tokens=4, generate_kwargs={"max_new_tokens": 3})
    with pytest.raises(ValueError, match="`inputs` is missing"):
        pipe()


@torch.no_grad()
def test_prompts_begin_captions(tmp_path):
    model, processor = grr_coca_pair()
    pipe = pipeline("image-to-text", model, processor=processor)
    inputs = processor(images=PICTURES[0], text="a red", return_tensors="pt")
    expected = new_tokens(model, processor, inputs)[0]
    found = pipe(PICTURES[0], prompt="a red", max_new_tokens=4, generate_kwargs={"num_beams": 1})
    assert found == [{"generated_text": expected}]
    assert expected.startswith("a red")
    # Without a limit, up to what the context holds.
    tokens = processor.tokenizer(pipe(PICTURES[0], prompt="a red")[0]["generated_text"]).input_ids
    assert len(tokens) > 10 or tokens[-1] == processor.tokenizer.eos_token_id


@torch.no_grad()
def test_answers_and_their_probabilities(saved):
    model, processor, folder = saved
    question = "what is it?"
    pipe = pipeline("visual-question-answering", folder)
    (found,) = pipe(image=PICTURES[0], question=question, max_new_tokens=4, generate_kwargs={"num_beams": 1})
    if model.config.model_type == "vw_lmm":
        inputs = chat(processor, PICTURES[0], question)
    elif model.config.model_type == "mammut":
        inputs = processor(images=PICTURES[0], questions=[question], return_tensors="pt")
    else:
        inputs = processor(images=PICTURES[0], text=question, return_tensors="pt")
    outputs = model.generate(**inputs, max_new_tokens=4, num_beams=1, output_logits=True, return_dict_in_generate=True)
    steps = len(outputs.logits)
    new = outputs.sequences[0, -steps:]
    probability = 1.0
    for step, token in enumerate(new.tolist()):
        probability *= outputs.logits[step][0].softmax(-1)[token].item()
        if token == model.generation_config.eos_token_id:
            break
    assert found["score"] == pytest.approx(probability, rel=1e-4)
    assert found["answer"] == processor.decode(new, skip_special_tokens=True).strip()

    best = pipe(image=PICTURES[0], question=question, top_k=3, max_new_tokens=4)
    assert len(best) == 3
    assert [row["score"] for row in best] == sorted((row["score"] for row in best), reverse=True)
    rows = [{"image": picture, "question": question} for picture in PICTURES]
    one_by_one = [pipe(row, max_new_tokens=4) for row in rows]
    for found in (
        pipe(rows, max_new_tokens=4),
        pipe(rows, batch_size=3, max_new_tokens=4),
        pipe(image=PICTURES, question=question, max_new_tokens=4),
        list(pipe((row for row in rows), max_new_tokens=4)),
    ):
        assert [row[0]["answer"] for row in found] == [row[0]["answer"] for row in one_by_one]
    assert len(pipe(image=PICTURES[0], question=[question, "how?"], max_new_tokens=4)) == 2
    data = Dataset.from_list(rows)
    assert [row[0]["answer"] for row in pipe(data, max_new_tokens=4)] == [row[0]["answer"] for row in one_by_one]
    sampled = {"do_sample": True, "temperature": 0.01, "num_beams": 1}
    (found,) = pipe(PICTURES[0], question=question, max_new_tokens=4, generate_kwargs=sampled)
    assert found["score"] < 0.99  # the model's probability, not the sharpened one
    for missing in (PICTURES[0], PICTURES):
        with pytest.raises(ValueError, match="`question` is missing"):
            pipe(image=missing)
    with pytest.raises(ValueError, match="`top_k` must be at least 1"):
        pipe(image=PICTURES[0], question=question, top_k=0)


@torch.no_grad()
def test_zero_shot_scores_are_sigmoids_after_a_focal_loss_and_softmaxes_after_infonce(tmp_path):
    sums = {}
    for loss in ("focal", "softmax"):
        model, processor = mammut_pair(contrastive_loss_type=loss)
        model = model.model
        model.save_pretrained(tmp_path / loss)
        processor.save_pretrained(tmp_path / loss)
        pipe = pipeline("zero-shot-image-classification", str(tmp_path / loss))
        found = pipe(PICTURES[0], candidate_labels=["a red heart", "a cat"], hypothesis_template="{}")
        inputs = processor(images=PICTURES[0], text=["a red heart", "a cat"], return_tensors="pt")
        logits = model.eval()(**inputs).logits_per_image[0]
        expected = logits.sigmoid() if loss == "focal" else logits.softmax(-1)
        assert [row["score"] for row in found] == pytest.approx(
            expected.sort(descending=True).values.tolist(), rel=1e-4
        )
        sums[loss] = sum(row["score"] for row in found)
    assert sums["softmax"] == pytest.approx(1)
    assert sums["focal"] != pytest.approx(1, abs=1e-3)


@torch.no_grad()
def test_pipelines_of_transformers_work_as_they_are(tmp_path):
    model, processor = save_pair("grr_coca", tmp_path)
    folder = str(tmp_path)
    labels = ["a red heart", "a cat"]
    found = transformers_pipeline("zero-shot-image-classification", folder)(PICTURES[0], candidate_labels=labels)
    assert {row["label"] for row in found} == set(labels)
    assert sum(row["score"] for row in found) == pytest.approx(1)
    found = transformers_pipeline("image-text-to-text", folder)(
        images=PICTURES[0], text="a red", generate_kwargs={"max_new_tokens": 4}
    )
    assert found[0]["generated_text"].startswith("a red")
    GrrCocaModel.from_pretrained(folder).vision_model.save_pretrained(tmp_path / "vision")
    processor.image_processor.save_pretrained(tmp_path / "vision")
    features = transformers_pipeline("image-feature-extraction", str(tmp_path / "vision"))(PICTURES[0])
    pixel_values = processor(images=PICTURES[0], return_tensors="pt")["pixel_values"]
    expected = model.model.vision_model(pixel_values).last_hidden_state
    torch.testing.assert_close(torch.tensor(features), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["grr_coca", "vw_lmm"])
def test_features_of_texts(tmp_path, name):
    model, processor = PAIRS[name]()
    reader = model.model.text_model if name == "grr_coca" else model.model
    reader.save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    features = transformers_pipeline("feature-extraction", str(tmp_path))("a red heart")
    expected = reader(**processor.tokenizer("a red heart", return_tensors="pt")).last_hidden_state
    torch.testing.assert_close(torch.tensor(features), expected, atol=1e-5, rtol=1e-4)


STRANGER = """
from transformers import pipeline
from PIL import Image
picture = Image.new("RGB", (20, 20), "red")
options = {"max_new_tokens": 4, "generate_kwargs": {"num_beams": 1, "do_sample": False}}
found["caption"] = pipeline("image-to-text", model=repo, trust_remote_code=True)(picture, **options)
pipe = pipeline("visual-question-answering", model=repo, trust_remote_code=True)
found["answer"] = pipe(image=picture, question="what is it?", **options)
if AutoConfig.from_pretrained(repo, trust_remote_code=True).model_type != "vw_lmm":
    pipe = pipeline("zero-shot-image-classification", model=repo, trust_remote_code=True)
    found["labels"] = pipe(picture, candidate_labels=["a red heart", "a cat"])
"""


def test_a_checkpoint_brings_its_pipelines_along(saved, tmp_path, monkeypatch):
    _, _, folder = saved
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    found = ask_a_stranger(STRANGER, folder, {}, tmp_path)
    options = {"max_new_tokens": 4, "generate_kwargs": {"num_beams": 1, "do_sample": False}}
    assert found["caption"] == pipeline("image-to-text", folder)(PICTURES[0], **options)
    pipe = pipeline("visual-question-answering", folder)
    expected = pipe(image=PICTURES[0], question="what is it?", **options)
    assert [row["answer"] for row in found["answer"]] == [row["answer"] for row in expected]
    assert found["answer"][0]["score"] == pytest.approx(expected[0]["score"], rel=1e-4)
    if "labels" in found:
        pipe = pipeline("zero-shot-image-classification", folder)
        expected = pipe(PICTURES[0], candidate_labels=["a red heart", "a cat"])
        assert [row["label"] for row in found["labels"]] == [row["label"] for row in expected]
        assert [row["score"] for row in found["labels"]] == pytest.approx([row["score"] for row in expected], rel=1e-4)


def test_models_that_cannot_write_are_refused():
    model, processor = grr_coca_pair()
    with pytest.raises(ValueError, match="needs a model that generates text, got a GrrCocaModel"):
        pipeline("image-to-text", model.model, processor=processor)
