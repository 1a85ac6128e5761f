"""Objects of named classes in pictures, on COCO, LVIS and data sets like theirs."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from triptych.data.detection import DetectionDataset, read_detection, reference_of
from triptych.detection import Detector
from triptych.evaluation.detection_average_precision import DetectionAveragePrecision
from triptych.tasks.layouts import find_file


class OpenDetector:
    """OWL-ViT, OWLv2 and their like of transformers, called as [`Detector`].

    Args:
        model (`PreTrainedModel`): Of `AutoModelForZeroShotObjectDetection`.
        processor (`ProcessorMixin`): Of the model.
    """

    def __init__(self, model: Any, processor: Any):
        if not hasattr(processor, "post_process_grounded_object_detection"):
            raise ValueError(
                f"A {model.config.model_type} names no boxes; detection needs a mammut_detection or an owlv2."
            )
        self.model, self.processor = model, processor

    @torch.no_grad()
    def __call__(
        self, images: Sequence[Image.Image], classes: Sequence[str], threshold: float = 0.1, top_k: int = 300
    ) -> list[dict[str, Any]]:
        inputs = self.processor(text=[list(classes)] * len(images), images=list(images), return_tensors="pt")
        outputs = self.model(**inputs.to(self.model.device))
        found = self.processor.post_process_grounded_object_detection(
            outputs, threshold=threshold, target_sizes=[(image.height, image.width) for image in images]
        )
        best = [each["scores"].argsort(descending=True)[:top_k] for each in found]
        return [
            {key: each[key][order] for key in ("boxes", "scores", "labels")}
            for each, order in zip(found, best, strict=True)
        ]


def detector_of(model: Any, processor: Any) -> Any:
    """What is called with pictures and classes: a [`Detector`] of ours, else an [`OpenDetector`]."""
    own = getattr(model.config, "detection_config", None) is not None
    return (Detector if own else OpenDetector)(model, processor)


class Detection:
    """The task.

    Args:
        source (`str`): A folder of COCO (`instances_val2017.json`) or LVIS (`lvis_v1_val.json`) with the pictures anywhere below; or what
            [`read_detection`] reads, with `image` and `objects`.
        split (`str`): To evaluate.
        novel_classes (`Path`, *optional*): File with the classes without boxes in training, one per line: `ap_base` and `ap_novel` are
            reported. LVIS's rare, common and frequent ones are so anyway.

    Raises:
        ValueError: If a file, picture, split or class is missing.
    """

    name = "detection"

    def __init__(self, source: str, split: str = "test", novel_classes: Path | None = None):
        if find_spec("faster_coco_eval") is None:  # said now, not after the last picture
            raise ValueError("Average precision needs faster-coco-eval: pip install 'triptych[detection]'.")
        folder = Path(source)
        names = [f"instances_{split}*.json", f"lvis_*_{split}*.json"]
        annotations = find_file(folder, names) if folder.is_dir() else None
        novel = None if novel_classes is None else str(novel_classes)
        self.data = read_detection(source, split, None if annotations is None else str(annotations), novel)
        self.rows = DetectionDataset(self.data.splits["test"], self.data.categories)
        self.most = 300 if self.data.is_lvis else 100

    def predict(self, detector: Any, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Of every picture the boxes that were found, and those that there are."""
        found = detector([row["image"] for row in rows], self.data.categories, threshold=0.0, top_k=self.most)
        return [
            {"found": {key: each[key].tolist() for key in ("boxes", "scores", "labels")}, "true": reference_of(row)}
            for each, row in zip(found, rows, strict=True)
        ]

    def score(self, samples: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Average precisions, those of groups of classes among them; none of them is a mean over pictures."""
        metric = DetectionAveragePrecision("lvis" if self.data.is_lvis else "default")
        columns = metric.inputs()["references"]
        found = metric.compute(
            predictions=[sample["found"] for sample in samples],
            references=[{key: sample["true"][key] for key in columns} for sample in samples],
            groups=self.data.groups,
            max_detections=self.most,
        )
        return found, {}


__all__ = ["Detection", "OpenDetector", "detector_of"]
