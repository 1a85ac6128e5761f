"""Processors that carry their code, as the models do."""

import os

from transformers.dynamic_module_utils import custom_object_save
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin

from .pictures import flatten, rgb_pictures, to_rgb


class PaddedTextKwargs(ProcessingKwargs, total=False):
    """Call arguments of a processor that pads texts to the tokenizer's full length unless told otherwise."""

    # transformers 5.23 reads defaults from the class of the processor too, every version reads them here.
    _defaults = {"text_kwargs": {"padding": "max_length"}}  # noqa: RUF012


def list_of_texts(texts, name: str) -> list[str]:
    """One text or several as a list.

    Raises:
        ValueError: If there is none, or one is not a text.
    """
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, (list, tuple)):
        raise ValueError(f"`{name}` is {texts!r}; expected a text or a list of texts.")
    if not texts:
        raise ValueError(f"`{name}` is empty; expected at least one.")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"`{name}[{index}]` is {text!r}; expected a text.")
    return list(texts)


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
        found = rgb_pictures(images, name, options.pop("input_data_format", None))
        if isinstance(found, list):
            rows = [each for each in found if isinstance(each, list)]
            if len(rows) not in (0, len(found)) or any(isinstance(each, list) for row in rows for each in row):
                raise ValueError(
                    f"`{name}` must be pictures, or a list of them for every text; got other lists of lists."
                )
        return found

    def _check_options(self, kwargs: dict) -> None:
        """Refuse options that transformers knows of no processor; it would drop them in silence.

        Raises:
            ValueError: With its name.
        """
        kinds = [*ProcessingKwargs.__annotations__.values(), getattr(self.image_processor, "valid_kwargs", None)]
        known = {name for kind in kinds for name in getattr(kind, "__annotations__", {})}
        known |= {"common_kwargs", *ProcessingKwargs.__annotations__}
        for name, value in kwargs.items():
            if value is not None and name not in known:  # chat templates pass None for what there is none of
                raise ValueError(
                    f"`{name}` is no option of {type(self).__name__}, its tokenizer or its image processor."
                )

    def _flat(self, kwargs: dict) -> dict:
        """Checked options with those of `images_kwargs` among the others."""
        self._check_options(kwargs)
        nested = kwargs.pop("images_kwargs", None) or {}
        if twice := nested.keys() & kwargs.keys():
            raise ValueError(f"`{min(twice)}` stands in `images_kwargs` and beside it; pass it once.")
        return kwargs | nested

    def _check_text(self, text, **kwargs) -> None:
        """Refuse no text at all, and texts longer than the context unless `truncation` is asked for."""
        texts = list_of_texts(text, "text")
        options = {**kwargs, **kwargs.get("text_kwargs", {})}
        if options.get("truncation"):
            return
        longest = options.get("max_length") or self.tokenizer.model_max_length
        # ASCII has at most a token per character and one for a space before it: most texts need not be split twice.
        most = longest - self.tokenizer.num_special_tokens_to_add() - 1
        unsure = [index for index, each in enumerate(texts) if len(each) > most or not each.isascii()]
        found = self.tokenizer([texts[index] for index in unsure], padding=False).input_ids if unsure else []
        for index, ids in zip(unsure, found, strict=True):
            if len(ids) > longest:
                raise ValueError(
                    f"`text[{index}]` has {len(ids)} tokens, the context is {longest} tokens: {texts[index][:60]!r}. "
                    "Shorten it or pass `truncation=True`."
                )

    def validate_inputs(self, images=None, text=None, **kwargs) -> None:
        if text is not None:  # before transformers looks, whose messages differ from version to version
            self._check_text(text, **kwargs)
        super().validate_inputs(images=images, text=text, **kwargs)

    def save_pretrained(self, save_directory, **kwargs):
        """As transformers' own, with the source files and an `auto_map` that names them, which the parts need not know."""
        cls = type(self)
        auto_name = cls._auto_class
        os.makedirs(save_directory, exist_ok=True)
        try:
            cls._auto_class = "AutoProcessor"
            custom_object_save(self, save_directory, config=self)
            cls._auto_class = None
            return super().save_pretrained(save_directory, **kwargs)
        finally:
            cls._auto_class = auto_name
            vars(self).pop("auto_map", None)


__all__ = ["PaddedTextKwargs", "SelfContainedProcessor", "list_of_texts"]
