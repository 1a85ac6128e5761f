"""Processors that carry their code, as the models do."""

from transformers.processing_utils import ProcessingKwargs, ProcessorMixin


class PaddedTextKwargs(ProcessingKwargs, total=False):
    """Call arguments of a processor that pads texts to the tokenizer's full length unless told otherwise."""

    # transformers 5.23 reads defaults from the class of the processor too, every version reads them here.
    _defaults = {"text_kwargs": {"padding": "max_length"}}  # noqa: RUF012


class SelfContainedProcessor(ProcessorMixin):
    """A processor whose `save_pretrained` writes its source files and names them."""

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
