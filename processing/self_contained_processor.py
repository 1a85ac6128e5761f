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
        """Pictures as `to_rgb` makes them, nested as they came; what is about arrays is taken out of the `options`."""
        flat = list(flatten(images))
        if not flat:
            raise ValueError(f"`{name}` is empty; expected at least one image.")
        rescales = options.get("do_rescale", getattr(self.image_processor, "do_rescale", True))
        if not rescales and any("float" in str(getattr(image, "dtype", "")) for image in flat):
            raise ValueError(
                f"`do_rescale=False` does not go with `{name}` of floats; from 0 to 1 they need no option."
            )
        return rgb_pictures(images, name, options.pop("input_data_format", None))

    @staticmethod
    def _listed_texts(text) -> list[str]:
        """One text or several as a list."""
        texts = [text] if isinstance(text, str) else list(text)
        for index, each in enumerate(texts):
            if not isinstance(each, str):
                raise ValueError(f"`text[{index}]` is {each!r}; expected a text.")
        return texts

    def _check_text(self, text, **kwargs) -> None:
        """Refuse no text at all, and texts longer than the context unless `truncation` is asked for."""
        texts = self._listed_texts(text)
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

    def validate_inputs(self, images=None, text=None, **kwargs) -> None:
        super().validate_inputs(images=images, text=text, **kwargs)
        if text is not None:
            self._check_text(text, **kwargs)

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
