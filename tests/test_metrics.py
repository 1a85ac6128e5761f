"""Metrics against independent implementations. (VQA accuracy: test_questions.py.)"""

import importlib.util
import random
from pathlib import Path

import evaluate
import numpy as np
import pytest
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider_scorer import CiderScorer
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from triptych.evaluation import caption_scores
from triptych.evaluation.caption_scores import CaptionScores, words_of
from triptych.evaluation.detection_average_precision import DetectionAveragePrecision
from triptych.evaluation.retrieval_recall import RetrievalRecall
from triptych.evaluation.yes_no_f1 import YesNoF1, means_yes


needs_evaluator = pytest.mark.skipif(
    importlib.util.find_spec("faster_coco_eval") is None, reason="faster-coco-eval is not there"
)
FOLDER = Path(caption_scores.__file__).parent


def captions_of(seed: int) -> tuple[list[str], list[list[str]]]:
    """Captions that share words with their references, of many lengths, with repetitions."""
    rng = random.Random(seed)
    vocabulary = ["a", "red", "blue", "circle", "cat", "on", "the", "mat", "dog", "with", "hat", "two"]
    references = [
        [" ".join(rng.choices(vocabulary, k=rng.randint(1, 12))) for _ in range(rng.randint(1, 5))] for _ in range(40)
    ]
    predictions = []
    for true in references:
        words = rng.choice(true).split()
        words = [rng.choice(vocabulary) if rng.random() < 0.2 else word for word in words] * rng.choice([1, 1, 2])
        predictions.append(" ".join(words))
    return predictions, references


@pytest.mark.parametrize("seed", range(5))
def test_caption_scores_are_those_of_the_coco_evaluation(seed):
    predictions, references = captions_of(seed)
    found = CaptionScores().compute(predictions=predictions, references=references)
    bleu, cider = BleuScorer(n=4), CiderScorer()
    for text, true in zip(predictions, references, strict=True):
        bleu += (text, true)
        cider += (text, true)
    expected = bleu.compute_score(option="closest")[0]
    assert [found[f"bleu_{order}"] for order in (1, 2, 3, 4)] == pytest.approx(expected, abs=1e-7)
    assert found["cider_d"] == pytest.approx(cider.compute_score()[0], abs=1e-9)


def test_caption_scores_at_their_ends():
    captions = ["a red circle on a mat", "two dogs with a hat", "the cat"]
    best = CaptionScores().compute(predictions=captions, references=[[caption] for caption in captions])
    assert best["bleu_4"] == pytest.approx(1)
    assert best["cider_d"] == pytest.approx(10 * (2 + 0.5) / 3)  # two words have no 3-grams to agree on
    worst = CaptionScores().compute(predictions=["x", "", "y"], references=[[caption] for caption in captions])
    assert set(worst.values()) == {0.0}
    assert words_of("A man's T-shirt, red!") == ["a", "man's", "t-shirt", "red"]
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
