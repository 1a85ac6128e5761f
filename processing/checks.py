"""What every processor refuses: images that no model here can read, and texts longer than the context."""

from PIL import Image


def flatten(images):
    """Single images out of an image, a list of images, lists of them, or an array of several."""
    if isinstance(images, (list, tuple)):
        for image in images:
            yield from flatten(image)
    elif not isinstance(images, Image.Image) and images.ndim == 4:
        yield from images
    else:
        yield images


def height_and_width(image) -> tuple[int, int]:
    """Of a PIL image, or of an array with three channels in front or behind."""
    if isinstance(image, Image.Image):
        return image.height, image.width
    return tuple(image.shape[1:] if image.shape[0] == 3 else image.shape[:2])


def check_images(images, name: str = "images") -> None:
    """Refuse images that no model here can read, by position, before anything is computed.

    PIL images of any mode are converted to RGB later; arrays and tensors must have three channels.

    Args:
        images: An image, or any nesting of lists of them.
        name (`str`): Of the argument, for messages.

    Raises:
        ValueError: If there is no image, or one is empty or has another number of channels.
    """
    images = list(flatten(images))
    if not images:
        raise ValueError(f"`{name}` is empty; expected at least one image.")
    for index, image in enumerate(images):
        if not isinstance(image, Image.Image):
            shape = tuple(image.shape)
            if len(shape) != 3 or 3 not in (shape[0], shape[-1]):
                raise ValueError(
                    f"`{name}[{index}]` has shape {shape}; expected three channels, as (3, height, width) or "
                    "(height, width, 3). Convert it to RGB first."
                )
        size = image.size if isinstance(image, Image.Image) else height_and_width(image)
        if 0 in size:
            raise ValueError(f"`{name}[{index}]` has size {size}; expected at least one pixel each way.")


def check_text(text, tokenizer, **kwargs) -> None:
    """Refuse no text at all, and texts longer than the context unless `truncation` is asked for.

    Raises:
        ValueError: If there is no text, or one is too long.
    """
    texts = [text] if isinstance(text, str) else text
    if not texts:
        raise ValueError("`text` is empty; expected at least one text.")
    options = {**kwargs, **kwargs.get("text_kwargs", {})}
    if options.get("truncation"):
        return
    longest = options.get("max_length") or tokenizer.model_max_length
    for index, ids in enumerate(tokenizer(texts, padding=False).input_ids):
        if len(ids) > longest:
            raise ValueError(
                f"`text[{index}]` has {len(ids)} tokens, the context is {longest} tokens: {texts[index][:60]!r}. "
                "Shorten it or pass `truncation=True`."
            )


__all__ = ["check_images", "check_text", "flatten", "height_and_width"]
