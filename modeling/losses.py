"""Losses over a vocabulary as pure functions, shared by the models of this package. Every one is computed and returned in fp32."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers.utils.generic import maybe_autocast

from .layers import product_dtype


# Rows that make a product with the weight of a vocabulary worth its gradient
_LEAST_ROWS = 256


def is_distributed() -> bool:
    """Whether this process trains together with others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    return logits.sub_(logits.logsumexp(-1, keepdim=True))


class _LossOfLogits(torch.autograd.Function):
    """Sum over rows of a loss of logits, each a product of states with the weight of a vocabulary.

    Gradients are computed beside the value: both need the distributions of a chunk of rows, and none outlives its chunk.

    Its arguments are `loss`, `chunk_size`, and states and weight of every kind of logits. `loss` takes the slice of a chunk's rows, its
    logits in fp32, which it may overwrite, and which of their gradients are needed; it returns the sum over the rows and these gradients.
    """

    @staticmethod
    def forward(ctx: Any, loss: Callable, chunk_size: int, *sides: torch.Tensor) -> torch.Tensor:
        states, weights = sides[::2], sides[1::2]
        device = weights[0].device.type
        dtype = product_dtype(weights[0])
        ctx.gradients = [
            torch.zeros_like(tensor, dtype=torch.float32) if needed else None
            for tensor, needed in zip(sides, ctx.needs_input_grad[2:], strict=True)
        ]
        weights = tuple(weight.to(dtype) for weight in weights)
        # Adding to a gradient of the weight's size costs more than the few rows of a chunk: in half precision several share it.
        block_size = chunk_size if dtype == torch.float32 else chunk_size * math.ceil(_LEAST_ROWS / chunk_size)
        total = weights[0].new_zeros((), dtype=torch.float32)
        with maybe_autocast(device, enabled=False):
            for start in range(0, len(states[0]), block_size):
                block = [each[start : start + block_size].to(dtype) for each in states]
                total += _LossOfLogits.block(ctx.gradients, loss, start, block, weights, chunk_size)
        return total

    @staticmethod
    def block(
        gradients: list[torch.Tensor | None],
        loss: Callable,
        start: int,
        states: list[torch.Tensor],
        weights: tuple[torch.Tensor, ...],
        chunk_size: int,
    ) -> torch.Tensor:
        """The sum over the rows from `start` on, which adds their gradients to those of all."""
        is_needed = [
            each is not None or other is not None for each, other in zip(gradients[::2], gradients[1::2], strict=True)
        ]
        found = []
        for first in range(0, len(states[0]), chunk_size):
            chunk = [each[first : first + chunk_size] for each in states]
            logits = [
                (each @ weight.T).float() for each, weight in zip(chunk, weights, strict=True)
            ]  # (rows, vocab_size)
            value, parts = loss(slice(start + first, start + first + len(chunk[0])), *logits, is_needed=is_needed)
            found.append((value, *(None if part is None else part.to(weights[0].dtype) for part in parts)))
        values, *by_side = zip(*found, strict=True)
        for side, parts in enumerate(by_side):
            if not is_needed[side]:
                continue
            logit_gradient = parts[0] if len(parts) == 1 else torch.cat(parts)
            state_gradient, weight_gradient = gradients[2 * side], gradients[2 * side + 1]
            if state_gradient is not None:
                state_gradient[start : start + len(logit_gradient)] = logit_gradient @ weights[side]
            if weight_gradient is not None and logit_gradient.dtype == torch.float32:
                # No second tensor of the size of the weight
                torch.addmm(weight_gradient, logit_gradient.T, states[side], out=weight_gradient)
            elif weight_gradient is not None:
                weight_gradient += logit_gradient.T @ states[side]
        return torch.stack(values).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "The gradients of a loss over the vocabulary were handed out: call `backward` once per forward pass."
            )
        # In place and without a reference left behind: a second tensor of the weight's size would double the peak.
        gradients, ctx.gradients = ctx.gradients, None
        return None, None, *(None if gradient is None else gradient.mul_(grad_output) for gradient in gradients)


def _sum_over_rows(loss: Callable, chunk_size: int, *sides: torch.Tensor) -> torch.Tensor:
    if not torch.is_grad_enabled():  # which `needs_input_grad` does not know
        sides = tuple(tensor.detach() for tensor in sides)
    return _LossOfLogits.apply(loss, chunk_size, *sides)


def _as_product(head: nn.Module, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """States and a matrix of `(vocab_size, channels)` whose product are the logits, for any affine head.

    A bias becomes the weight of a channel of ones. Adapters, quantised and sharded weights know their product with a matrix and its
    gradient: with the identity it is their own, with zeros their bias. Dropout of an adapter then drops channels of all rows alike.
    """
    if type(head) is nn.Linear and type(head.weight) is nn.Parameter:
        if head.bias is None:
            return states, head.weight
        return nn.functional.pad(states, (0, 1), value=1.0), torch.cat([head.weight, head.bias[:, None]], dim=1)
    identity = torch.eye(states.shape[-1], dtype=states.dtype, device=states.device)
    products = head(nn.functional.pad(identity, (0, 0, 0, 1)))  # (channels + 1, vocab_size)
    matrix, bias = products[:-1] - products[-1:], products[-1:]
    return nn.functional.pad(states, (0, 1), value=1.0), torch.cat([matrix, bias]).T


def captioning_loss(
    hidden_states: torch.Tensor,
    labels: torch.Tensor,
    lm_head: nn.Module,
    gather: bool = False,
    chunk_size: int = 256,
    shifted: bool = False,
    reserved: slice = slice(0),
    num_tokens: torch.Tensor | None = None,
) -> torch.Tensor:
    """Next-token cross-entropy, mean over the tokens of the whole batch (CoCa, arXiv 2205.01917, eq. 3).

    Vocabulary logits exist for one chunk of tokens at a time, so peak memory grows with `chunk_size x vocabulary`, not with
    `batch x length x vocabulary`.

    Args:
        hidden_states (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`): Decoder outputs.
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
            Token ids; position t is predicted from position t - 1. Targets of -100 are ignored.
        lm_head (`nn.Module`): Maps hidden states to vocabulary logits; linear, with or without a bias. Adapters on it take part.
        gather (`bool`): Divide by the mean token count of all processes, so that gradients averaged by DDP are those of
            the global batch even where captions differ in length.
        chunk_size (`int`): Tokens per chunk.
        shifted (`bool`): Whether labels already stand where they are predicted: that of position t at t.
        reserved (`slice`): Ids that are no words, and are never predicted.
        num_tokens (`torch.Tensor` of shape `()`, *optional*): Divide by so many instead of those of this batch, which is a part of
            a larger one.

    Returns:
        `torch.Tensor` of shape `()`; zero if no token is supervised.
    """
    if labels.shape != hidden_states.shape[:2]:
        raise ValueError(
            "`labels` must have one entry per token: expected shape "
            f"{tuple(hidden_states.shape[:2])}, got {tuple(labels.shape)}."
        )
    if not shifted:
        hidden_states, labels = hidden_states[:, :-1], labels[:, 1:]
    states = hidden_states.flatten(0, 1)  # (tokens, hidden_size)
    targets = labels.flatten().to(states.device)
    if not torch.compiler.is_compiling():  # padding and questions cost no logits; their number would break a graph
        supervised = targets != -100
        states, targets = states[supervised], targets[supervised]

    def cross_entropy(rows: slice, logits: torch.Tensor, is_needed: list[bool]) -> tuple[torch.Tensor, list]:
        logits[:, reserved] = torch.finfo(logits.dtype).min
        log_probabilities, ids = _log_probabilities(logits), targets[rows, None]
        is_target = ids != -100
        ids = ids.clamp(min=0)
        value = -(log_probabilities.gather(1, ids) * is_target).sum()
        if not is_needed[0]:
            return value, [None]
        gradient = log_probabilities.exp_().mul_(is_target)
        return value, [gradient.scatter_add_(1, ids, -is_target.to(gradient.dtype))]

    total = _sum_over_rows(cross_entropy, chunk_size, *_as_product(lm_head, states))
    if num_tokens is None:
        num_tokens = (targets != -100).sum().float()
        if gather and is_distributed():
            dist.all_reduce(num_tokens)
            num_tokens = num_tokens / dist.get_world_size()
    return total / num_tokens.clamp(min=1e-6)


def visual_modeling_loss(
    hidden_states: torch.Tensor,
    image_features: torch.Tensor,
    lm_head: nn.Module,
    vm_head: nn.Module,
    kind: str = "visual_words",
    detach_target: bool = False,
    temperature: float = 1.0,
    reserved: slice = slice(0),
    gather: bool = False,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """KL divergence between visual words and the language model's predictions of them, mean over image patches (VW-LMM).

    With the visual word w_j = softmax(vm_head(feature of patch j)) and the language model's distribution q_j-1 =
    softmax(lm_head(state before patch j)), the released code minimises KL(w_j || q_j-1), `"visual_words"`, after a stage with
    KL(q_j-1 || w_j), `"fit_vm_head"`. The shift is the caller's: row j of both arguments belongs to patch j.

    Distributions over the vocabulary exist for `chunk_size` rows at a time, in fp32.

    Args:
        hidden_states (`torch.Tensor` of shape `(num_patches, hidden_size)`): Decoder outputs at the position before each patch.
        image_features (`torch.Tensor` of shape `(num_patches, hidden_size)`): Outputs of the adapter.
        lm_head, vm_head (`nn.Module`): Map them to vocabulary logits; linear, with or without a bias.
        kind (`"visual_words"` or `"fit_vm_head"`): Which distribution is the target: the visual word or the prediction.
        detach_target (`bool`): Let no gradient reach the target.
        temperature (`float`): Divides the logits of both.
        reserved (`slice`): Ids that are no words, of which both distributions know nothing.
        gather (`bool`): Divide by the mean patch count of all processes, as in [`captioning_loss`].
        chunk_size (`int`, *optional*): Rows per chunk. Default: a sixteenth of them, which is a small share of what all of them
            would take, and as many as a GPU likes where there are many.

    Returns:
        `torch.Tensor` of shape `()`; zero if there is no patch.

    Raises:
        ValueError: If `kind` is unknown or the numbers of rows differ.
    """
    if kind not in ("visual_words", "fit_vm_head"):
        raise ValueError(f'`kind` must be "visual_words" or "fit_vm_head", got {kind!r}.')
    if len(hidden_states) != len(image_features):
        raise ValueError(
            f"Every patch needs the state before it: got {len(hidden_states)} `hidden_states` and {len(image_features)} "
            "`image_features`."
        )
    student, target = _as_product(lm_head, hidden_states), _as_product(vm_head, image_features)
    if kind == "fit_vm_head":
        student, target = target, student
    if detach_target:
        target = (target[0].detach(), target[1].detach())

    def divergence(
        rows: slice, student: torch.Tensor, target: torch.Tensor, is_needed: list[bool]
    ) -> tuple[torch.Tensor, list]:
        for logits in (student, target):
            logits.div_(temperature)[:, reserved] = torch.finfo(logits.dtype).min
        log_student, log_target = _log_probabilities(student), _log_probabilities(target)
        probabilities = log_target.exp()
        divergences = log_target.sub_(log_student).mul_(probabilities)  # of every token of the vocabulary
        by_row = divergences.sum(-1, keepdim=True)
        gradients: list[torch.Tensor | None] = [None, None]
        if is_needed[0]:
            gradients[0] = log_student.exp_().sub_(probabilities).div_(temperature)
        if is_needed[1]:
            gradients[1] = divergences.addcmul_(probabilities, by_row, value=-1).div_(temperature)
        return by_row.sum(), gradients

    chunk_size = chunk_size or max(48, len(hidden_states) // 16)
    total = _sum_over_rows(divergence, chunk_size, *student, *target)
    num_patches = total.new_tensor(float(len(hidden_states)))
    if gather and is_distributed():
        dist.all_reduce(num_patches)
        num_patches = num_patches / dist.get_world_size()
    return total / num_patches.clamp(min=1e-6)


__all__ = ["captioning_loss", "is_distributed", "visual_modeling_loss"]
