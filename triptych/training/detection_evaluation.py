"""Average precision of a detector, with and without the image-text model's opinion."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from triptych.detection import Detector
from triptych.metrics.detection_average_precision import DetectionAveragePrecision
from triptych.modeling.modeling_mammut_detection import MammutForObjectDetection
from triptych.processing.processing_mammut import MammutProcessor
from triptych.training.detection_data import DetectionData, DetectionDataset, reference_of


def _as_they_are(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return rows


@torch.no_grad()
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
        accelerator: Of this run.
        batch_size (`int`): Images at once.
        num_images (`int`): Images to look at.
        num_workers (`int`): Processes that read images.

    Returns:
        Numbers of [`DetectionAveragePrecision`]; under the same names with `_without_fusion` those of the detector's own scores,
        of the same regions.
    """
    was_training = model.training
    detector = Detector(model.eval(), processor)
    embeds, is_base = detector.class_embeds(data.categories), detector.is_base(data.categories)
    fusions = {"": True, "_without_fusion": False}
    rows: list[tuple[int, dict, dict[str, dict]]] = []
    with accelerator.split_between_processes(list(range(min(num_images, len(dataset))))) as indices:
        loader = DataLoader(
            Subset(dataset, indices), batch_size=batch_size, collate_fn=_as_they_are, num_workers=num_workers
        )
        done = iter(indices)
        for batch in tqdm(loader, desc="detect", leave=False, disable=not accelerator.is_main_process):
            images = [row["image"] for row in batch]
            pixel_values = processor(images=images, return_tensors="pt")["pixel_values"].to(accelerator.device)
            with accelerator.autocast():
                regions = model.get_regions(pixel_values)
            found = {
                name: processor.post_process_grounded_object_detection(
                    model.classify(regions, embeds, is_base, fusion=fusion),
                    threshold=0.0,
                    target_sizes=[(image.height, image.width) for image in images],
                    top_k=model.config.detection_config.max_detections,
                )
                for name, fusion in fusions.items()
            }
            for position, row in enumerate(batch):
                predictions = {
                    name: {key: results[position][key].tolist() for key in ("boxes", "scores", "labels")}
                    for name, results in found.items()
                }
                rows.append((next(done), reference_of(row), predictions))
    model.train(was_training)
    rows = sorted(gather_object(rows), key=lambda row: row[0])
    results: dict[str, float] = {}
    for name in fusions:
        metric = DetectionAveragePrecision("lvis" if data.is_lvis else "default")
        references = [row[1] for row in rows]
        if not data.is_lvis:
            references = [{key: row[key] for key in ("boxes", "labels", "areas", "is_crowd")} for row in references]
        scores = metric.compute(
            predictions=[row[2][name] for row in rows],
            references=references,
            groups=data.groups,
            max_detections=300 if data.is_lvis else 100,
        )
        results |= {f"{key}{name}": value for key, value in scores.items()}
    return results


__all__ = ["evaluate_detector"]
