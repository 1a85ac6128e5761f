"""Find things by their names: a detector with its class embeddings cached, and pictures of what it found."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont

from triptych.modeling.modeling_mammut_detection import MammutForObjectDetection
from triptych.processing.pictures import to_rgb
from triptych.processing.processing_mammut import MammutProcessor


class Detector:
    """A model and its processor; the embedding of every class that was ever asked for is kept.

    Args:
        model (`MammutForObjectDetection`): In eval mode; its weights must stay as they are.
        processor (`MammutProcessor`): Of the model.

    Example:

    ```python
    >>> detector = Detector(model, processor)
    >>> detector([image], ["red apple", "bus"])[0]["text_labels"]
    ```
    """

    def __init__(self, model: MammutForObjectDetection, processor: MammutProcessor):
        self.model, self.processor = model, processor
        self._embeds: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def class_embeds(self, classes: Sequence[str]) -> torch.Tensor:
        """Embeddings of shape `(num_classes, text_hidden_size)`; only new classes are encoded.

        Raises:
            ValueError: If there is no class, or a name is empty.
        """
        if isinstance(classes, str) or not classes:
            raise ValueError(f"`classes` must be a list of at least one name, got {classes!r}.")
        if new := sorted(set(classes) - self._embeds.keys()):
            inputs = self.processor(text=[new], return_tensors="pt").to(self.model.device)
            embeds = self.model.get_class_embeds(inputs["input_ids"], inputs["attention_mask"])
            self._embeds |= dict(zip(new, embeds, strict=True))
        return torch.stack([self._embeds[name] for name in classes])

    def is_base(self, classes: Sequence[str]) -> torch.Tensor | None:
        """Which classes had boxes in training, where the processor knows."""
        if self.processor.base_classes is None:
            return None
        known = set(self.processor.base_classes)
        return torch.tensor([name in known for name in classes])

    @torch.no_grad()
    def __call__(
        self, images: Sequence[Image.Image], classes: Sequence[str], threshold: float = 0.1, top_k: int = 300
    ) -> list[dict[str, Any]]:
        """Objects of every image, as `post_process_grounded_object_detection` returns them."""
        images = [to_rgb(image) for image in images]  # upright: boxes are in pixels of what the model sees
        pixel_values = self.processor(images=images, return_tensors="pt")["pixel_values"]
        outputs = self.model(
            pixel_values=pixel_values.to(self.model.device),
            class_embeds=self.class_embeds(classes),
            is_base=self.is_base(classes),
        )
        return self.processor.post_process_grounded_object_detection(
            outputs,
            threshold=threshold,
            target_sizes=[(image.height, image.width) for image in images],
            text_labels=[list(classes)] * len(images),
            top_k=top_k,
        )


def _colour(name: str) -> tuple[int, ...]:
    """The same saturated colour for a name everywhere."""
    hue = 360 * hashlib.sha256(name.encode()).digest()[0] / 256
    return ImageColor.getrgb(f"hsv({hue}, 100%, 75%)")


def draw_detections(image: Image.Image, detections: dict[str, Any], least_side: int = 640) -> Image.Image:
    """The image with boxes, names and scores; enlarged so that the words can be read.

    Args:
        image (`PIL.Image.Image`): As it was given to the detector.
        detections (`dict`): Its entry of the results, in pixels of the image, with `text_labels`.
        least_side (`int`): Longer side of the drawing, at least, in pixels.
    """
    image = to_rgb(image)
    factor = max(1.0, least_side / max(image.size))
    drawn = image.resize((round(image.width * factor), round(image.height * factor)))
    canvas = ImageDraw.Draw(drawn)
    size = max(12, max(drawn.size) // 45)
    font = ImageFont.load_default(size)
    rows = zip(detections["boxes"].tolist(), detections["scores"].tolist(), detections["text_labels"], strict=True)
    for box, score, name in reversed(list(rows)):  # the best on top
        left, top, right, bottom = (factor * side for side in box)
        colour, text = _colour(name), f"{name} {score:.2f}"
        canvas.rectangle((left, top, right, bottom), outline=colour, width=max(2, size // 6))
        width = canvas.textlength(text, font=font)
        left = max(0, min(left, drawn.width - width - 6))
        top = top - size - 6 if top >= size + 6 else top
        canvas.rectangle((left, top, left + width + 6, top + size + 6), fill=colour)
        canvas.text((left + 3, top + 2), text, fill="white", font=font)
    return drawn


__all__ = ["Detector", "draw_detections"]
