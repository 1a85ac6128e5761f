"""Processor of GRR-CoCa: images through transformers' CLIP image processor, texts through any tokenizer."""

from .checks import check_images, check_text
from .self_contained_processor import PaddedTextKwargs, SelfContainedProcessor


class GrrCocaProcessor(SelfContainedProcessor):
    """Turn images and texts into model inputs.

    Texts become `BOS ... EOS`, padded on the right to the tokenizer's full length (`padding="longest"` shortens that;
    embeddings do not depend on it). The same call serves captioning prompts: `generate` drops the closing EOS and moves
    the padding. The CLS token is the model's own and never part of a text.

    Args:
        image_processor (`CLIPImageProcessor`): Resizes, crops and normalises.
        tokenizer (`PreTrainedTokenizerBase`): Any tokenizer with a padding token, that adds BOS and EOS.
    """

    valid_processor_kwargs = PaddedTextKwargs

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)

    def validate_inputs(self, images=None, text=None, **kwargs) -> None:
        super().validate_inputs(images=images, text=text, **kwargs)
        if images is not None:
            check_images(images)
        if text is not None:
            check_text(text, self.tokenizer, **kwargs)


__all__ = ["GrrCocaProcessor"]
