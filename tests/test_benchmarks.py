"""The layouts of public benchmarks as made sets, and every number beside its public evaluator or an independent computation."""

import base64
import csv
import io
import json
import tarfile
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, List
from datasets import Image as ImageFeature
from faster_coco_eval import COCO, COCOeval_faster
from PIL import Image
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from sklearn.metrics import f1_score, precision_score, recall_score
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipProcessor,
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Owlv2Processor,
)
from typer.testing import CliRunner

from tests.conftest import (
    grr_coca_pair,
    mammut_pair,
    save_pair,
    tiny_mammut,
    tiny_mammut_processor,
    vw_lmm_pair,
    write_clip,
)
from tests.test_tasks import command_of_the_page
from triptych.cli import TaskName, app
from triptych.evaluation.generator import Generator
from triptych.tasks.captions import Captions
from triptych.tasks.catalog import KINDS, make_task
from triptych.tasks.choices import Choices, chosen_letter
from triptych.tasks.detection import OpenDetector
from triptych.tasks.encoders import Encoder
from triptych.tasks.questions import Questions, YesNo
from triptych.tasks.retrieval import Retrieval
from triptych.tasks.runs import run_task


WORDS = (
    "a red heart",
    "a green apple",
    "flag",
    "a blue whale swims",
    "woman firefighter",
    "heart",
    "apple red",
    "whale",
)


def picture(number: int) -> Image.Image:
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8))


def write_picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(number).save(path)


def captions_of(number: int) -> list[str]:
    """As many as two to four, all different."""
    return [f"{WORDS[(number + shift) % 8]} {number}" for shift in range(2 + number % 3)]


class Speaker:
    """Says what it was told to, in turn; in place of a model, whose words nobody knows beforehand."""

    def __init__(self, said: list[str], chats: bool = True):
        self.said, self.chats, self.asked = iter(said), chats, []

    def captions(self, visuals, kind="image", prompt=None, **options):
        return [next(self.said) for _ in visuals]

    def answers(self, rows, **options):
        self.asked += rows
        return [next(self.said) for _ in rows]


def evaluate(task, worker, folder: Path) -> dict:
    return run_task(task, worker, {}, folder / "out", Accelerator(cpu=True), batch_size=4)["metrics"]


def karpathy(folder: Path) -> Path:
    images = []
    for number in range(12):
        write_picture(folder / "val2014" / f"COCO_val2014_{number:012d}.png", number)
        split = "test" if number < 10 else "restval"
        sentences = [{"raw": text + " \n"} for text in captions_of(number)]
        images.append(
            {
                "filepath": "val2014",
                "filename": f"COCO_val2014_{number:012d}.png",
                "split": split,
                "sentences": sentences,
            }
        )
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images}))
    return folder


def webdataset(folder: Path) -> Path:
    """As CLIP_benchmark keeps pairs."""
    (folder / "test").mkdir(parents=True)
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for number in range(10):
            stored = io.BytesIO()
            picture(number).save(stored, "PNG")
            for ending, content in (("png", stored.getvalue()), ("txt", "\n".join(captions_of(number)).encode())):
                info = tarfile.TarInfo(f"s{number:04d}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    (folder / "dataset_type.txt").write_text("retrieval")
    (folder / "test" / "nshards.txt").write_text("1")
    return folder


def parquet(folder: Path) -> Path:
    folder.mkdir(parents=True)
    rows = [{"image": picture(number), "caption": captions_of(number)} for number in range(10)]
    data = Dataset.from_dict({key: [row[key] for row in rows] for key in rows[0]}).cast_column("image", ImageFeature())
    data.to_parquet(str(folder / "test-0.parquet"))
    return folder


@pytest.mark.parametrize("layout", [karpathy, webdataset, parquet])
def test_retrieval_counts_what_sorting_counts(tmp_path, layout):
    model, processor = grr_coca_pair()
    task = Retrieval(str(layout(tmp_path / "data")), fold=5)
    found = evaluate(task, Encoder(model.model, processor), tmp_path)

    def by_hand(numbers: range) -> dict[str, list[bool]]:
        """Of every query whether its answer is the first, straight from the model."""
        texts = [(number, text) for number in numbers for text in captions_of(number)]
        with torch.no_grad():
            pixels = processor(images=[picture(number) for number in numbers], return_tensors="pt")["pixel_values"]
            images = model.get_image_features(pixels).pooler_output
            inputs = processor(text=[text for _, text in texts], padding=True, return_tensors="pt")
            words = model.get_text_features(**inputs).pooler_output
        scores = torch.nn.functional.normalize(words, dim=-1) @ torch.nn.functional.normalize(images, dim=-1).T
        first, last = numbers[0], scores.T.argmax(1)
        return {
            "text_to_image": [
                int(best) + first == number for best, (number, _) in zip(scores.argmax(1), texts, strict=True)
            ],
            "image_to_text": [texts[best][0] == number for best, number in zip(last, numbers, strict=True)],
        }

    for way, hits in by_hand(range(10)).items():
        assert found[f"{way}_recall@1"] == pytest.approx(np.mean(hits))
        folds = [np.mean(by_hand(part)[way]) for part in (range(5), range(5, 10))]
        assert found[f"5_{way}_recall@1"] == pytest.approx(np.mean(folds))
    assert found["num_captions"] == sum(len(captions_of(number)) for number in range(10))
    assert found["image_to_text_recall@10"] <= 1.0 == found["text_to_image_recall@10"]


def coco_captions(folder: Path, name: str = "captions_val2017.json") -> Path:
    images, annotations = [], []
    for number in range(6):
        write_picture(folder / "val2017" / f"{number:012d}.png", number)
        images.append({"id": number, "file_name": f"{number:012d}.png"})
        if name.startswith("nocaps"):
            images[-1]["domain"] = ("in-domain", "out-domain")[number % 2]
        annotations += [{"image_id": number, "caption": text} for text in captions_of(number)]
    (folder / name).write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder


@pytest.mark.parametrize("name", ["captions_val2017.json", "nocaps_val_4500_captions.json"])
def test_captions_score_what_pycocoevalcap_scores(tmp_path, name):
    said = [WORDS[(3 * number) % 8] + f" {number}" for number in range(6)]
    found = evaluate(Captions(str(coco_captions(tmp_path / "data", name)), "val"), Speaker(said), tmp_path)
    true = {number: captions_of(number) for number in range(6)}
    cider, each = Cider().compute_score(true, {number: [said[number]] for number in true})
    bleu, _ = Bleu(4).compute_score(true, {number: [said[number]] for number in true}, verbose=0)
    assert found["cider_d"] == pytest.approx(cider)
    assert [found[f"bleu_{order}"] for order in range(1, 5)] == pytest.approx(bleu)
    assert json.loads((tmp_path / "out" / "values.json").read_text())["cider_d"] == pytest.approx(each.tolist())
    if name.startswith("nocaps"):
        own = {number: true[number] for number in (1, 3, 5)}
        score, _ = Cider().compute_score(own, {number: [said[number]] for number in own})
        assert found["cider_d_out-domain"] == pytest.approx(score)


def test_clips_are_captioned(tmp_path):
    folder = tmp_path / "data"
    (folder / "videos").mkdir(parents=True)
    for number in range(2):
        write_clip(folder / "videos" / f"video{number}.mp4", 8)
    content = {
        "videos": [{"video_id": "video0", "split": "test"}, {"video_id": "video1", "split": "test"}],
        "sentences": [{"video_id": f"video{number % 2}", "caption": WORDS[number]} for number in range(4)],
    }
    (folder / "videodatainfo_2016.json").write_text(json.dumps(content))
    processor = tiny_mammut_processor(max_length=40, num_frames=8)
    mammut = tiny_mammut("video", text_config={"vocab_size": len(processor.tokenizer), "max_position_embeddings": 40})
    found = evaluate(Captions(str(folder)), Generator(mammut, processor), tmp_path)
    assert 0 <= found["cider_d"] <= 10
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()[1:]]
    assert [sample["references"] for sample in samples] == [[WORDS[0], WORDS[2]], [WORDS[1], WORDS[3]]]
    with pytest.raises(ValueError, match=r"`split` 'train' is not in .* which has test"):
        Captions(str(folder), "train")


ANSWERS = [["yes"] * 7 + ["no"] * 3, ["2"] * 10, ["red"] * 2 + ["blue"] * 8]
KINDS_OF_ANSWERS = ["yes/no", "number", "other"]


def vqa_v2(folder: Path) -> tuple[Path, str]:
    questions, annotations = [], []
    for number, (answers, kind) in enumerate(zip(ANSWERS, KINDS_OF_ANSWERS, strict=True)):
        write_picture(folder / "val2014" / f"COCO_val2014_{number:012d}.jpg", number)
        questions.append({"question_id": 10 + number, "image_id": number, "question": f"question {number}?"})
        annotations.append(
            {"question_id": 10 + number, "answers": [{"answer": each} for each in answers], "answer_type": kind}
        )
    (folder / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps({"questions": questions}))
    (folder / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": annotations[::-1]}))
    return folder, "val"


def text_vqa(folder: Path) -> tuple[Path, str]:
    for number in range(3):
        write_picture(folder / "train_images" / f"im{number}.jpg", number)
    rows = [
        {"image_id": f"im{number}", "question": f"question {number}?", "answers": answers}
        for number, answers in enumerate(ANSWERS)
    ]
    (folder / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": rows}))
    return folder, "val"


def viz_wiz(folder: Path) -> tuple[Path, str]:
    rows = []
    for number, answers in enumerate(ANSWERS):
        write_picture(folder / "val" / f"VizWiz_val_{number}.jpg", number)
        each = [{"answer": answer, "answer_confidence": "yes"} for answer in answers]
        rows.append({"image": f"VizWiz_val_{number}.jpg", "question": f"question {number}?", "answers": each})
    (folder / "val.json").write_text(json.dumps(rows))
    return folder, "val"


@pytest.mark.parametrize("layout", [vqa_v2, text_vqa, viz_wiz])
def test_questions_are_counted_as_the_vqa_challenge_counts(tmp_path, layout):
    folder, split = layout(tmp_path / "data")
    speaker = Speaker(["Yes.", "two", "red"])
    found = evaluate(Questions(str(folder), split, prompt="{} Briefly."), speaker, tmp_path)
    assert [row["question"] for row in speaker.asked] == [f"question {number}? Briefly." for number in range(3)]

    def official(answer: str, given: list[str]) -> float:
        """min(matches among the other nine / 3, 1), over the ten ways to leave one human out."""
        return np.mean([min(sum(x == answer for x in given[:i] + given[i + 1 :]) / 3, 1) for i in range(10)])

    each = [official(answer, given) for answer, given in zip(["yes", "2", "red"], ANSWERS, strict=True)]
    assert each[2] == pytest.approx(0.6)
    assert found["vqa_accuracy"] == pytest.approx(np.mean(each))
    assert [found[f"vqa_accuracy_{kind}"] for kind in KINDS_OF_ANSWERS] == pytest.approx(each)
    assert "exact_match" not in found


def test_single_answers_match_exactly(tmp_path):
    folder = tmp_path / "data"
    for number in range(3):
        write_picture(folder / "images" / f"{number}.jpg", number)
    questions = {
        str(number): {"imageId": str(number), "question": "which?", "answer": answer, "types": {"structural": "query"}}
        for number, answer in enumerate(["red", "two", "t-shirt"])
    }
    (folder / "testdev_balanced_questions.json").write_text(json.dumps(questions))
    found = evaluate(Questions(str(folder), "testdev"), Speaker(["Red.", "2", "shirt"]), tmp_path)
    assert found["exact_match"] == pytest.approx(1 / 3)
    assert found["vqa_accuracy"] == pytest.approx(2 / 3)  # after which "two" is "2"


def test_clips_are_asked_about(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_clip(folder / "video7.mp4", 8)
    rows = [
        {"video_id": 7, "question": "what is it", "answer": "man"},
        {"video_id": 7, "question": "who is it", "answer": "dog"},
    ]
    (folder / "test_qa.json").write_text(json.dumps(rows))
    found = evaluate(Questions(str(folder)), Speaker(["man", "man"]), tmp_path)
    assert (found["exact_match"], found["vqa_accuracy_what"], found["vqa_accuracy_who"]) == (0.5, 1.0, 0.0)


def test_pope_has_its_four_numbers(tmp_path):
    labels = ["yes", "no", "yes", "no", "no", "yes"]
    said = ["Yes, there is.", "no", "There is not. Yes?", "yes", "No way", "I see one"]
    read = [1, 0, 0, 1, 0, 1]  # "no" or "not" in the first sentence is a no
    folder = tmp_path / "data"
    lines = []
    for number, label in enumerate(labels):
        write_picture(folder / "val2014" / f"im{number}.jpg", number)
        lines.append(
            json.dumps({"question_id": number, "image": f"im{number}.jpg", "text": "Is there?", "label": label})
        )
    (folder / "coco_pope_random.json").write_text("\n".join(lines))
    found = evaluate(YesNo(str(folder), "random"), Speaker(said), tmp_path)
    true = [label == "yes" for label in labels]
    assert found["precision"] == pytest.approx(precision_score(true, read))
    assert found["recall"] == pytest.approx(recall_score(true, read))
    assert found["f1"] == pytest.approx(f1_score(true, read))
    assert found["accuracy"] == pytest.approx(np.mean(np.array(true) == read))
    assert found["yes_ratio"] == pytest.approx(0.5)
    lines[3] = json.dumps({"question_id": 3, "image": "im3.jpg", "text": "Is there?", "label": "perhaps"})
    (folder / "coco_pope_random.json").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"answer of row 3 is \['perhaps'\]; expected yes or no"):
        YesNo(str(folder), "random")


def science_qa(folder: Path) -> tuple[Path, str, list[int]]:
    problems = {
        str(number): {
            "question": "which?", "choices": ["cat", "dog", "cow"], "answer": number, "hint": "look",
            "image": "image.png" if number != 1 else None, "subject": "natural science",
        }
        for number in range(3)
    }  # fmt: skip
    for number in (0, 2):
        write_picture(folder / "test" / str(number) / "image.png", number)
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps({"test": ["0", "1", "2"]}))
    return folder, "test", [0, 2]


def mm_bench(folder: Path) -> tuple[Path, str, list[int]]:
    folder.mkdir()
    stored = io.BytesIO()
    picture(0).save(stored, "PNG")
    with (folder / "MMBench_DEV_EN.tsv").open("w", newline="") as file:
        rows = csv.DictWriter(
            file, ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"], delimiter="\t"
        )
        rows.writeheader()
        picture_text = base64.b64encode(stored.getvalue()).decode()
        base = {"question": "which?", "hint": "nan", "C": "", "D": "", "category": "logic", "image": picture_text}
        rows.writerow({**base, "index": 5, "A": "cat", "B": "dog", "answer": "A"})
        rows.writerow({**base, "index": 1_000_005, "A": "dog", "B": "cat", "answer": "B", "image": 5})
    return folder, "dev", [0, 1]


def seed_bench(folder: Path) -> tuple[Path, str, list[int]]:
    questions = []
    for number, answer in enumerate("BDA"):
        write_picture(folder / "SEED-Bench-image" / f"{number}.jpg", number)
        each = {f"choice_{letter}": f"thing {letter}" for letter in "abcd"}
        kind = "video" if number == 1 else "image"
        row = {"question": "which?", **each, "answer": answer, "data_id": str(number), "data_type": kind}
        questions.append({**row, "question_type_id": 1})
    content = {"questions": questions, "question_type": {"Scene Understanding": 1}}
    (folder / "SEED-Bench.json").write_text(json.dumps(content))
    return folder, "test", [1, 0]


def table_of_choices(folder: Path) -> tuple[Path, str, list[int]]:
    folder.mkdir()
    rows = {"question": ["which?", "what?"], "A": ["cat", "one"], "B": ["dog", "two"], "answer": ["B", "A"]}
    data = Dataset.from_dict({**rows, "image": [picture(0), picture(1)]}).cast_column("image", ImageFeature())
    data.to_parquet(str(folder / "test-0.parquet"))
    return folder, "test", [1, 0]


def table_with_lists(folder: Path) -> tuple[Path, str, list[int]]:
    """As SEED-Bench on the Hub, with pictures in lists, and ScienceQA, with rows that have none."""
    folder.mkdir()
    choices = {f"choice_{letter}": [f"thing {letter}"] * 3 for letter in "abcd"}
    rows = {"question": ["which?", "what?", "who?"], **choices, "answer": ["B", "A", "D"]}
    images = [[picture(0)], [], [picture(1)]]
    data = Dataset.from_dict({**rows, "image": images}).cast_column("image", List(ImageFeature()))
    data.to_parquet(str(folder / "test-0.parquet"))
    return folder, "test", [1, 3]


@pytest.mark.parametrize("layout", [table_with_lists, science_qa, mm_bench, seed_bench, table_of_choices])
def test_choices_are_counted_by_letter(tmp_path, layout):
    folder, split, right = layout(tmp_path / "data")
    speaker = Speaker([f"{'ABCD'[right[0]]}.", "I do not know."])
    found = evaluate(Choices(str(folder), split), speaker, tmp_path)
    assert (found["accuracy"], found["unread"]) == (0.5, 0.5)
    assert "which?\nA. " in speaker.asked[0]["question"]
    assert speaker.asked[0]["question"].startswith("look" if layout is science_qa else "which?")
    if layout is mm_bench:  # right in one turn of two
        assert found["circular_accuracy"] == 0.0
    if layout is seed_bench:
        assert found["accuracy_Scene Understanding"] == 0.5


@pytest.mark.parametrize(
    ("answer", "taken"),
    [("B", 1), ("(c) cow", 2), ("C) cow", 2), ("The answer is (A).", 0), ("Dog.", 1), ("Cat", 0), ("Dogs bark", -1), ("D", -1), ("A cow, I think", 0)],
)  # fmt: skip
def test_letters_are_read(answer, taken):
    assert chosen_letter(answer, ["cat", "dog", "cow"]) == (-1 if answer == "(c) cow" else taken)


def test_models_that_do_not_chat_take_the_likeliest_answer(tmp_path):
    folder, split, _ = table_of_choices(tmp_path / "data")
    mammut, processor = mammut_pair()
    generator = Generator(mammut, processor)
    evaluate(Choices(str(folder), split), generator, tmp_path)
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()[1:]]
    for sample, number, question, choices in (
        (samples[0], 0, "which?", ["cat", "dog"]),
        (samples[1], 1, "what?", ["one", "two"]),
    ):
        losses = []
        for choice in choices:
            inputs = processor(images=picture(number), questions=question, answers=choice, return_tensors="pt")
            with torch.no_grad():
                logits = mammut(**inputs, skip_logits=False).logits[0, :-1].float()
            targets = inputs["labels"][0, 1:]
            losses.append(torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item())
        assert sample["taken"] == int(np.argmin(losses))


def test_models_that_read_no_questions_choose_nothing(tmp_path):
    folder, split, _ = table_of_choices(tmp_path / "data")
    with pytest.raises(ValueError, match="A grr_coca reads no questions; take a mammut or a vw_lmm"):
        evaluate(Choices(str(folder), split), Generator(*grr_coca_pair()), tmp_path)


def coco_objects(folder: Path, lvis: bool = False) -> Path:
    images, annotations = [], []
    for number in range(4):
        write_picture(folder / "val2017" / f"{number}.jpg", number)
        images.append({"id": number, "file_name": f"{number}.jpg", "width": 20, "height": 20})
        if lvis:
            images[-1] |= {"neg_category_ids": [3], "not_exhaustive_category_ids": []}
            images[-1]["coco_url"] = f"http://images.cocodataset.org/val2017/{images[-1].pop('file_name')}"
        annotations.append(
            {
                "id": number + 1, "image_id": number, "category_id": 1 + number % 2, "bbox": [2, 3, 10 + number, 9], "area": 90,
                "iscrowd": 0,
            }
        )  # fmt: skip
    categories = [{"id": number, "name": name} for number, name in enumerate(("red_heart", "apple", "cat"), 1)]
    if lvis:
        for category, frequency in zip(categories, "frc", strict=True):
            category["frequency"] = frequency
    name = "lvis_v1_val.json" if lvis else "instances_val2017.json"
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / name).write_text(json.dumps(content))
    return folder


class Finder:
    """Finds every object a pixel beside where it is, with its own score, and one that is not there."""

    def __call__(self, images, classes, threshold, top_k):
        assert classes == ["red heart", "apple", "cat"]
        found = []
        for image in images:
            (number,) = [
                number
                for number in range(4)
                if np.abs(np.asarray(image, int) - np.asarray(Image.open(self.folder / f"{number}.jpg"), int)).sum()
                == 0
            ]
            boxes = torch.tensor([[3.0, 3.0, 12.0 + number, 12.0], [0.0, 0.0, 5.0, 5.0]])
            found.append(
                {
                    "boxes": boxes,
                    "scores": torch.tensor([0.9 - number / 10, 0.95 - number / 10]),
                    "labels": torch.tensor([number % 2, (number + 1) % 2]),
                }
            )
        return found


def test_detection_counts_what_coco_counts(tmp_path):
    folder = coco_objects(tmp_path / "data")
    finder = Finder()
    finder.folder = folder / "val2017"
    (tmp_path / "novel.txt").write_text("apple\n")
    task = make_task("detection", str(folder), {"split": "val", "novel_classes": tmp_path / "novel.txt"})
    found = evaluate(task, finder, tmp_path)
    truth = COCO(str(folder / "instances_val2017.json"))
    detections = []
    for number in range(4):
        detections.append(
            {
                "image_id": number,
                "category_id": 1 + number % 2,
                "bbox": [3, 3, 9 + number, 9],
                "score": 0.9 - number / 10,
            }
        )
        detections.append(
            {
                "image_id": number,
                "category_id": 1 + (number + 1) % 2,
                "bbox": [0, 0, 5, 5],
                "score": 0.95 - number / 10,
            }
        )
    run = COCOeval_faster(truth, truth.loadRes(detections), iouType="bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
    assert found["ap"] == pytest.approx(run.stats[0])
    assert found["ap50"] == pytest.approx(run.stats[1])
    precision = run.eval["precision"][:, :, 1, 0, -1]
    assert found["ap_novel"] == pytest.approx(precision[precision > -1].mean())
    assert found["ap_base"] is not None
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["metrics"]["ap_large"] is None  # where there are none


def test_rare_classes_of_lvis_are_reported(tmp_path):
    folder = coco_objects(tmp_path / "data", lvis=True)
    finder = Finder()
    finder.folder = folder / "val2017"
    found = evaluate(make_task("detection", str(folder), {"split": "val"}), finder, tmp_path)
    assert {"ap_rare", "ap_frequent", "ap_novel", "ap_base"} <= found.keys()
    assert found["ap_rare"] == found["ap_novel"]


def test_models_of_transformers_do_the_tasks(tmp_path):
    """BLIP captions, Llava answers, OWLv2 detects; VW-LMM as Llava."""
    processor = tiny_mammut_processor()
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": len(processor.tokenizer),
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "sep_token_id": 2}
    blip = BlipForConditionalGeneration(
        BlipConfig(text_config={**text, **ids, "encoder_hidden_size": 16}, vision_config=vision)
    ).eval()
    found = evaluate(
        Captions(str(coco_captions(tmp_path / "data")), "val", max_new_tokens=4),
        Generator(blip, BlipProcessor(processor.image_processor, processor.tokenizer)),
        tmp_path,
    )
    assert found["bleu_1"] >= 0
    folder, split = text_vqa(tmp_path / "questions")
    vw_lmm, chat = vw_lmm_pair()
    owner = {"image_token_index": chat.image_token_id, "vision_feature_layer": -1}
    size = max(chat.image_token_id + 1, len(chat.tokenizer))
    llava = LlavaForConditionalGeneration(
        LlavaConfig(
            text_config={"model_type": "llama", **text, "vocab_size": size, "num_key_value_heads": 2},
            vision_config={"model_type": "clip_vision_model", **vision},
            **owner,
        )
    ).eval()
    for number, model in enumerate((llava, vw_lmm)):
        found = evaluate(
            Questions(str(folder), split, max_new_tokens=3), Generator(model, chat), tmp_path / str(number)
        )
        assert 0 <= found["vqa_accuracy"] <= 1
    with pytest.raises(ValueError, match="captions nothing unasked: give a `prompt`"):
        evaluate(Captions(str(tmp_path / "data"), "val"), Generator(vw_lmm, chat), tmp_path / "asked")
    with pytest.raises(ValueError, match=r"An? owlv2 \(Owlv2ForObjectDetection\) writes no text"):
        Generator(
            Owlv2ForObjectDetection(Owlv2Config(text_config=text, vision_config=vision, projection_dim=8)), processor
        )
    owl = Owlv2ForObjectDetection(
        Owlv2Config(
            text_config={**text, **ids, "max_position_embeddings": 40}, vision_config=vision, projection_dim=16
        )
    ).eval()
    detector = OpenDetector(
        owl, Owlv2Processor(Owlv2ImageProcessor(size={"height": 16, "width": 16}), processor.tokenizer)
    )
    (objects,) = detector([picture(0)], ["apple", "cat"], threshold=0.0, top_k=3)
    assert objects["boxes"].shape == (3, 4)
    assert (objects["scores"].diff() <= 0).all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("captions", {"templates": "plain"}, "`templates` has no meaning for captions, which takes caption_column, "),
        ("captions", {"split": "test"}, r"There is no captions_test\*.json or nocaps_test\*.json"),
        ("questions", {"split": "val", "prompt": "why"}, r"`prompt` is 'why'; expected one \{\} for the question"),
        ("sorting", {}, "`task` must be one of classification, retrieval, captions"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        make_task(name, str(coco_captions(tmp_path / "data")), options)


def test_what_is_missing_is_named(tmp_path):
    folder = coco_captions(tmp_path / "data")
    (folder / "val2017" / "000000000003.png").unlink()
    with pytest.raises(ValueError, match=r"There is no picture 000000000003.png below"):
        Captions(str(folder), "val")
    folder, _ = vqa_v2(tmp_path / "vqa")
    (folder / "v2_mscoco_val2014_annotations.json").write_text('{"annotations": []}')
    with pytest.raises(
        ValueError, match=r"has no answer to question 10 of v2_OpenEnded_mscoco_val2014_questions.json"
    ):
        Questions(str(folder), "val")
    with pytest.raises(ValueError, match=r"no questions of `split` 'test', only v2_OpenEnded"):
        Questions(str(folder), "test")
    (folder / "v2_OpenEnded_mscoco_val2014_questions.json").write_text("{")
    with pytest.raises(ValueError, match=r"v2_OpenEnded_mscoco_val2014_questions.json cannot be read"):
        Questions(str(folder), "val")


def test_the_command_evaluates_models_of_transformers(tmp_path):
    """Their layers stay as they are: not every model leaves the weights of its layers alone."""
    _, processor = mammut_pair()
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 40,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    clip = CLIPModel(CLIPConfig(text_config={**text, "vocab_size": len(processor.tokenizer)}, vision_config=vision))
    clip.save_pretrained(tmp_path / "clip")
    CLIPProcessor(processor.image_processor, processor.tokenizer).save_pretrained(tmp_path / "clip")
    command = ["evaluate", str(tmp_path / "clip"), "--task", "retrieval", "--dataset", str(parquet(tmp_path / "data"))]
    found = CliRunner().invoke(app, [*command, "-o", str(tmp_path / "out")])
    assert found.exit_code == 0, found.output
    assert json.loads((tmp_path / "out" / "results.json").read_text())["num_samples"] == 10


def test_a_task_names_all_its_options():
    assert KINDS["yes-no"].options == KINDS["questions"].options
    assert KINDS["detection"].options == ["novel_classes", "split"]


def pope(folder: Path) -> Path:
    write_picture(folder / "im0.jpg", 0)
    (folder / "coco_pope_random.json").write_text(json.dumps({"image": "im0.jpg", "text": "Is it?", "label": "yes"}))
    return folder


PAGE = {
    "retrieval": ("grr_coca", karpathy), "captions": ("grr_coca", coco_captions), "questions": ("mammut", vqa_v2), "yes-no": ("mammut", pope),
    "choices": ("mammut", science_qa),
}  # fmt: skip


@pytest.mark.parametrize("name", PAGE)
def test_the_commands_of_the_page_evaluate(tmp_path, name):
    family, layout = PAGE[name]
    save_pair(family, tmp_path / "model")
    made = layout(tmp_path / "data")
    _, model, _, task, _, _, _, split, _, _ = arguments = command_of_the_page(name)
    assert (task, model.startswith("outputs/")) == (name, True)
    arguments[1], arguments[5], arguments[-1] = str(tmp_path / "model"), str(tmp_path / "data"), str(tmp_path / "out")
    assert split == made[1] if isinstance(made, tuple) else True
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    assert json.loads((tmp_path / "out" / "results.json").read_text())["num_samples"] >= 1


def test_the_commands_for_boxes_and_reports_name_real_options(tmp_path):
    data, arguments = coco_objects(tmp_path / "data"), command_of_the_page("detection")
    arguments[1], arguments[5], arguments[-1] = "nowhere", str(data), str(tmp_path / "out")
    assert "Model 'nowhere' cannot be loaded" in CliRunner().invoke(app, arguments).output
    assert (
        "outputs/evaluation holds no finished evaluation"
        in CliRunner().invoke(app, command_of_the_page("report")).output
    )


@pytest.mark.parametrize(
    ("name", "layout", "column"),
    [
        ("captions", coco_captions, "caption_column"), ("retrieval", karpathy, "image_column"), ("questions", vqa_v2, "question_column"),
        ("yes-no", pope, "answer_column"), ("choices", science_qa, "image_column"),
    ],
)  # fmt: skip
def test_columns_of_data_without_columns_are_refused(tmp_path, name, layout, column):
    layout(tmp_path / "data")
    split = {"captions": "val", "questions": "val", "yes-no": "random"}.get(name, "test")
    with pytest.raises(ValueError, match=f"`{column}` 'other' is for tables"):
        make_task(name, str(tmp_path / "data"), {"split": split, column: "other"})


def test_a_prompt_without_a_place_for_the_question_is_refused_on_every_path(tmp_path):
    with pytest.raises(ValueError, match=r"`prompt` is 'why'; expected one \{\}"):
        YesNo(str(pope(tmp_path / "data")), "random", prompt="why")


def test_pictures_of_one_name_are_not_guessed(tmp_path):
    folder = coco_captions(tmp_path / "data")
    write_picture(folder / "train2017" / "000000000002.png", 99)
    with pytest.raises(ValueError, match=r"There are several 000000000002.png below .*train2017.* and .*val2017"):
        Captions(str(folder), "val")


def test_the_command_knows_every_task():
    assert {*get_args(TaskName)} == {*KINDS}
