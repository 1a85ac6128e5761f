"""Processor of GRR-CoCa: images through transformers' CLIP image processor, texts through any tokenizer."""

from PIL import Image
from transformers.processing_utils import ProcessorMixin


def _flatten(images):
    """Single images out of an image, a list of images, lists of them, or an array of several."""
    if isinstance(images, (list, tuple)):
        for image in images:
            yield from _flatten(image)
    elif not isinstance(images, Image.Image) and images.ndim == 4:
        yield from images
    else:
        yield images


def check_images(images) -> None:
    """Refuse images that no model here can read, by position, before anything is computed.

    PIL images of any mode are converted to RGB later; arrays and tensors must have three channels.

    Raises:
        ValueError: If there is no image, or one is empty or has another number of channels.
    """
    images = list(_flatten(images))
    if not images:
        raise ValueError("`images` is empty; expected at least one image.")
    for index, image in enumerate(images):
        if isinstance(image, Image.Image):
            size = image.size
        else:
            shape = tuple(image.shape)
            if len(shape) != 3 or 3 not in (shape[0], shape[-1]):
                raise ValueError(
                    f"`images[{index}]` has shape {shape}; expected three channels, as (3, height, width) or "
                    "(height, width, 3). Convert it to RGB first."
                )
            size = shape[1:] if shape[0] == 3 else shape[:2]
        if 0 in size:
            raise ValueError(f"`images[{index}]` has size {tuple(size)}; expected at least one pixel each way.")


class GrrCocaProcessor(ProcessorMixin):
    """Turn images and texts into model inputs.

    Texts become `BOS ... EOS`, padded on the right to the tokenizer's full length (`padding="longest"` shortens that;
    embeddings do not depend on it). The same call serves captioning prompts: `generate` drops the closing EOS and moves
    the padding. The CLS token is the model's own and never part of a text.

    Args:
        image_processor (`CLIPImageProcessor`): Resizes, crops and normalises.
        tokenizer (`PreTrainedTokenizerBase`): Any tokenizer with a padding token, that adds BOS and EOS.
    """

    text_kwargs = {"padding": "max_length"}  # noqa: RUF012

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)

    def validate_inputs(self, images=None, text=None, **kwargs) -> None:
        super().validate_inputs(images=images, text=text, **kwargs)
        if images is not None:
            check_images(images)
        if text is not None:
            self._check_text(text, **kwargs)

    def _check_text(self, text, **kwargs) -> None:
        texts = [text] if isinstance(text, str) else text
        if not texts:
            raise ValueError("`text` is empty; expected at least one text.")
        options = {**kwargs, **kwargs.get("text_kwargs", {})}
        if options.get("truncation"):
            return
        longest = options.get("max_length") or self.tokenizer.model_max_length
        for index, ids in enumerate(self.tokenizer(texts, padding=False).input_ids):
            if len(ids) > longest:
                raise ValueError(
                    f"`text[{index}]` has {len(ids)} tokens, the context is {longest} tokens: {texts[index][:60]!r}. "
                    "Shorten it or pass `truncation=True`."
                )


__all__ = ["GrrCocaProcessor"]
