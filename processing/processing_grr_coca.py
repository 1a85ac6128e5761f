"""Processor of GRR-CoCa: images through transformers' CLIP image processor, texts through any tokenizer."""

from .self_contained_processor import PaddedTextKwargs, SelfContainedProcessor


GrrCocaProcessorKwargs = PaddedTextKwargs


class GrrCocaProcessor(SelfContainedProcessor):
    """Turn images and texts into model inputs.

    Texts become `BOS ... EOS`, padded on the right to the tokenizer's full length (`padding="longest"` shortens that;
    embeddings do not depend on it). The same call serves captioning prompts: `generate` drops the closing EOS and moves
    the padding. The CLS token is the model's own and never part of a text.

    Args:
        image_processor (`CLIPImageProcessor`): Resizes, crops and normalises.
        tokenizer (`PreTrainedTokenizerBase`): Any tokenizer with a padding token, that adds BOS and EOS.
    """

    valid_processor_kwargs = GrrCocaProcessorKwargs

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(self, images=None, text=None, **kwargs):
        """A batch of pictures, as [`~pictures.to_rgb`] takes them, texts, or both; options as for any processor."""
        kwargs = self._flat(kwargs)
        images = None if images is None else self._pictures(images, kwargs)
        return super().__call__(images=images, text=text, **kwargs)


__all__ = ["GrrCocaProcessor"]
