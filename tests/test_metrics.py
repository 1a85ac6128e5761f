"""Metrics against independent implementations and values worked out by hand. (VQA accuracy: test_questions.py.)"""

import importlib.util
import random
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from triptych.evaluation import caption_scores
from triptych.evaluation.caption_scores import CaptionScores, words_of
from triptych.evaluation.detection_average_precision import DetectionAveragePrecision
from triptych.evaluation.retrieval_recall import RetrievalRecall
from triptych.evaluation.vqa_accuracy import VqaAccuracy
from triptych.evaluation.yes_no_f1 import YesNoF1, means_yes


needs_evaluator = pytest.mark.skipif(
    importlib.util.find_spec("faster_coco_eval") is None, reason="faster-coco-eval is not there"
)
FOLDER = Path(caption_scores.__file__).parent


def caption_scores_of(predictions: list[str], references: list[list[str]]) -> dict[str, float]:
    return CaptionScores().compute(predictions=predictions, references=references)


def test_bleu_of_the_examples_of_its_paper():
    references = [
        "It is a guide to action that ensures that the military will forever heed Party commands.",
        "It is the guiding principle which guarantees the military forces always being under the command of the Party.",
        "It is the practical guide for the army always to heed the directions of the party.",
    ]
    good = "It is a guide to action which ensures that the military always obeys the commands of the party."
    found = caption_scores_of([good], [references])
    assert found["bleu_1"] == pytest.approx(17 / 18)
    assert found["bleu_2"] == pytest.approx((17 / 18 * 10 / 17) ** 0.5)
    # A word counts as often as a reference has it, and the reference of the closest length says how long is long enough
    found = caption_scores_of(["the " * 7], [["The cat is on the mat.", "There is a cat on the mat."]])
    assert found["bleu_1"] == pytest.approx(2 / 7)
    assert found["bleu_2"] == pytest.approx(0, abs=1e-6)
    assert caption_scores_of(["a red"], [["a red circle here"]])["bleu_1"] == pytest.approx(np.exp(-1))


def test_cider_d_by_hand():
    # Every n-gram is in one image of two, so all weigh log 2, which cancels; two words have no 3- and 4-grams
    assert caption_scores_of(["a b", "c d"], [["a b"], ["c d"]])["cider_d"] == pytest.approx(5)
    assert caption_scores_of(["a d", "c d"], [["a b"], ["c d"]])["cider_d"] == pytest.approx((10 / 4 * 0.5 + 5) / 2)
    # (2, 2) clipped to (1, 1) against (1, 1), and (2, 1) against (1, 0); two bigrams too many of sigma 6
    longer = 10 / 4 * (2 / 4 + 1 / 5**0.5) * np.exp(-(2**2) / (2 * 6**2))
    assert caption_scores_of(["a b a b", "c d"], [["a b"], ["c d"]])["cider_d"] == pytest.approx((longer + 5) / 2)
    several = caption_scores_of(["a b", "c d"], [["a b", "x y"], ["c d"]])["cider_d"]
    assert several == pytest.approx((5 / 2 + 5) / 2)  # the mean over references
    assert caption_scores_of(["a b"], [["a b"]])["cider_d"] == 0  # says nothing of one image


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A man's T-shirt, red!", ["a", "man's", "t-shirt", "red"]),
        ("the man\u2019s 2 dogs -- 'hot_dog'", ["the", "man's", "2", "dogs", "hot_dog"]),
        ("एक लाल दिल।", ["एक", "लाल", "दिल"]),
        ("nai\u0308ve", ["na\u00efve"]),
        ("ein Hund\U0001f436\u2764\ufe0f", ["ein", "hund", "\U0001f436", "\u2764"]),
        ("一只红色的猫。", ["一只红色的猫"]),  # no spaces, no words
        ("แมวสีแดง", ["แมวสีแดง"]),
        (" ... ", []),
    ],
)
def test_words(caption, words):
    assert words_of(caption) == words


def test_vowel_signs_make_words_differ():
    found = caption_scores_of(["की कि कु कू"], [["की के का को"]])
    assert found["bleu_1"] == pytest.approx(1 / 4)


def test_captions_without_words():
    found = caption_scores_of(["", "...", "a red heart"], [["a cat"], ["..."], ["a red heart"]])
    assert found["bleu_1"] == pytest.approx(np.exp(1 - 5 / 3))
    assert caption_scores_of([""], [["a cat"]]) == pytest.approx(dict.fromkeys(found, 0), abs=1e-6)
    with pytest.raises(ValueError, match="`references` hold no word"):
        caption_scores_of(["a"], [["..."]])


def test_scorers_that_are_not_there_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.bleu.bleu_scorer", None)
    with pytest.raises(ImportError, match=r"pip install 'triptych\[train\]'"):
        caption_scores_of(["a"], [["a"]])


def test_caption_scores_at_their_ends():
    captions = ["a red circle on a mat", "two dogs with a hat", "the cat"]
    best = CaptionScores().compute(predictions=captions, references=[[caption] for caption in captions])
    assert best["bleu_4"] == pytest.approx(1)
    assert best["cider_d"] == pytest.approx(10 * (2 + 0.5) / 3)  # two words have no 3-grams to agree on
    worst = CaptionScores().compute(predictions=["x", "", "y"], references=[[caption] for caption in captions])
    assert worst == pytest.approx(dict.fromkeys(worst, 0), abs=1e-6)
    with pytest.raises(ValueError, match="no caption for image 1"):
        CaptionScores().compute(predictions=["a", "b"], references=[["a"], []])


def test_retrieval_recall_with_several_captions_per_image():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(20, 100))
    right = [list(range(5 * query, 5 * query + 5)) for query in range(20)]
    found = RetrievalRecall().compute(predictions=scores, references=right)
    order = np.argsort(-scores, axis=1)
    for k in (1, 5, 10):
        hits = [bool(set(order[query, :k]) & set(right[query])) for query in range(20)]
        assert found[f"recall@{k}"] == pytest.approx(np.mean(hits))
    constant = RetrievalRecall().compute(predictions=np.zeros((3, 9)), references=[[0], [1], [2]], ks=[1, 8])
    assert constant == {"recall@1": 0, "recall@8": 0, "median_rank": 9}
    assert RetrievalRecall().compute(predictions=[[np.nan, 0.0]], references=[[0]], ks=[1])["recall@1"] == 0
    for bad in ([], [9], [-1]):
        with pytest.raises(ValueError, match="`references` of query 0"):
            RetrievalRecall().compute(predictions=np.zeros((1, 9)), references=[bad])


def test_yes_no_answers_as_pope_reads_them():
    answers = {
        "Yes, there is.": True,
        "No.": False,
        "There is not a dog. Yes.": False,
        "A dog. No cat.": True,
        "nobody knows": True,
    }
    assert {answer: means_yes(answer) for answer in answers} == answers
    found = YesNoF1().compute(
        predictions=["yes", "no", "Yes.", "no, it is not", "yes"], references=["yes", "yes", "no", "No", "yes"]
    )
    assert found == pytest.approx(
        {"accuracy": 0.6, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "yes_ratio": 0.6}
    )
    rng = random.Random(0)
    predictions, references = ([rng.choice(["yes", "no"]) for _ in range(200)] for _ in range(2))
    precision, recall, f1, _ = precision_recall_fscore_support(
        references, predictions, average="binary", pos_label="yes"
    )
    found = YesNoF1().compute(predictions=predictions, references=references)
    assert [found[key] for key in ("precision", "recall", "f1")] == pytest.approx([precision, recall, f1])
    assert found["accuracy"] == pytest.approx(accuracy_score(references, predictions))
    with pytest.raises(ValueError, match="got 'maybe' at 0"):
        YesNoF1().compute(predictions=["yes"], references=["maybe"])


@pytest.mark.parametrize("metric", [VqaAccuracy, CaptionScores, RetrievalRecall, YesNoF1])
def test_no_rows_are_said(metric):
    with pytest.raises(ValueError, match=r"`predictions` of .* is empty; expected at least one"):
        metric().compute(predictions=[], references=[])


@pytest.mark.parametrize("name", ["vqa_accuracy", "caption_scores", "retrieval_recall", "yes_no_f1"])
def test_metrics_load_by_path_without_a_network(name, monkeypatch):
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
    metric = evaluate.load(str(FOLDER / f"{name}.py"))
    assert metric.description
    assert metric.citation


def random_detections(seed: int, num_images: int = 12, num_classes: int = 5) -> tuple[list[dict], list[dict]]:
    """Detections near the true boxes, beside them, and of wrong classes; some images show nothing, some objects are crowds."""
    rng = np.random.default_rng(seed)
    predictions, references = [], []
    for _ in range(num_images):
        corners = rng.uniform(0, 200, (rng.integers(0, 6), 2))
        boxes = np.concatenate([corners, corners + rng.uniform(8, 150, corners.shape)], axis=1)
        labels = rng.integers(0, num_classes, len(boxes))
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        crowd = rng.random(len(boxes)) < 0.1
        references.append(
            {"boxes": boxes.tolist(), "labels": labels.tolist(), "areas": areas.tolist(), "is_crowd": crowd.tolist()}
        )
        found = np.concatenate([boxes + rng.normal(0, 5, boxes.shape), boxes + rng.normal(0, 30, boxes.shape)])
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        own = np.concatenate([labels, np.where(rng.random(len(labels)) < 0.5, labels, (labels + 1) % num_classes)])
        scores = rng.random(len(found))
        predictions.append({"boxes": found.tolist(), "scores": scores.tolist(), "labels": own.tolist()})
    return predictions, references


@needs_evaluator
@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_that_of_pycocotools(seed):
    predictions, references = random_detections(seed)
    groups = {"base": [0, 1, 2], "novel": [3, 4]}
    found = DetectionAveragePrecision().compute(predictions=predictions, references=references, groups=groups)

    truth, detections = COCO(), []
    annotations = []
    for image, (own, true) in enumerate(zip(predictions, references, strict=True), start=1):
        for box, label, area, crowd in zip(
            *(true[key] for key in ("boxes", "labels", "areas", "is_crowd")), strict=True
        ):
            left, top, right, bottom = box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": label,
                    "area": area,
                    "bbox": [left, top, right - left, bottom - top],
                    "iscrowd": int(crowd),
                }
            )
        for (left, top, right, bottom), score, label in zip(own["boxes"], own["scores"], own["labels"], strict=True):
            box = [left, top, right - left, bottom - top]
            detections.append({"image_id": image, "category_id": label, "bbox": box, "score": score})
    images = [{"id": index + 1} for index in range(len(references))]
    truth.dataset = {
        "info": {}, "images": images, "annotations": annotations, "categories": [{"id": index} for index in range(5)],
    }  # fmt: skip
    truth.createIndex()
    run = COCOeval(truth, truth.loadRes(detections), "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
    for name, value in zip(("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"), run.stats[:6], strict=True):
        assert found[name] == pytest.approx(value if value > -1 else float("nan"), abs=1e-6, nan_ok=True), name
    precision = run.eval["precision"][..., 0, -1]  # (thresholds, recalls, classes)
    for group, members in groups.items():
        known = precision[:, :, members][precision[:, :, members] > -1]
        assert found[f"ap_{group}"] == pytest.approx(known.mean(), abs=1e-6)


@needs_evaluator
def test_average_precision_at_its_ends_and_of_lvis():
    box = [10.0, 10.0, 30.0, 30.0]
    true = {"boxes": [box], "labels": [1], "areas": [400.0], "is_crowd": [False]}
    right = {"boxes": [box], "scores": [0.5], "labels": [1]}
    nothing = {"boxes": [], "scores": [], "labels": []}
    empty = {"boxes": [], "labels": [], "areas": [], "is_crowd": []}
    metric = DetectionAveragePrecision()
    assert metric.compute(predictions=[right], references=[true])["ap"] == pytest.approx(1)
    assert metric.compute(predictions=[nothing], references=[true])["ap"] == 0
    assert np.isnan(metric.compute(predictions=[right], references=[empty], groups={"base": [1]})["ap_base"])
    with pytest.raises(ValueError, match=r"predictions\[0\].*as many boxes as scores"):
        metric.compute(predictions=[{**right, "scores": []}], references=[true])
    # LVIS counts the best detections of all classes together, COCO those of every class
    crowd = {"boxes": [*[[0.0, 0.0, 5.0, 5.0]] * 3, box], "scores": [0.9, 0.9, 0.9, 0.5], "labels": [2, 2, 2, 1]}
    lists = {"negative_labels": [2], "not_exhaustive_labels": []}
    lvis = DetectionAveragePrecision("lvis")
    for count, expected in ((3, 0.0), (4, 1.0)):
        found = lvis.compute(predictions=[crowd], references=[{**true, **lists}], max_detections=count)
        assert found["ap"] == pytest.approx(expected)
    assert metric.compute(predictions=[crowd], references=[true], max_detections=3)["ap"] == pytest.approx(1)
    # LVIS: one object too many costs nothing where objects may be missing
    twice = {"boxes": [[40.0, 40.0, 60.0, 60.0], box], "scores": [0.9, 0.5], "labels": [1, 1]}
    for missing, expected in (([], 0.5), ([1], 1.0)):
        lists = {"negative_labels": [], "not_exhaustive_labels": missing}
        found = lvis.compute(predictions=[twice], references=[{**true, **lists}])
        assert found["ap"] == pytest.approx(expected)
    # LVIS: a better score for a class that nobody looked for costs nothing, one for an absent class does
    other = {"boxes": [box, box], "scores": [0.5, 0.9], "labels": [1, 2]}
    second = {**true, "labels": [2]}
    for negative, expected in (([], 1.0), ([2], 0.5)):
        lists = {"not_exhaustive_labels": []}
        references = [{**true, "negative_labels": negative, **lists}, {**second, "negative_labels": [], **lists}]
        found = DetectionAveragePrecision("lvis").compute(
            predictions=[other, {**right, "labels": [2]}], references=references, groups={"rare": [2]}
        )
        assert found["ap_rare"] == pytest.approx(expected, abs=1e-2)
