"""Towers: parts of a model that also load alone."""


class TowerMixin:
    """For a `PreTrainedModel` that is part of a whole one: it also loads from a checkpoint of the whole model.

    There its keys carry a prefix. Classes set `_prefix_in_whole_model`, and in `_keys_to_ignore_on_load_unexpected` the
    names of all other parts.
    """

    _prefix_in_whole_model: str

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        kwargs.setdefault("key_mapping", {rf"^(?:model\.)?{cls._prefix_in_whole_model}\.": ""})
        return super().from_pretrained(*args, **kwargs)

    def save_pretrained(self, *args, **kwargs) -> None:
        # By default transformers would undo the key mapping of loading, which is no plain renaming.
        kwargs.setdefault("save_original_format", False)
        super().save_pretrained(*args, **kwargs)


__all__ = ["TowerMixin"]
