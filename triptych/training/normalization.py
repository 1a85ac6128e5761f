"""Pictures that stay 8-bit until they are on the device."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image


class DeferredNormalization:
    """A collator that leaves it to the device to rescale and normalise pictures.

    Then a quarter of the bytes pass through worker processes, pinned memory and the bus. The inputs are the same, bit for bit on the
    same kind of device. Image processors that do more behind resizing and cropping, or work on floats before, keep their way: one
    picture is tried.

    Args:
        collator (`Callable`): From rows to a batch. Only one with a `processor` of pictures is changed, in a copy.
    """

    def __init__(self, collator: Callable[[list[Any]], Any]):
        self.collator = collator
        self.image_processor: Any = getattr(getattr(collator, "processor", None), "image_processor", None)
        self.is_deferred = self._is_equal()
        if self.is_deferred:
            changed: Any = copy.copy(collator)
            changed.processor = copy.copy(changed.processor)
            changed.processor.image_processor = self._without_normalization()
            self.collator = changed

    def _without_normalization(self) -> Any:
        image_processor = copy.copy(self.image_processor)
        image_processor.do_rescale = image_processor.do_normalize = False
        return image_processor

    def _is_equal(self) -> bool:
        own = self.image_processor
        if not hasattr(own, "rescale_and_normalize") or not (own.do_rescale and own.do_normalize):  # or no torchvision
            return False
        picture = Image.effect_noise((40, 24), 64).convert("RGB")
        expected, found = (
            each(picture, return_tensors="pt")["pixel_values"]
            for each in (self.image_processor, self._without_normalization())
        )
        return found.dtype == torch.uint8 and torch.equal(self._normalize(found), expected)

    def _normalize(self, pictures: torch.Tensor) -> torch.Tensor:
        own = self.image_processor
        statistics = (tuple(values) for values in (own.image_mean, own.image_std))
        frames = pictures.flatten(0, -4)  # clips too: (rows, frames, 3, height, width)
        done = own.rescale_and_normalize(frames, own.do_rescale, own.rescale_factor, own.do_normalize, *statistics)
        return done.view(pictures.shape)

    def __call__(self, rows: list[Any]) -> Any:
        """Rows as a batch, whose `pixel_values` or `pixel_values_videos` are of type uint8 where that is possible."""
        return self.collator(rows)

    def on_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch, wherever it is by now, as the model wants it."""
        if not self.is_deferred:
            return batch
        names = [name for name in ("pixel_values", "pixel_values_videos") if name in batch]
        return batch | {name: self._normalize(batch[name]) for name in names if batch[name].dtype == torch.uint8}


__all__ = ["DeferredNormalization"]
