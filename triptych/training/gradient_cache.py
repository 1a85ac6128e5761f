"""Contrastive batches beyond memory: gradient caching (Gao et al. 2021, arXiv 2101.06983) for captioners.

The loss needs the embeddings of all pairs, but their gradients need one part of the batch at a time. So all parts are embedded without
gradient first; the loss over them gives the gradients of the embeddings; then every part is embedded anew with gradient, and its
captions are scored. The towers compute one forward pass more, and memory grows with the batch by its embeddings alone.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator

from triptych.modeling.inputs import supervised_labels


class _RandomState:
    """The generators as they are now, to draw the same dropout again."""

    def __init__(self, device: torch.device):
        self.module = None if device.type == "cpu" else torch.get_device_module(device.type)
        self.states = (torch.get_rng_state(), None if self.module is None else self.module.get_rng_state())

    def restore(self) -> None:
        torch.set_rng_state(self.states[0])
        if self.module is not None:
            self.module.set_rng_state(self.states[1])


def backward_in_parts(
    model: Any,
    parts: Sequence[dict[str, Any]],
    accelerator: Accelerator,
    extra_inputs: dict[str, Any],
    prepare: Callable[[dict[str, Any]], dict[str, Any]],
) -> dict[str, torch.Tensor]:
    """Gradients of the joint loss of a batch that comes in parts; they equal those of the whole batch at once.

    Dropout is drawn part by part, the same both times. With several processes negatives come from all of them.

    Args:
        model: A captioner, prepared by `accelerator`, with a contrastive loss.
        parts (`Sequence[dict]`): Batches with `labels`, on the device. All have equally many pairs.
        accelerator (`Accelerator`): Of the run.
        extra_inputs (`dict`): Arguments of `forward` that all parts share.
        prepare (`Callable`): Makes arguments of `forward` of a part.

    Returns:
        `dict` of `loss`, `contrastive_loss` and `caption_loss` of the batch on this process, detached.
    """
    captioner = accelerator.unwrap_model(model)  # FSDP2 wraps nothing
    states, embeds = [], []
    with accelerator.autocast():
        for part in parts:
            states.append(_RandomState(accelerator.device))
            embeds.append(captioner.embed_pairs(**prepare(part), **extra_inputs))
        image_embeds, text_embeds = (torch.cat(each) for each in zip(*embeds, strict=True))
        contrastive, gradients = captioner.contrastive_gradients(image_embeds, text_embeds)
    vocab_size = captioner.config.text_config.vocab_size
    targets = [supervised_labels(part["labels"], part.get("attention_mask"), vocab_size)[:, 1:] for part in parts]
    num_tokens = torch.stack([(each != -100).sum() for each in targets]).sum().float()
    num_tokens = accelerator.reduce(num_tokens, "mean").clamp(min=1)

    shares = {
        name: gradient.split(len(image_embeds) // len(parts))
        for name, gradient in gradients.items()
        if "embeds" in name
    }
    scalars = {name: gradient / len(parts) for name, gradient in gradients.items() if name not in shares}
    caption = torch.zeros_like(contrastive)
    for index, (part, state) in enumerate(zip(parts, states, strict=True)):
        own = {name: share[index] for name, share in shares.items()} | scalars
        is_last = index + 1 == len(parts)
        state.restore()
        with nullcontext() if is_last else accelerator.no_sync(model):
            with accelerator.autocast():  # a context of its own: the one above holds weights without gradient
                outputs = model(
                    **prepare(part), **extra_inputs, contrastive_gradients=own, num_caption_tokens=num_tokens
                )
            accelerator.backward(outputs.loss)
        caption += outputs.caption_loss.detach()
    config = captioner.config
    loss = config.contrastive_loss_weight * contrastive + config.caption_loss_weight * caption
    return {"loss": loss, "contrastive_loss": contrastive, "caption_loss": caption}


__all__ = ["backward_in_parts"]
