"""Average precision of a detector, with and without the image-text model's opinion."""

from typing import Any

from accelerate import Accelerator
from torch.utils.data import Subset

from triptych.data.detection import DetectionData, DetectionDataset, reference_of
from triptych.detection import Detector
from triptych.evaluation.detection_average_precision import DetectionAveragePrecision
from triptych.evaluation.sharing import evaluating, map_rows
from triptych.modeling.modeling_mammut_detection import MammutForObjectDetection
from triptych.processing.processing_mammut import MammutProcessor


def evaluate_detector(
    model: MammutForObjectDetection,
    processor: MammutProcessor,
    dataset: DetectionDataset,
    data: DetectionData,
    accelerator: Accelerator,
    batch_size: int,
    num_images: int,
    num_workers: int = 0,
) -> dict[str, float]:
    """Detect all classes in the first images of a data set, spread over the processes.

    Args:
        model: A detector.
        processor: Of the model; its `base_classes` are fused as such.
        dataset: Test images with their objects, as they are.
        data: What the classes are called, and their groups.
        accelerator, batch_size, num_workers: As of [`map_rows`].
        num_images (`int`): Images to look at.

    Returns:
        Numbers of [`DetectionAveragePrecision`]; under the same names with `_without_fusion` those of the detector's own scores,
        of the same regions.
    """
    detector = Detector(model, processor)
    fusions = {"": True, "_without_fusion": False}

    def detect(batch: list[dict[str, Any]]) -> list[dict[str, dict]]:
        images = [row["image"] for row in batch]
        pixel_values = processor(images=images, return_tensors="pt")["pixel_values"].to(accelerator.device)
        with accelerator.autocast():
            regions = model.get_regions(pixel_values)
        rows = [{"reference": reference_of(row)} for row in batch]
        for name, fusion in fusions.items():
            found = processor.post_process_grounded_object_detection(
                model.classify(regions, embeds, is_base, fusion=fusion),
                threshold=0.0,
                target_sizes=[(image.height, image.width) for image in images],
                top_k=model.config.detection_config.max_detections,
            )
            for row, each in zip(rows, found, strict=True):
                row[name] = {key: each[key].tolist() for key in ("boxes", "scores", "labels")}
        return rows

    shown = Subset(dataset, range(min(num_images, len(dataset))))
    with evaluating(model):
        embeds, is_base = detector.class_embeds(data.categories), detector.is_base(data.categories)
        rows = map_rows(detect, shown, accelerator, batch_size, num_workers, "detect")
    results: dict[str, float] = {}
    for name in fusions:
        metric = DetectionAveragePrecision("lvis" if data.is_lvis else "default")
        scores = metric.compute(
            predictions=[row[name] for row in rows],
            references=[{key: row["reference"][key] for key in metric.inputs()["references"]} for row in rows],
            groups=data.groups,
            max_detections=300 if data.is_lvis else 100,
        )
        results |= {f"{key}{name}": value for key, value in scores.items()}
    return results


__all__ = ["evaluate_detector"]
