"""Batches that pass through the model in parts: gradients are those of the whole batch at once."""

import os
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tests.conftest import random_batch, tiny_mammut, tiny_model
from tests.processes import run_in_processes
from tests.test_engine import arguments, rows_of, task_of
from triptych.training.engine import Engine
from triptych.training.gradient_cache import backward_in_parts
from triptych.training.sharding import reach_through_sharding


LENGTHS = (5, 12, 8, 3, 7, 9, 4, 11)
BUILDS = {
    "grr-coca": tiny_model,
    "open_clip": partial(tiny_model, "open_clip"),
    "mammut, softmax": partial(tiny_mammut, contrastive_loss_type="softmax"),
    "mammut, focal": partial(tiny_mammut, contrastive_loss_type="focal"),
}


def rows(batch: dict, first: int, count: int) -> dict:
    return {name: tensor[first : first + count] for name, tensor in batch.items()}


def in_parts(model, batch: dict, accelerator: Accelerator, size: int) -> dict:
    parts = [rows(batch, first, size) for first in range(0, len(batch["input_ids"]), size)]
    return backward_in_parts(model, parts, accelerator, {}, lambda part: part)


def gradients_of(model) -> dict:
    whole = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {name: (each.full_tensor() if isinstance(each, DTensor) else each).numpy() for name, each in whole.items()}


@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.parametrize("kind", BUILDS)
def test_parts_have_the_gradients_of_the_whole(kind, size):
    model = BUILDS[kind]().train()
    batch = random_batch(model.config, LENGTHS)
    expected = model(**batch)
    expected.loss.backward()
    wanted = gradients_of(model)
    model.zero_grad()
    found = in_parts(model, batch, Accelerator(cpu=True), size)
    for name in ("loss", "contrastive_loss", "caption_loss"):
        torch.testing.assert_close(found[name], expected[name].detach(), atol=1e-5, rtol=1e-5)
    assert gradients_of(model).keys() == wanted.keys()
    for name, gradient in gradients_of(model).items():
        torch.testing.assert_close(torch.from_numpy(gradient), torch.from_numpy(wanted[name]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("build", [tiny_model, tiny_mammut])
def test_dropout_is_the_same_both_times(build, monkeypatch):
    dropout = {"hidden_dropout": 0.3}
    model = build(text_config=dropout, vision_config=dropout).train()
    embedded, scored = [], []
    embed_pairs, forward = model.embed_pairs, model.forward
    monkeypatch.setattr(model, "embed_pairs", lambda **part: embedded.append(embed_pairs(**part)) or embedded[-1])
    monkeypatch.setattr(model, "forward", lambda **part: scored.append(forward(**part)) or scored[-1])
    in_parts(model, random_batch(model.config, LENGTHS), Accelerator(cpu=True), 4)
    assert not torch.equal(embedded[0][0], embedded[1][0])
    for (image_embeds, text_embeds), outputs in zip(embedded, scored, strict=True):
        assert torch.equal(outputs.image_embeds, image_embeds)
        assert torch.equal(outputs.text_embeds, text_embeds)


KINDS = ("grr-coca", "mammut, focal")


def _steps(rank: int, world_size: int, is_sharded: bool) -> list[tuple]:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }  # asked for, not used: the processes know one another
    accelerator, found = Accelerator(cpu=True), []
    share = len(LENGTHS) // world_size
    for kind in KINDS:
        model = BUILDS[kind]().train()
        batch = rows(random_batch(model.config, LENGTHS), share * rank, share)
        if is_sharded:  # by hand: Accelerate does not shard on a CPU
            mesh = init_device_mesh("cpu", (world_size,))
            for layer in [each for each in model.modules() if type(each).__name__ in model._no_split_modules]:
                fully_shard(layer, mesh=mesh)
            model = fully_shard(model, mesh=mesh)
            reach_through_sharding(model)
        else:
            model = accelerator.prepare(model)
        assert isinstance(next(model.parameters()), DTensor) == is_sharded
        loss = accelerator.reduce(in_parts(model, batch, accelerator, 2)["loss"], "mean")
        found.append((loss.item(), gradients_of(accelerator.unwrap_model(model))))
    return found


@pytest.mark.parametrize("is_sharded", [False, True], ids=["ddp", "fsdp2"])
def test_two_processes_in_parts_have_the_gradients_of_one_with_all(is_sharded):
    for kind, (loss, found) in zip(KINDS, run_in_processes(_steps, 2, is_sharded), strict=True):
        model = BUILDS[kind]().train()
        expected = model(**random_batch(model.config, LENGTHS)).loss
        expected.backward()
        assert loss == pytest.approx(expected.item(), abs=1e-5)
        wanted = gradients_of(model)
        assert found.keys() == wanted.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(
                torch.from_numpy(gradient), torch.from_numpy(wanted[name]), atol=1e-5, rtol=1e-4
            )


def test_the_engine_trains_in_parts_as_on_the_whole(tmp_path):
    options = {"num_epochs": 2, "batch_size": 6, "learning_rate": 1e-3}
    logs = {}
    for size in (None, 2):
        engine = Engine(arguments(tmp_path / str(size), micro_batch_size=size, **options))
        engine.train(task_of())
        logs[size] = rows_of(tmp_path / str(size))
    assert len(logs[2]) == len(logs[None]) == 2  # the seventh row fills no batch
    for found, wanted in zip(logs[2], logs[None], strict=True):
        for name in ("loss", "contrastive_loss", "caption_loss", "grad_norm", "logit_scale"):
            assert found[name] == pytest.approx(wanted[name], rel=1e-4), name
    assert engine.state.num_skipped > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"micro_batch_size": 4}, "`batch_size` 6 must be a multiple of `micro_batch_size` 4"),
        ({"micro_batch_size": 0}, "`micro_batch_size` must be"),
        ({"micro_batch_size": 2, "gradient_accumulation_steps": 3}, "both divide a step"),
    ],
)
def test_parts_that_make_no_batch_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, batch_size=6, **options)


def test_a_model_that_compares_nothing_is_refused(tmp_path):
    task = task_of()
    task.model.config.contrastive_loss_weight = 0.0
    with pytest.raises(ValueError, match="`gradient_accumulation_steps` for all"):
        Engine(arguments(tmp_path, batch_size=6, micro_batch_size=2)).train(task)


def test_gradients_that_nothing_would_use_are_refused():
    model = tiny_model()
    batch = random_batch(model.config)
    given = {"contrastive_gradients": {"image_embeds": torch.zeros(3, 1)}}
    without = {name: value for name, value in batch.items() if name != "labels"}
    with pytest.raises(ValueError, match="`contrastive_gradients` need `labels`"):
        model(**without, **given)
    with pytest.raises(ValueError, match="`num_caption_tokens` needs `labels`"):
        model(**without, num_caption_tokens=torch.tensor(3.0))
    model.config.contrastive_loss_weight = 0.0
    with pytest.raises(ValueError, match="`contrastive_loss_weight` that is not 0"):
        model(**batch, **given)
