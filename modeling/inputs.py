"""What happens to images and token ids before a layer sees them: checks, padding, positions, prompts, labels."""

import torch
from transformers.cache_utils import Cache
from transformers.utils import TransformersKwargs


# What a model's `**kwargs` may hold beside its arguments: switches of transformers' decorators, arguments of attention kernels.
_OPTIONS = set(TransformersKwargs.__annotations__) - {"num_items_in_batch"}
_OPTIONS |= {"cache_position", "output_cross_attentions", "return_dict", "use_cache"}
_OPTIONS |= {"tokenizer", "assistant_tokenizer"}  # of `stop_strings` and assistants, which `generate` hands through


def refuse_unknown(options: dict) -> None:
    """Refuse what has come through all `**kwargs` and no one will read.

    Raises:
        ValueError: With its name.
    """
    for name in options:
        if name not in _OPTIONS:
            raise ValueError(f"`{name}` is no argument of this model, and none of {', '.join(sorted(_OPTIONS))}.")


def of_encoders(options: dict) -> dict:
    """Those of a model's options that are about encoders, too; a choice of single layers is not."""
    switches = {name: options.get(name) for name in ("output_attentions", "output_hidden_states")}
    return {name: value for name, value in switches.items() if isinstance(value, bool)}


def check_pixel_values(pixel_values: torch.Tensor, config, any_size: bool = False, name: str = "pixel_values") -> None:
    """Refuse images that the patch embedding cannot read.

    Args:
        pixel_values (`torch.Tensor` of shape `(..., num_channels, height, width)`): Images.
        config (`VisionTowerConfig`): What the tower was built for, in channels and pixels.
        any_size (`bool`): Accept every multiple of the patch size instead of `image_size` alone.
        name (`str`): Of the argument, for the message.

    Raises:
        ValueError: If number of images, channels or size do not fit.
    """
    shape, size, patch = tuple(pixel_values.shape), config.image_size, config.patch_size
    leading = {"pixel_values": "batch_size", "pixel_values_videos": "batch_size, num_frames"}[name]
    if pixel_values.ndim != leading.count(",") + 4 or 0 in shape[:-2] or shape[-3] != config.num_channels:
        what = "frame" if "num_frames" in leading else "image"
        raise ValueError(
            f"`{name}` must have shape ({leading}, {config.num_channels}, height, width) with at least one {what}, got "
            f"{shape}."
        )
    height, width = shape[-2:]
    if any_size:
        if min(height, width) < patch or height % patch or width % patch:
            raise ValueError(
                f"`{name}` must have a height and width that are multiples of the patch size {patch}, got {height} x {width}."
            )
    elif (height, width) != (size, size):
        raise ValueError(
            f"`{name}` must be {size} x {size} pixels, got {height} x {width}. "
            "Resize the images or pass `interpolate_pos_encoding=True`."
        )


def check_texts(
    input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, vocab_size: int, context_length: int
) -> None:
    """Refuse texts that the token embedding or the context cannot hold.

    Raises:
        ValueError: If not exactly one kind of input is given, a text is empty or longer than `context_length` tokens, or
            an id lies outside the vocabulary.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("Pass exactly one of `input_ids` and `inputs_embeds`.")
    name, inputs = ("input_ids", input_ids) if inputs_embeds is None else ("inputs_embeds", inputs_embeds)
    if inputs.ndim < 2 or 0 in inputs.shape[:2]:
        raise ValueError(
            f"`{name}` must hold at least one text of at least one token, got shape {tuple(inputs.shape)}."
        )
    if inputs.shape[1] > context_length:
        raise ValueError(f"`{name}` holds texts of {inputs.shape[1]} tokens, the context is {context_length} tokens.")
    # On an accelerator this check would stall the queue; there the embedding's own assertion fires.
    if input_ids is not None and input_ids.device.type == "cpu" and not torch.compiler.is_compiling():
        smallest, largest = input_ids.min().item(), input_ids.max().item()
        if smallest < 0 or largest >= vocab_size:
            raise ValueError(
                f"`input_ids` must lie between 0 and {vocab_size - 1}, got ids from {smallest} to {largest}. Does the "
                "tokenizer belong to this model?"
            )


def supervised_labels(
    labels: torch.Tensor, attention_mask: torch.Tensor | None, vocab_size: int, shifted: bool = False
) -> torch.Tensor:
    """Checked labels, without targets that padding would have to predict (BOS behind padding on the left).

    Args:
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`): Token ids, or -100 to ignore.
        attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): 0 for padding.
        vocab_size (`int`): Number of token ids.
        shifted (`bool`): As in [`~losses.captioning_loss`].

    Raises:
        ValueError: If a label lies outside the vocabulary.
    """
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        valid = labels[labels != -100]
        if valid.numel() and (valid.min() < 0 or valid.max() >= vocab_size):
            raise ValueError(
                f"`{'shift_labels' if shifted else 'labels'}` must be -100 or lie between 0 and {vocab_size - 1}, got values from {valid.min().item()} to "
                f"{valid.max().item()}."
            )
    if attention_mask is None or attention_mask.shape != labels.shape:
        return labels
    is_padding = attention_mask == 0
    predicted_by_padding = is_padding if shifted else torch.nn.functional.pad(is_padding[:, :-1], (1, 0))
    return labels.masked_fill(predicted_by_padding.to(labels.device), -100)


def check_training_has_labels(labels: torch.Tensor | None, use_cache: bool | None) -> None:
    """Refuse to train on logits that somebody expects to be all of the loss; call it in training mode.

    transformers' `Trainer` takes `labels` away to smooth them. What it then makes of the logits is a loss without a shift
    and without the model's other parts, and no error. It never says `use_cache`; who wants logits for a loss of their own can.

    Raises:
        ValueError: If there are gradients, but neither `labels` nor a word about the cache.
    """
    if torch.is_grad_enabled() and labels is None and use_cache is None:
        raise ValueError(
            "`labels` must be given while training, got None: the loss is more than one of logits. transformers' "
            "`label_smoothing_factor` and `compute_loss_func` take labels away: leave them unset. Pass `use_cache=False` to "
            "compute a loss of your own from the logits, or call `model.eval()`."
        )


def padding_mask(input_ids: torch.LongTensor, pad_token_id: int | None) -> torch.LongTensor:
    """1 for tokens, 0 for runs of `pad_token_id` at either end; inside a text that id is a token like any other."""
    if pad_token_id is None:
        return torch.ones_like(input_ids)
    is_token = (input_ids != pad_token_id).long()
    return (is_token.cumsum(-1) > 0).long() * (is_token.flip(-1).cumsum(-1).flip(-1) > 0).long()


def default_position_ids(
    inputs: torch.Tensor, attention_mask: torch.Tensor | None, cache: Cache | None = None, layer_idx: int = 0
) -> torch.Tensor:
    """Positions that count real tokens only, so that padding on either side changes nothing.

    Args:
        inputs (`torch.Tensor` of shape `(batch_size, query_length)` or with a width): Ids or states of the tokens.
        attention_mask (`torch.Tensor` of shape `(batch_size, past_length + query_length)`, *optional*): 0 for padding.
        cache (`Cache`, *optional*), layer_idx (`int`): What holds earlier tokens; a layer of it that has not seen these yet.

    Returns:
        `torch.LongTensor` of shape `(batch_size or 1, query_length)`.
    """
    if attention_mask is None:
        past_length = 0 if cache is None else cache.get_seq_length(layer_idx)
        return (torch.arange(inputs.shape[1], device=inputs.device) + past_length)[None]
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)[:, -inputs.shape[1] :]


def tokens_first(
    input_ids: torch.LongTensor, attention_mask: torch.Tensor, length: int, pad_token_id: int
) -> tuple[torch.LongTensor, torch.Tensor]:
    """Tokens first, then `pad_token_id` up to a length: the only form that open_clip's weights have seen.

    Returns:
        Token ids and attention mask of shape `(batch_size, length)`.
    """
    order = (1 - attention_mask.long()).argsort(dim=-1, stable=True)
    attention_mask = attention_mask.gather(-1, order)
    input_ids = input_ids.gather(-1, order).masked_fill(attention_mask == 0, pad_token_id)
    missing = length - input_ids.shape[1]
    return (
        torch.nn.functional.pad(input_ids, (0, missing), value=pad_token_id),
        torch.nn.functional.pad(attention_mask, (0, missing)),
    )


def align_prompts(
    input_ids: torch.LongTensor,
    attention_mask: torch.Tensor | None,
    pad_token_id: int | None,
    eos_token_id: int | list[int] | None,
    filler: int,
) -> tuple[torch.LongTensor, torch.LongTensor]:
    """Make prompts ready to be continued: drop an EOS at their end, move all padding to the left and write `filler` there.

    Tokenizers close a text with EOS and pad on the right; a caption continues neither.

    Returns:
        Token ids and attention mask of shape `(batch_size, longest_prompt)`.

    Raises:
        ValueError: If a prompt holds nothing but padding and EOS.
    """
    keep = padding_mask(input_ids, pad_token_id) if attention_mask is None else attention_mask.long()
    keep = keep.to(input_ids.device)
    if eos_token_id is not None:
        from_end = keep.flip(-1).cumsum(-1).flip(-1)  # 1 at the last token of every row
        is_eos = torch.isin(input_ids, torch.tensor(eos_token_id, device=input_ids.device))
        keep = keep * ~(is_eos & (from_end == 1))
    lengths = keep.sum(-1)
    if (lengths == 0).any():
        row = int((lengths == 0).nonzero()[0])
        raise ValueError(f"`input_ids[{row}]` is an empty prompt, expected at least BOS: {input_ids[row].tolist()}.")
    order = keep.argsort(dim=-1, stable=True)  # padding first, tokens in their order behind it
    start = input_ids.shape[1] - int(lengths.max())
    keep = keep.gather(-1, order)[:, start:]
    return input_ids.gather(-1, order)[:, start:].masked_fill(keep == 0, filler), keep


__all__ = [
    "align_prompts",
    "check_pixel_values",
    "check_texts",
    "check_training_has_labels",
    "default_position_ids",
    "of_encoders",
    "padding_mask",
    "refuse_unknown",
    "supervised_labels",
    "tokens_first",
]
