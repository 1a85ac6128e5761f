"""Training VW-LMM: conversations, stages, LoRA, the script, and pictures of visual words."""

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from tests.conftest import (
    CAPTIONS,
    run_card_snippet,
    tiny_config,
    tiny_model,
    tiny_processor,
    tiny_vw_lmm,
    tiny_vw_lmm_config,
    tiny_vw_lmm_processor,
    vw_lmm_batch,
)
from triptych.cli import app
from triptych.data.conversations import (
    ConversationCollator,
    ConversationDataset,
    ConversationMixture,
    QuestionConversations,
    load_conversations,
)
from triptych.data.easy_vqa import load_easy_vqa
from triptych.data.openmoji import named_drawings
from triptych.data.openmoji_questions import GROUNDS, NUMBERS, QUESTIONS, OpenMojiQuestions
from triptych.data.orders import LengthGroupedSampler
from triptych.evaluation.answers import answer_questions
from triptych.modeling.transformers_versions import checkpoint_activations
from triptych.training.run_arguments import RunArguments
from triptych.training.stages import STAGES, Stage, StageArguments, load_stage, prepare_stage, run_stage
from triptych.training.tokenizer import train_tokenizer
from triptych.visual_words import VisualWordMap, draw_png, readable, visual_word_map


ROOT = Path(__file__).parents[1]


# Data


def test_llava_layout_and_messages(tmp_path):
    Image.new("RGB", (20, 10), "red").save(tmp_path / "red.png")
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "red"}]
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    rows = [{"id": 1, "image": "red.png", "conversations": turns}, {"messages": messages}]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("data.json", "data.jsonl"):
        data = load_conversations(str(tmp_path / name))
        assert [len(item["images"]) for item in data] == [1, 0]
        assert data[0]["messages"][0] == {"role": "user", "content": "<image>\nWhat is it?"}
        assert [length > 1000 for length in data.lengths()] == [True, False]
        batch = ConversationCollator(tiny_vw_lmm_processor())([data[0], data[1]])
        assert batch["pixel_values"].shape[0] == 1
        assert ((batch["labels"] != -100).sum(-1) > 0).all()
    (tmp_path / "bad.json").write_text(json.dumps([{"conversations": [{"from": "robot", "value": "x"}]}]))
    with pytest.raises(ValueError, match=r"bad\.json, row 0, cannot be read: a turn needs `from`"):
        load_conversations(str(tmp_path / "bad.json"))[0]
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match="must hold a list of conversations, got dict"):
        load_conversations(str(tmp_path / "bad.json"))
    for name in ("../red.png", "/etc/passwd"):
        (tmp_path / "bad.json").write_text(json.dumps([{"image": name, "conversations": turns}]))
        with pytest.raises(ValueError, match=r"the image .* is not in `image_folder`"):
            load_conversations(str(tmp_path / "bad.json"))[0]
    (tmp_path / "bad.json").write_text(json.dumps([{"image": "lost.png", "conversations": turns}]))
    with pytest.raises(ValueError, match=r"lost\.png \(row 0\) cannot be read"):
        load_conversations(str(tmp_path / "bad.json"))[0]


def test_lengths_decode_no_image():
    broken = {"bytes": b"no picture", "path": None}
    block = [{"type": "image"}, {"type": "text", "text": "what?"}]
    rows = {
        "image": [broken, None],
        "messages": [[{"role": "user", "content": "<image>what?"}], [{"role": "user", "content": "hello"}]],
    }
    features = Features({"image": ImageFeature(), "messages": [{"role": Value("string"), "content": Value("string")}]})
    lengths = ConversationDataset(Dataset.from_dict(rows, features=features)).lengths()
    assert [length > 1000 for length in lengths] == [True, False]
    in_blocks = ConversationDataset(
        [{"messages": [{"role": "user", "content": block}], "images": ["a.png"]}]
    ).lengths()
    assert in_blocks[0] > 1000


def test_decoded_images_of_a_data_set(tmp_path):
    messages = [{"role": "user", "content": "<image>what is it?"}, {"role": "assistant", "content": "red"}]
    picture = Image.new("RGBA", (20, 10), "red")
    data = ConversationDataset(Dataset.from_list([{"image": picture, "messages": messages}]))
    assert data[0]["images"][0].mode == "RGB"
    assert data[0]["images"][0].size == (20, 10)


def test_batches_hold_conversations_of_one_length_and_kind(tmp_path):
    sizes = [3, 300] * 64
    rows = [
        {"messages": [{"role": "user", "content": "a" * size}, {"role": "assistant", "content": "b"}]}
        for size in sizes
    ]
    rows += [{**row, "images": ["a.png"]} for row in rows]
    data = ConversationDataset(rows)
    sampler = LengthGroupedSampler(data.lengths(), batch_size=4)
    order = list(sampler)
    assert sorted(order) == list(range(256))
    sampler.set_epoch(1)
    assert list(sampler) != order
    sampler.set_epoch(0)
    assert list(sampler) == order
    lengths = data.lengths()
    batches = [{lengths[index] for index in order[start : start + 4]} for start in range(0, 256, 4)]
    assert max(lengths) in batches[0]
    assert sum(len(batch) == 1 for batch in batches) > 40  # one in a shuffled order
    means = [sum(batch) / len(batch) for batch in batches]
    assert sum(first < second for first, second in itertools.pairwise(means)) > 10  # not sorted
    mixture = ConversationMixture([data, OpenMojiQuestions("test", 1)])
    assert len(mixture.lengths()) == len(mixture)


def short_and_long_conversations() -> list[dict]:
    """Of five lengths, with no, one and four images, one of which stands before everything else."""
    picture = Image.effect_noise((20, 20), 64).convert("RGB")
    asked = ("<image> red?", "what is it?", "<image>", "red, blue and <image> or <image> apple? " * 2, "a heart?")
    return [
        {
            "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}],
            "images": [picture.rotate(90 * (index + number)) for number in range(text.count("<image>"))],
        }
        for index, (text, answer) in enumerate(zip(asked, ("red", "a red apple", "blue", "heart", "no"), strict=True))
    ]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "options", [{}, {"pseudo_image_features": True}, {"visual_loss": "none"}], ids=["plain", "pif", "no visual loss"]
)
def test_packed_conversations_train_as_they_do_alone(attention, options):
    # Nothing stands before the first message, so that an image can be the first thing in a row.
    template = CHATML.replace("'<' + message['role']", "('' if loop.first else '<' + message['role']").replace(
        "'>' +", "'>') +"
    )
    processor = tiny_vw_lmm_processor(chat_template=template, eos_token="</s>")
    rows = short_and_long_conversations()
    plain, packed = (ConversationCollator(processor, packing)(rows) for packing in (False, True))
    assert len(packed["input_ids"]) < len(rows)
    assert packed["input_ids"].shape[1] == plain["input_ids"].shape[1]
    model = tiny_vw_lmm(
        attention,
        text_config={"vocab_size": 320, "max_position_embeddings": 128},
        image_token_id=processor.image_token_id,
        **options,
    )
    found = []
    for batch in (plain, packed):
        model.train().zero_grad()
        outputs = model(**batch)
        outputs.loss.backward()
        found.append((outputs, {name: p.grad for name, p in model.named_parameters()}))
    (alone, wanted), (together, gradients) = found
    for name in ("loss", "language_loss", "visual_loss"):
        if getattr(alone, name) is not None:
            torch.testing.assert_close(getattr(together, name), getattr(alone, name), atol=1e-5, rtol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-5, rtol=1e-4)


def test_questions_of_an_image_become_one_conversation():
    data = load_easy_vqa()["train"].select(range(30))
    conversations = QuestionConversations(data, questions_per_image=4)
    items = [conversations[index] for index in range(len(conversations))]
    assert sum(len(item["messages"]) for item in items) == 60
    assert all(len(item["messages"]) <= 8 for item in items)
    assert all(item["messages"][0]["content"].startswith("<image>\n") for item in items)
    assert all("<image>" not in message["content"] for item in items for message in item["messages"][1:])
    assert len(conversations.lengths()) == len(conversations)


def test_openmoji_pictures_show_what_their_answers_say():
    data = OpenMojiQuestions("test")
    assert not {row["caption"] for row in data.rows} & {each.caption for each in named_drawings()["train"]}
    for index in range(0, len(data), 40):
        row, picture, answers = data.rows[index], data[index]["images"][0], data.rows[index]["answers"]
        if "what" in answers:
            assert row["caption"].startswith(answers["what"])
            continue
        assert picture.getpixel((0, 0)) == GROUNDS[answers["color"]]
        assert len(row["places"]) == NUMBERS.index(answers["number"]) + 1
        for x, y in row["places"]:
            half = 48 * row["scale"]
            box = (96 * x - half, 96 * y - half, 96 * x + half, 96 * y + half)
            around = picture.crop([min(max(round(edge), 0), 96) for edge in box])
            assert {colour for _, colour in around.getcolors(10000)} != {GROUNDS[answers["color"]]}
    questions = data.questions()
    assert Counter(questions["answer_type"]) == dict.fromkeys(QUESTIONS, len(named_drawings()["test"]))


# Stages


@pytest.mark.parametrize("name", list(STAGES))
@pytest.mark.parametrize("lora_rank", [None, 2])
def test_gradient_reaches_exactly_what_a_stage_trains(name, lora_rank):
    model, batch = tiny_vw_lmm(), vw_lmm_batch()
    trained = prepare_stage(model, STAGES[name], lora_rank).train()
    trained(**batch).loss.backward()
    touched = {key for key, p in trained.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    adapter = {"linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias"}
    touched_in_adapter = {
        key.split("multi_modal_projector.")[-1].removeprefix("modules_to_save.default.") for key in touched
    }
    assert (adapter <= touched_in_adapter) == (name in ("align", "instruct", "joint"))
    assert any("vm_head" in key for key in touched) == (name == "fit_vm_head")
    assert not any("vision_tower" in key for key in touched)
    language = {key for key in touched if "language_model" in key or "lm_head" in key}
    assert bool(language) == (name in ("instruct", "joint"))
    if lora_rank and language:
        assert all("lora_" in key for key in language)
    assert model.config.visual_loss == STAGES[name].visual_loss
    assert model.config.detach_visual_target == (name == "joint")


def test_stages_that_do_not_fit_the_model():
    with pytest.raises(ValueError, match=r"trains `model\.bridge`, which the model does not have"):
        prepare_stage(tiny_vw_lmm(), Stage(("model.bridge",), "none"))
    with pytest.raises(ValueError, match="trains nothing"):
        prepare_stage(tiny_vw_lmm(), Stage((), "none"))


def test_lora_saves_loads_merges_and_unloads(tmp_path):
    batch = vw_lmm_batch()
    model = get_peft_model(
        tiny_vw_lmm(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    with torch.no_grad():
        expected = model.eval()(**batch).logits
        assert not torch.allclose(expected, tiny_vw_lmm()(**batch).logits, atol=1e-4)
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(tiny_vw_lmm(), tmp_path).eval()
        torch.testing.assert_close(loaded(**batch).logits, expected)
        torch.testing.assert_close(loaded.merge_and_unload()(**batch).logits, expected, atol=1e-4, rtol=0)
        plain = model.unload()
        torch.testing.assert_close(plain(**batch).logits, tiny_vw_lmm()(**batch).logits)


def test_lora_on_both_heads_still_trains_with_the_visual_loss():
    batch = vw_lmm_batch()
    model = get_peft_model(tiny_vw_lmm(), LoraConfig(r=2, target_modules=["lm_head", "vm_head"]))
    with torch.no_grad():
        expected = tiny_vw_lmm()(**batch).visual_loss
    loss = model(**batch)
    torch.testing.assert_close(loss.visual_loss, expected, atol=1e-5, rtol=0)
    loss.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_gradient_checkpointing_changes_nothing():
    gradients = []
    for checkpointing in (False, True):
        model = tiny_vw_lmm().train()
        if checkpointing:
            checkpoint_activations(model)
        model(**vw_lmm_batch()).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_answers_do_not_depend_on_the_batch():
    processor = tiny_vw_lmm_processor()
    size = len(processor.tokenizer)
    model = tiny_vw_lmm(
        text_config={"vocab_size": size, "max_position_embeddings": 256}, image_token_id=processor.image_token_id
    )
    pictures = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    questions = ["what is it?", "a red circle, or another one?", "how?"]
    rows = [{"question": each, "image": image} for each, image in zip(questions, pictures, strict=True)]

    def ask(rows: list[dict], batch_size: int) -> list[str]:
        return answer_questions(model, rows, processor, Accelerator(cpu=True), batch_size)

    assert ask(rows, 3) == ask(rows, 1)
    assert len(ask([{"question": each} for each in questions], 2)) == 3


# The script and the pictures

CHATML = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def write_towers(folder: Path) -> None:
    tokenizer = train_tokenizer([*CAPTIONS, *QUESTIONS.values(), *NUMBERS, *GROUNDS], 300, 512)
    tokenizer.chat_template = CHATML
    text = {**tiny_vw_lmm_config().text_config.to_dict(), "vocab_size": len(tokenizer), "max_position_embeddings": 512}
    LlamaForCausalLM(LlamaConfig(**{**text, "eos_token_id": tokenizer.eos_token_id})).save_pretrained(folder / "text")
    tokenizer.save_pretrained(folder / "text")
    tiny_model().save_pretrained(folder / "vision")
    tiny_processor(tiny_config()).save_pretrained(folder / "vision")


def run(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / "train_vw_lmm.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_the_script_trains_all_stages_goes_on_and_compares(tmp_path, monkeypatch):
    write_towers(tmp_path)
    steps = {"align": 1, "instruct": 2, "fit_vm_head": 1, "joint": 2}
    arguments = [
        "--output_dir", str(tmp_path / "run"), "--vision", str(tmp_path / "vision"), "--text", str(tmp_path / "text"),
        "--steps", json.dumps(steps), "--batch_size", "2", "--num_eval_pictures", "2", "--mixed_precision", "no",
        "--num_workers", "0", "--pictures_per_drawing", "2", "--compare", "--packing",
    ]  # fmt: skip
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    for row in ("without images", "language loss only", "visual words", "pseudo image features"):
        assert f"{row} |" in result.stdout
    once_more = run(*arguments)
    assert "holds stages of an earlier run: pass `resume` to go on" in once_more.stderr
    again = run(*arguments, "--resume")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("is finished") == 4  # what it is compared with was measured already
    run_card_snippet(tmp_path / "run", tmp_path, monkeypatch)
    Image.new("RGB", (40, 30), "red").save("picture.png")
    outcome = CliRunner().invoke(app, ["visual-words", "picture.png", "--model", str(tmp_path / "run")])
    assert outcome.exit_code == 0, outcome.output
    assert Image.open("picture-visual-words.png").size[0] > 500
    page = Path("picture-visual-words.html").read_text()
    assert "data:image/png;base64," in page


def test_a_comparison_needs_the_joint_stage():
    result = run("--output_dir", "unused", "--vision", "unused", "--stages", "align", "--compare")
    assert "`compare` needs the joint stage at the end, `stages` is 'align'" in result.stderr


class _Interrupting(OpenMojiQuestions):
    """Stops when it is asked for row after row."""

    left = 7  # three steps of two, and one more

    def __getitem__(self, index: int) -> dict:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return super().__getitem__(index)


@pytest.mark.parametrize("lora_rank", [None, 2])
def test_an_interrupted_stage_goes_on_where_it_was(tmp_path, lora_rank):
    processor = tiny_vw_lmm_processor()
    size = len(processor.tokenizer)
    model = tiny_vw_lmm(
        text_config={"vocab_size": size, "max_position_embeddings": 256}, image_token_id=processor.image_token_id
    )
    model.save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    stages = StageArguments(vision="", stages="joint", steps='{"joint": 5}', learning_rates='{"joint": 1e-2}')
    args = RunArguments(output_dir="", batch_size=2, num_workers=0, mixed_precision="no", checkpoint_steps=2)

    def train(name: str, data: OpenMojiQuestions) -> dict[str, torch.Tensor]:
        run_args = stages.run("joint", args, tmp_path / name)
        run_stage("joint", run_args, tmp_path / "start", data, lora_rank)
        return load_stage(tmp_path / name)[0].state_dict()

    data = OpenMojiQuestions("test")
    expected = train("whole", data)
    with pytest.raises(KeyboardInterrupt):
        train("parts", _Interrupting("test"))
    checkpoints = tmp_path / "parts" / "checkpoints"
    assert [folder.name for folder in checkpoints.iterdir()] == ["step-00000002"]
    saved = {path.name for path in (checkpoints / "step-00000002").iterdir()}
    assert ("adapter.safetensors" in saved) == (lora_rank is not None)
    assert ("model.safetensors" in saved) == (lora_rank is None)  # the base does not change
    for name, tensor in train("parts", data).items():
        torch.testing.assert_close(tensor, expected[name])
    assert not checkpoints.exists()
    log = (tmp_path / "parts" / "training_log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2, 3, 4, 5]
    first = json.loads(log[0])
    assert first["loss"] == pytest.approx(first["language_loss"] + first["visual_loss"], rel=1e-3)
    start = load_stage(tmp_path / "start")[0].state_dict()
    assert any(not torch.equal(tensor, start[name]) for name, tensor in expected.items() if "language_model" in name)


def test_maps_of_visual_words():
    processor = tiny_vw_lmm_processor()
    model = tiny_vw_lmm(text_config={"vocab_size": len(processor.tokenizer)}, image_token_id=processor.image_token_id)
    found = visual_word_map(model, processor, Image.new("RGB", (30, 20), "blue"), top_k=3, num_heat_maps=2)
    assert found.image.size == (16, 16)
    assert found.image.getpixel((8, 8)) == (0, 0, 255)
    assert found.grid == 2
    assert len(found.words) == 4
    assert len(found.heat) == 2
    shares = [heat.mean() for heat in found.heat.values()]
    assert shares == sorted(shares, reverse=True)
    assert [readable(token) for token in ("Ġred", "▁red", "<0x0A>", "Ċ")] == ["red", "red", "", "Ċ"]


def test_words_that_look_like_formulas_are_drawn_as_they_are(tmp_path):
    heat = {"$$": np.full((2, 2), 0.5), "$a_b$": np.full((2, 2), 0.25)}
    found = VisualWordMap(
        Image.new("RGB", (16, 16)), [["$$"], ["$x^$"], ["\\frac"], ["a"]], np.full((4, 1), 0.5), heat
    )
    draw_png(found, tmp_path / "words.png")
    assert Image.open(tmp_path / "words.png").size[0] > 500


def test_visual_words_of_another_model_are_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path / "other")
    tiny_processor(tiny_config()).save_pretrained(tmp_path / "other")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    outcome = CliRunner().invoke(app, ["visual-words", str(tmp_path / "a.png"), "--model", str(tmp_path / "other")])
    assert outcome.exit_code == 2
    assert "visual words need a vw_lmm" in outcome.output
