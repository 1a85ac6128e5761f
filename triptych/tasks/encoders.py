"""Images and texts as vectors of one space, for models of this package and of transformers."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch.nn.functional import normalize


# Trained on texts that are padded to the end, and without a mask: shorter ones would be others.
_PADDED = {"siglip", "siglip2"}


class Encoder:
    """A model with a joint space: GRR-CoCa, MaMMUT, or transformers' CLIP, SigLIP and their like.

    Args:
        model (`PreTrainedModel`): With `get_image_features` and `get_text_features`.
        processor (`ProcessorMixin`): Of the model.

    Raises:
        ValueError: If the model has no joint space.
    """

    def __init__(self, model: Any, processor: Any):
        if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
            raise ValueError(
                f"A {model.config.model_type} has no space that images and texts share; this task needs a grr_coca, a mammut, or a "
                "clip or siglip of transformers."
            )
        self.model, self.processor = model, processor

    def images(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Vectors of length 1, of shape `(num_pictures, dim)`, in fp32 on the CPU."""
        inputs = self.processor(images=list(pictures), return_tensors="pt").to(self.model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        return self._unit(self.model.get_image_features, inputs)

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Likewise; what is longer than the context is cut, as the field's evaluations do."""
        padding = "max_length" if self.model.config.model_type in _PADDED else True
        inputs = self.processor(text=list(texts), padding=padding, truncation=True, return_tensors="pt")
        return self._unit(self.model.get_text_features, inputs.to(self.model.device))

    @torch.no_grad()
    def _unit(self, function: Any, inputs: Any) -> torch.Tensor:
        found = function(**inputs)
        features = getattr(found, "pooler_output", found)  # transformers' older models return the tensor
        return normalize(features.float(), dim=-1).cpu()


__all__ = ["Encoder"]
