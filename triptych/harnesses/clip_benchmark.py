"""GRR-CoCa and MaMMUT in CLIP_benchmark (1.6), whose own command knows no other models than its own.

    python -m triptych.harnesses.clip_benchmark eval --model_type triptych --model grr_coca --pretrained outputs/demo --no_amp ...

All other arguments are CLIP_benchmark's; `--model` is a name for its table of results.
"""

from collections.abc import Sequence
from typing import Any

import torch
from clip_benchmark import cli, models
from clip_benchmark.metrics import zeroshot_classification
from PIL import Image
from torch import nn
from transformers import AutoModel, AutoProcessor

import triptych  # noqa: F401  (makes the models known)
from triptych.processing.pictures import to_rgb
from triptych.tasks.encoders import Encoder


class OpenClipLike(nn.Module):
    """A dual encoder with the two methods that CLIP_benchmark calls.

    Args:
        model (`PreTrainedModel`): A `grr_coca` or `mammut`.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Vectors of pictures, not of length 1 yet."""
        return self.model.get_image_features(pixel_values.to(self.model.dtype)).pooler_output

    def encode_text(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Likewise of texts. What is real ends with the first EOS: no mask comes along, and padding may have the id of a letter."""
        eos = torch.tensor(self.model.config.text_config.eos_token_id, device=input_ids.device)
        ends = torch.isin(input_ids, eos)
        mask = (ends.cumsum(-1) - ends.long() == 0).long()
        return self.model.get_text_features(input_ids, attention_mask=mask).pooler_output


def load(model_name: str, pretrained: str, cache_dir: str | None = None, device: str = "cpu") -> tuple[Any, Any, Any]:
    """What CLIP_benchmark asks of a loader: model, transform and tokenizer.

    Args:
        model_name (`str`): A name for the table; nothing depends on it.
        pretrained (`str`): Folder or Hub name of a checkpoint.
        cache_dir (`str`, *optional*): For downloads.
        device (`str`): Of the model.

    Raises:
        ValueError: If the model has no joint space.
    """
    model = AutoModel.from_pretrained(pretrained, cache_dir=cache_dir).to(device).eval()
    processor = AutoProcessor.from_pretrained(pretrained, cache_dir=cache_dir)
    Encoder(model, processor)  # refuses what has no joint space

    def transform(image: Image.Image) -> torch.Tensor:
        return processor(images=to_rgb(image), return_tensors="pt")["pixel_values"][0]

    def tokenizer(texts: Sequence[str]) -> torch.Tensor:
        return processor(text=list(texts), padding="max_length", truncation=True, return_tensors="pt")["input_ids"]

    return OpenClipLike(model), transform, tokenizer


def _accuracy(output: torch.Tensor, target: torch.Tensor, topk: Sequence[int] = (1,)) -> list[float]:
    """CLIP_benchmark's function of this name takes `float` of an array with one entry, which NumPy 2.4 no longer allows."""
    hits = output.topk(max(topk), dim=1).indices == target[:, None]
    return [float(hits[:, :k].any(dim=1).float().mean()) for k in topk]


def main() -> None:
    """CLIP_benchmark's command, with the model type `triptych`."""
    models.TYPE2FUNC["triptych"] = load
    models.MODEL_TYPES.append("triptych")
    zeroshot_classification.accuracy = _accuracy
    cli.main()


if __name__ == "__main__":
    main()

__all__ = ["OpenClipLike", "load", "main"]
