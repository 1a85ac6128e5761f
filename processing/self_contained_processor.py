"""Processors that carry their code, as the models do."""

from transformers.processing_utils import ProcessingKwargs, ProcessorMixin

from .pictures import flatten, rgb_pictures, to_rgb


class PaddedTextKwargs(ProcessingKwargs, total=False):
    """Call arguments of a processor that pads texts to the tokenizer's full length unless told otherwise."""

    # transformers 5.23 reads defaults from the class of the processor too, every version reads them here.
    _defaults = {"text_kwargs": {"padding": "max_length"}}  # noqa: RUF012


class SelfContainedProcessor(ProcessorMixin):
    """A processor whose `save_pretrained` writes its source files and names them, and that reads any picture alike."""

    to_rgb = staticmethod(to_rgb)  # for pipelines, which travel too but may not import it

    def _pictures(self, images, options: dict, name: str = "images"):
        """Pictures as RGB, nested as they came.

        Args:
            images: Anything that `to_rgb` takes, or lists of it.
            options (`dict`): For the image processor; what is about arrays is taken out.
            name (`str`): Of the argument, for messages.

        Raises:
            ValueError: If there is no picture, one cannot be read, or floats are not to be rescaled.
        """
        if not list(flatten(images)):
            raise ValueError(f"`{name}` is empty; expected at least one image.")
        rescales = options.get("do_rescale", getattr(self.image_processor, "do_rescale", True))
        if not rescales and any("float" in str(getattr(image, "dtype", "")) for image in flatten(images)):
            raise ValueError(
                f"`do_rescale=False` does not go with `{name}` of floats: from 0 to 1 they are understood without it."
            )
        return rgb_pictures(images, name, options.pop("input_data_format", None))

    def save_pretrained(self, save_directory, **kwargs):
        """As transformers' own, with the source files and the `auto_map`."""
        cls = type(self)
        auto_name = cls._auto_class
        try:
            cls._auto_class = "AutoProcessor"
            return super().save_pretrained(save_directory, **kwargs)
        finally:
            cls._auto_class = auto_name
            for part in (self, *(getattr(self, name) for name in self.get_attributes())):
                part.__dict__.pop("auto_map", None)


__all__ = ["PaddedTextKwargs", "SelfContainedProcessor"]
