"""Average precision of detections as COCO and LVIS report it, also for groups of classes such as base and novel ones.

COCO's average precision of boxes (Lin et al. 2014, arXiv 1405.0312) by faster-coco-eval, a fast equal of pycocotools, and its mean over
groups of classes: base and novel ones, or LVIS's rare, common and frequent ones (Gupta et al. 2019, arXiv 1908.03195). A class without
an object in the references counts nowhere.
"""

from typing import Any

import datasets
import numpy as np

from triptych.evaluation.described_metric import DescribedMetric


def _place(image: int, label: int, box: list[float]) -> dict[str, Any]:
    left, top, right, bottom = (float(side) for side in box)
    return {"image_id": image, "category_id": int(label) + 1, "bbox": [left, top, right - left, bottom - top]}


def _coco(
    predictions: list[dict], references: list[dict], is_lvis: bool, max_detections: int
) -> tuple[dict[str, Any], list[dict]]:
    """Annotations and detections in COCO's own form; ids count from 1."""
    labels = {int(label) for row in references for label in row["labels"]}
    if is_lvis:
        labels |= {int(label) for row in references for label in row["negative_labels"]}
    images: list[dict] = []
    annotations: list[dict] = []
    detections: list[dict] = []
    for index, (found, true) in enumerate(zip(predictions, references, strict=True), start=1):
        image: dict[str, Any] = {"id": index, "width": 1, "height": 1}
        if is_lvis:
            image["neg_category_ids"] = [int(label) + 1 for label in true["negative_labels"]]
            image["not_exhaustive_category_ids"] = [int(label) + 1 for label in true["not_exhaustive_labels"]]
        images.append(image)
        if len({len(found[name]) for name in ("boxes", "scores", "labels")}) > 1:
            raise ValueError(f"`predictions[{index - 1}]` must have as many boxes as scores and labels.")
        if len({len(true[name]) for name in ("boxes", "labels", "areas", "is_crowd")}) > 1:
            raise ValueError(f"`references[{index - 1}]` must have as many boxes as labels, areas and is_crowd.")
        for box, label, area, is_crowd in zip(
            true["boxes"], true["labels"], true["areas"], true["is_crowd"], strict=True
        ):
            entry = {"id": len(annotations) + 1, "area": float(area), "iscrowd": int(is_crowd)}
            annotations.append(entry | _place(index, label, box))
        rows = list(zip(found["boxes"], found["scores"], found["labels"], strict=True))
        if is_lvis:
            rows = sorted(rows, key=lambda row: -row[1])[:max_detections]
        for box, score, label in rows:
            detections.append({"score": float(score), **_place(index, label, box)})
            if not is_lvis:
                labels.add(int(label))
    # faster-coco-eval groups LVIS classes by this field; the groups here are the caller's
    categories = [{"id": label + 1, "name": str(label), "frequency": "f"} for label in sorted(labels)]
    detections = [row for row in detections if row["category_id"] - 1 in labels]
    return {"images": images, "annotations": annotations, "categories": categories, "info": {}}, detections


def _mean(values: np.ndarray) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else float("nan")


class DetectionAveragePrecision(DescribedMetric):
    """See the module; `config_name` is "default" or "lvis"."""

    source = "https://cocodataset.org/#detection-eval"

    def inputs(self) -> dict[str, Any]:
        if self.config_name not in ("default", "lvis"):
            raise ValueError(f'`config_name` must be "default" or "lvis", got {self.config_name!r}.')
        boxes = datasets.Sequence(datasets.Sequence(datasets.Value("float32")))
        whole, real = datasets.Sequence(datasets.Value("int64")), datasets.Sequence(datasets.Value("float32"))
        crowd = datasets.Sequence(datasets.Value("bool"))
        references = {"boxes": boxes, "labels": whole, "areas": real, "is_crowd": crowd}
        if self.config_name == "lvis":
            references |= {"negative_labels": whole, "not_exhaustive_labels": whole}
        return {"predictions": {"boxes": boxes, "scores": real, "labels": whole}, "references": references}

    def _compute(
        self,
        predictions: list[dict],
        references: list[dict],
        groups: dict[str, list[int]] | None = None,
        max_detections: int = 100,
    ) -> dict[str, float]:
        """
        Args:
            predictions (`list[dict]`): One per image: `boxes` (left, top, right, bottom in pixels), `scores`, `labels` (indices of classes).
            references (`list[dict]`): One per image: `boxes`, `labels`, `areas` (in pixels, for the sizes) and `is_crowd` (objects that a
                detection may match without gain or loss). With the configuration "lvis" also `negative_labels` (classes that were looked for
                and not found) and `not_exhaustive_labels` (classes of which objects may be missing).
            groups (`dict[str, list[int]]`, *optional*): Classes of every group.
            max_detections (`int`): Best detections that count: of every class in an image, as COCO has it; with "lvis" of all classes in an
                image together. COCO takes 100, LVIS 300.

        Returns:
            `ap` (mean over IoU 0.50 to 0.95), `ap50`, `ap75`, `ap_small`, `ap_medium`, `ap_large`, and for every group `ap_<group>` and
            `ap50_<group>`, between 0 and 1; NaN where no class has an object.
        """
        try:
            from faster_coco_eval import COCO, COCOeval_faster
        except ImportError as error:
            raise ImportError(
                "Average precision needs faster-coco-eval: pip install 'triptych[detection]'."
            ) from error

        truth, detections = _coco(predictions, references, self.config_name == "lvis", max_detections)
        labels = [int(category["id"]) - 1 for category in truth["categories"]]
        precision = np.full((10, 1, len(labels), 4), -1.0)  # (thresholds, recalls, classes, sizes): nowhere an object
        if truth["annotations"]:
            gold = COCO(truth)
            # Without any detection the precision is 0 for every class that has an object.
            found = gold.loadRes(detections) if detections else COCO({**truth, "annotations": []})
            run = COCOeval_faster(gold, found, iouType="bbox", lvis_style=self.config_name == "lvis")
            run.params.maxDets = [max_detections]
            run.evaluate()
            run.accumulate()
            precision = run.eval["precision"][..., -1]
        results = {
            "ap": _mean(precision[:, :, :, 0]),
            "ap50": _mean(precision[0, :, :, 0]),
            "ap75": _mean(precision[5, :, :, 0]),
        }
        for index, size in enumerate(("small", "medium", "large"), start=1):
            results[f"ap_{size}"] = _mean(precision[:, :, :, index])
        for group, classes in (groups or {}).items():
            columns = np.isin(labels, list(classes))
            results[f"ap_{group}"] = _mean(precision[:, :, columns, 0])
            results[f"ap50_{group}"] = _mean(precision[0, :, columns, 0])
        return results
