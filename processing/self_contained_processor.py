"""Processors that carry their code, as the models do."""

from transformers.processing_utils import ProcessorMixin


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


__all__ = ["SelfContainedProcessor"]
