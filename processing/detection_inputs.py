"""Classes, boxes and results of detection, between what people write and what a model reads."""

import numpy as np
import torch
from transformers.image_transforms import center_to_corners_format


def class_texts(text: list[list[str]], templates: list[str]) -> tuple[list[str], int]:
    """Texts of the classes of every image, as templates make them, one image after the other.

    Images with fewer classes get empty ones, which are for the detector to leave out.

    Args:
        text (`list[list[str]]`): Names of the classes of every image.
        templates (`list[str]`): With `{}` where the name goes.

    Returns:
        The texts (images x classes x templates of them), and the number of classes per image.

    Raises:
        ValueError: If an image has no class, or a name is no text or empty.
    """
    for index, names in enumerate(text):
        if not isinstance(names, (list, tuple)) or not names:
            raise ValueError(f"`text[{index}]` must be a text, or a list of at least one class; got {names!r}.")
        for position, name in enumerate(names):
            if not isinstance(name, str) or not name.strip():
                raise ValueError(f"`text[{index}][{position}]` is {name!r}; expected the name of a class.")
    count = max(len(names) for names in text)
    return [
        template.format(name) if name else ""
        for names in text
        for name in [*names, *[""] * (count - len(names))]
        for template in templates
    ], count


def _fit_masks(masks: list, size: tuple[int, int], input_size: int) -> torch.Tensor:
    """Masks padded and resized as the image is, `(objects, input_size, input_size)`."""
    if not masks:
        return torch.zeros(0, input_size, input_size, dtype=torch.uint8)
    stacked = torch.stack([torch.as_tensor(np.asarray(mask) > 0) for mask in masks])[None].float()
    padded = torch.nn.functional.pad(stacked, (0, max(size) - size[1], 0, max(size) - size[0]))
    return torch.nn.functional.interpolate(padded, (input_size, input_size))[0].to(torch.uint8)


def detection_labels(
    annotations: list[dict], sizes: list[tuple[int, int]], input_size: int
) -> list[dict[str, torch.Tensor]]:
    """COCO annotations as the detector's `labels`; crowds are left out.

    Args:
        annotations (`list[dict]`): One per image: `annotations`, a list with `bbox` (left, top, width, height in pixels),
            `category_id`, and optionally `iscrowd` and `mask` (an array of shape `(height, width)`).
        sizes (`list[tuple[int, int]]`): Height and width of every image, in pixels.
        input_size (`int`): Height and width of the model's input, for masks.

    Returns:
        `list[dict]`: `class_labels` of shape `(objects,)`; `boxes` of shape `(objects, 4)`: center x, center y, width and
        height as shares of the longer side, to which the image is padded; where objects have a mask, `masks` of shape
        `(objects, input_size, input_size)`.

    Raises:
        ValueError: If images and annotations differ in number, or a box is not four numbers with a positive size.
    """
    if len(annotations) != len(sizes):
        raise ValueError(f"`annotations` must describe every image, got {len(annotations)} for {len(sizes)} images.")
    labels = []
    for index, (image, size) in enumerate(zip(annotations, sizes, strict=True)):
        objects = [entry for entry in image["annotations"] if not entry.get("iscrowd")]
        for position, entry in enumerate(objects):
            if len(entry["bbox"]) != 4 or min(entry["bbox"][2:]) <= 0:
                raise ValueError(
                    f"`annotations[{index}]`, object {position}: `bbox` must be left, top, width, height with a positive size, "
                    f"got {entry['bbox']}."
                )
        boxes = torch.tensor([entry["bbox"] for entry in objects], dtype=torch.float32).reshape(-1, 4)
        boxes[:, :2] += boxes[:, 2:] / 2
        labels.append(
            {
                "class_labels": torch.tensor([entry["category_id"] for entry in objects], dtype=torch.long),
                "boxes": boxes / max(size),
            }
        )
        if any("mask" in entry for entry in objects):
            labels[-1]["masks"] = _fit_masks([entry["mask"] for entry in objects], size, input_size)
    return labels


def select_detections(
    outputs, threshold: float, target_sizes, text_labels: list[list[str]] | None, top_k: int
) -> list[dict]:
    """Pairs of box and class with a score above the threshold, the best first; see
    `MammutProcessor.post_process_grounded_object_detection`."""
    scores, boxes = outputs.logits.float().sigmoid().cpu(), outputs.pred_boxes.float().cpu()
    for name, given in (("target_sizes", target_sizes), ("text_labels", text_labels)):
        if given is not None and len(given) != len(scores):
            raise ValueError(f"`{name}` must have one entry per image, got {len(given)} for {len(scores)} images.")
    results = []
    for index, (image_scores, image_boxes) in enumerate(zip(scores, boxes, strict=True)):
        names = None if text_labels is None else text_labels[index]
        if isinstance(names, str):
            raise ValueError(f"`text_labels[{index}]` must be a list of the names of its classes, got {names!r}.")
        if names is not None:
            image_scores = image_scores[:, : len(names)]  # without the empty classes of a batch
        best = image_scores.flatten().topk(min(top_k, image_scores.numel()))
        kept = best.values > threshold
        best_scores = best.values[kept]
        rows, classes = best.indices[kept] // image_scores.shape[1], best.indices[kept] % image_scores.shape[1]
        found = center_to_corners_format(image_boxes[rows])  # left, top, right, bottom
        if target_sizes is not None:
            height, width = (int(side) for side in target_sizes[index])
            found = found * max(height, width)  # the image was padded to a square
            found = torch.minimum(found.clamp(min=0), torch.tensor([width, height, width, height]))
            seen = (found[:, 2:] > found[:, :2]).all(-1)  # the others lie in the padding
            rows, classes, found, best_scores = rows[seen], classes[seen], found[seen], best_scores[seen]
        results.append(
            {
                "scores": best_scores,
                "labels": classes,
                "boxes": found,
                "text_labels": None if names is None else [names[label] for label in classes.tolist()],
            }
        )
        if getattr(outputs, "pred_masks", None) is not None:
            results[-1]["masks"] = outputs.pred_masks[index].float().cpu()[rows]
    return results


__all__ = ["class_texts", "detection_labels", "select_detections"]
