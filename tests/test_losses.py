"""Losses against their definitions, in memory, and across processes."""

import pytest
import torch
from torch import nn

from tests.conftest import random_batch, tiny_mammut, tiny_model
from tests.processes import run_in_processes
from triptych.modeling.contrastive_losses import contrastive_losses, focal_contrastive_losses
from triptych.modeling.losses import captioning_loss


def test_contrastive_loss_is_the_definition_and_sum_is_twice_the_mean():
    torch.manual_seed(0)
    images, texts = (nn.functional.normalize(torch.randn(6, 8), dim=-1) for _ in range(2))
    scale = torch.tensor(9.0)
    logits = scale * images @ texts.T
    image_to_text = -(logits.diagonal() - logits.logsumexp(dim=1)).mean()
    text_to_image = -(logits.diagonal() - logits.logsumexp(dim=0)).mean()
    torch.testing.assert_close(contrastive_losses(images, texts, scale).mean(), (image_to_text + text_to_image) / 2)
    torch.testing.assert_close(contrastive_losses(images, texts, scale, "sum").mean(), image_to_text + text_to_image)


def normalised(count: int, width: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    images, texts = (nn.functional.normalize(torch.randn(count, width), dim=-1) for _ in range(2))
    return images, texts


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("bias", [None, -3.0])
def test_focal_loss_is_its_definition_both_ways(gamma, bias):
    images, texts = normalised(6)
    scale, bias = torch.tensor(9.0), None if bias is None else torch.tensor(bias)
    logits = (scale * images @ texts.T + (0 if bias is None else bias)).double()
    matches = torch.eye(6, dtype=torch.bool)
    p = torch.where(matches, logits.sigmoid(), 1 - logits.sigmoid())
    elements = -((1 - p) ** gamma) * p.log()
    image_to_text, text_to_image = elements.sum(1).mean(), elements.T.sum(1).mean()
    found = focal_contrastive_losses(images, texts, scale, bias, gamma).mean()
    torch.testing.assert_close(found.double(), image_to_text + text_to_image, atol=1e-4, rtol=1e-5)


def test_focal_loss_without_focus_is_binary_cross_entropy():
    images, texts = normalised(6)
    logits = 9 * images @ texts.T
    expected = 2 * nn.functional.binary_cross_entropy_with_logits(logits, torch.eye(6), reduction="sum") / 6
    torch.testing.assert_close(focal_contrastive_losses(images, texts, torch.tensor(9.0), gamma=0.0).mean(), expected)


@pytest.mark.parametrize("chunk", [1, 15, 36])
@pytest.mark.parametrize("kind", ["softmax", "sum", "focal", "sigmoid with bias"])
def test_the_mean_in_chunks_has_the_value_and_the_gradients_of_all_pairs(kind, chunk, monkeypatch):
    images, texts = normalised(7)
    scale, bias = torch.tensor([9.0]), torch.tensor([-2.0])
    loss = {
        "softmax": lambda images, texts, scale, bias, **how: contrastive_losses(images, texts, scale, **how),
        "sum": lambda images, texts, scale, bias, **how: contrastive_losses(images, texts, scale, "sum", **how),
        "focal": lambda images, texts, scale, bias, **how: focal_contrastive_losses(images, texts, scale, **how),
        "sigmoid with bias": lambda *inputs, **how: focal_contrastive_losses(*inputs, gamma=0.0, **how),
    }[kind]
    inputs = [each.requires_grad_() for each in (images, texts, scale, bias)]
    used = inputs if kind == "sigmoid with bias" else inputs[:3]
    expected = loss(*inputs)
    gradients = torch.autograd.grad(3 * expected.mean(), used)
    monkeypatch.setattr("triptych.modeling.contrastive_losses._CHUNK", chunk)
    torch.testing.assert_close(loss(*inputs), expected)
    found = loss(*inputs, per_pair=False)
    torch.testing.assert_close(found, expected.mean())
    torch.testing.assert_close(torch.autograd.grad(3 * found, used), gradients)
    with torch.no_grad():
        torch.testing.assert_close(loss(*inputs, per_pair=False), expected.mean())
    scale.requires_grad_(False)  # as a locked temperature
    (gradient,) = torch.autograd.grad(3 * loss(*inputs, per_pair=False), [images])
    torch.testing.assert_close(gradient, gradients[0])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_loss_stays_finite_where_the_definition_does_not(gamma):
    embeds = torch.eye(4)[:, :4].repeat(1, 2) / 2**0.5
    scale = torch.tensor(2000.0, requires_grad=True)  # sigmoid is 0 or 1 to the last digit
    for texts in (embeds, embeds.roll(1, 0)):
        images = embeds.clone().requires_grad_()
        loss = focal_contrastive_losses(images, texts, scale, gamma=gamma).mean()
        grads = torch.autograd.grad(loss, [images, scale])
        assert loss.isfinite()
        assert all(gradient.isfinite().all() for gradient in grads)


def test_chunked_captioning_loss_equals_the_plain_one_in_value_and_gradient():
    torch.manual_seed(0)
    head = nn.Linear(16, 50)
    states = torch.randn(3, 9, 16, requires_grad=True)
    labels = torch.randint(0, 50, (3, 9))
    labels[1, 4:] = -100
    logits = head(states)[:, :-1].flatten(0, 1)
    expected = nn.functional.cross_entropy(logits, labels[:, 1:].flatten())
    expected_grads = torch.autograd.grad(expected, [states, *head.parameters()])
    for chunk_size in (1, 7, 1000):
        loss = captioning_loss(states, labels, head, chunk_size=chunk_size)
        torch.testing.assert_close(loss, expected)
        for found, wanted in zip(torch.autograd.grad(loss, [states, *head.parameters()]), expected_grads, strict=True):
            torch.testing.assert_close(found, wanted)


def test_a_large_bias_does_not_cost_precision_in_bf16():
    """A weight of 0.05 vanishes in bf16 once a bias of 40 is added to it."""
    torch.manual_seed(0)
    head, states = nn.Linear(16, 50), torch.randn(2, 9, 16, requires_grad=True)
    nn.init.normal_(head.weight, std=0.05)
    nn.init.constant_(head.bias, 40.0)
    labels = torch.randint(0, 50, (2, 9))
    expected = torch.autograd.grad(captioning_loss(states, labels, head), states)[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(captioning_loss(states, labels, head), states)[0]
    assert (found - expected).norm() < 0.03 * expected.norm()


def test_captioning_loss_without_a_supervised_token_is_zero_and_touches_the_head():
    head, states = nn.Linear(4, 5), torch.randn(1, 3, 4, requires_grad=True)
    loss = captioning_loss(states, torch.full((1, 3), -100), head)
    loss.backward()
    assert loss.item() == 0
    assert head.weight.grad is not None


class _LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Remembers how many elements the largest tensor had that any operation returned, forward or backward."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, (tuple, list)) else [output]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return output


def test_no_tensor_grows_with_batch_times_length_times_vocabulary():
    vocabulary, chunk_size = 4096, 64
    head = nn.Linear(8, vocabulary)
    sizes = []
    for batch_size in (8, 64):
        states = torch.randn(batch_size, 33, 8, requires_grad=True)
        with _LargestTensor() as mode:
            captioning_loss(
                states, torch.ones(batch_size, 33, dtype=torch.long), head, chunk_size=chunk_size
            ).backward()
        sizes.append(mode.largest)
    assert sizes[0] == sizes[1] == chunk_size * vocabulary


def _joint_step(rank: int, world_size: int, build) -> tuple:
    model = build().train()
    wrapped = nn.parallel.DistributedDataParallel(model) if world_size > 1 else model
    batch = random_batch(model.config, lengths=(5, 12, 8, 3))
    share = 4 // world_size
    outputs = wrapped(**{key: value[rank * share : (rank + 1) * share] for key, value in batch.items()})
    outputs.loss.backward()
    losses = torch.stack([outputs.contrastive_loss, outputs.caption_loss]).detach()
    torch.distributed.all_reduce(losses)
    return (losses / world_size).numpy(), {name: p.grad.numpy() for name, p in model.named_parameters()}


@pytest.mark.parametrize("build", [tiny_model, tiny_mammut])
def test_two_processes_equal_one_with_the_same_global_batch(build):
    # Captions differ in length between the processes, so a mean of per-process means would be wrong.
    (one_losses, one), (two_losses, two) = (run_in_processes(_joint_step, size, build) for size in (1, 2))
    torch.testing.assert_close(torch.from_numpy(two_losses), torch.from_numpy(one_losses), atol=1e-5, rtol=0)
    for name, gradient in one.items():
        torch.testing.assert_close(torch.from_numpy(two[name]), torch.from_numpy(gradient), atol=1e-5, rtol=1e-4)
