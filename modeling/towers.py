"""Towers: parts of a model that also load alone."""

from transformers.utils.output_capturing import OutputRecorder

from .layers import Attention, SelfAttentionBlock


class TowerMixin:
    """For a `PreTrainedModel` that is part of a whole one: it also loads from a checkpoint of the whole model.

    There its keys carry a prefix, `_prefix_in_whole_model`, and those of the other parts are not its business.
    """

    _prefix_in_whole_model: str
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": SelfAttentionBlock,
        "attentions": OutputRecorder(Attention, index=1, layer_name="self_attn"),
    }

    def _adjust_missing_and_unexpected_keys(self, loading_info) -> None:
        super()._adjust_missing_and_unexpected_keys(loading_info)
        own = {name.partition(".")[0] for name in self.state_dict()}
        loading_info.unexpected_keys = {key for key in loading_info.unexpected_keys if key.partition(".")[0] in own}

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        kwargs.setdefault("key_mapping", {rf"^(?:model\.)?{cls._prefix_in_whole_model}\.": ""})
        return super().from_pretrained(*args, **kwargs)

    def save_pretrained(self, *args, **kwargs) -> None:
        # By default transformers would undo the key mapping of loading, which is no plain renaming.
        kwargs.setdefault("save_original_format", False)
        super().save_pretrained(*args, **kwargs)


__all__ = ["TowerMixin"]
