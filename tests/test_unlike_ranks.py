"""Two processes whose micro-batches have little in common: losses and gradients are those of one with all of it, or an error."""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from tests.conftest import (
    CAPTIONS,
    mammut_pair,
    random_batch,
    tiny_mammut,
    tiny_model,
    tiny_vw_lmm,
    vw_lmm_batch,
)
from tests.processes import run_in_processes
from triptych.evaluation.captioner import evaluate_pairs


def captioner_batch(model, case: str) -> dict[str, torch.Tensor]:
    """Four pairs, of which each process takes two; what the case says holds for the second two."""
    batch = random_batch(model.config, lengths=(12, 10, 5, 3) if case == "lengths" else (7, 7, 7, 7))
    if case == "no answers":
        batch["labels"][2:] = -100
    return batch


def vw_lmm_case(case: str) -> list[dict[str, torch.Tensor]]:
    """The inputs of two processes. Texts of the batch: one image, none, two images."""
    batch = vw_lmm_batch()
    rows = {"text only": ([0], [1]), "lengths": ([0], [2]), "no answers": ([0, 1], [2])}[case]
    images = {0: [0], 1: [], 2: [1, 2]}
    parts = []
    for part in rows:
        inputs = {name: batch[name][part] for name in ("input_ids", "attention_mask", "labels")}
        longest = int(inputs["attention_mask"].sum(-1).max())
        inputs = {name: value[:, :longest] for name, value in inputs.items()}
        pixels = [index for row in part for index in images[row]]
        parts.append({**inputs, **({"pixel_values": batch["pixel_values"][pixels]} if pixels else {})})
    if case == "no answers":
        parts[1]["labels"] = torch.full_like(parts[1]["labels"], -100)
    return parts


def whole(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The inputs of all processes in one batch."""
    longest = max(part["input_ids"].shape[1] for part in parts)
    padding = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    batch = {
        name: torch.cat(
            [nn.functional.pad(part[name], (0, longest - part[name].shape[1]), value=value) for part in parts]
        )
        for name, value in padding.items()
    }
    return {**batch, "pixel_values": torch.cat([part["pixel_values"] for part in parts if "pixel_values" in part])}


def step(rank: int, world_size: int, kind: str, case: str) -> tuple[float, dict[str, np.ndarray]]:
    """One training step; the mean loss over processes and the gradients of all parameters."""
    if kind == "vw_lmm":
        model = tiny_vw_lmm().train()
        parts = vw_lmm_case(case)
        inputs = parts[rank] if world_size > 1 else whole(parts)
    else:
        model = {"grr_coca": tiny_model, "mammut": tiny_mammut}[kind]().train()
        batch = captioner_batch(model, case)
        share = len(batch["input_ids"]) // world_size
        inputs = {name: value[rank * share : (rank + 1) * share] for name, value in batch.items()}
    # CLIP's last layer is read by nobody
    options = {"find_unused_parameters": kind == "vw_lmm"}
    wrapped = nn.parallel.DistributedDataParallel(model, **options) if world_size > 1 else model
    loss = wrapped(**inputs).loss
    loss.backward()
    total = loss.detach().clone()
    torch.distributed.all_reduce(total)
    return total.item() / world_size, {
        name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        ("grr_coca", "lengths"),
        ("grr_coca", "no answers"),
        ("mammut", "lengths"),
        ("mammut", "no answers"),
        ("vw_lmm", "text only"),
        ("vw_lmm", "lengths"),
        ("vw_lmm", "no answers"),
    ],
)
def test_unlike_micro_batches_train_as_one_batch(kind, case):
    (one_loss, one), (two_loss, two) = (run_in_processes(step, size, kind, case) for size in (1, 2))
    assert two_loss == pytest.approx(one_loss, abs=1e-5)
    assert one.keys() <= two.keys()
    for name, gradient in two.items():  # zero for what the whole batch does not use either
        np.testing.assert_allclose(gradient, one.get(name, 0.0), atol=1e-5, rtol=1e-4, err_msg=name)


def unequal_pairs(rank: int, world_size: int, kind: str) -> list[str]:
    model = {"grr_coca": tiny_model, "mammut": tiny_mammut}[kind]().train()
    batch = random_batch(model.config, lengths=(5, 6, 7))
    share = slice(0, 2) if rank == 0 else slice(2, 3)
    try:
        model(**{name: value[share] for name, value in batch.items()})
        message = "no error"
    except ValueError as error:
        message = str(error)
    messages = [None] * world_size
    torch.distributed.all_gather_object(messages, message)
    return messages


@pytest.mark.parametrize("kind", ["grr_coca", "mammut"])
def test_unequal_numbers_of_pairs_are_an_error_on_every_process(kind):
    for message in run_in_processes(unequal_pairs, 2, kind):
        assert "equally many images and texts on each: got (images, texts) [(2, 2), (1, 1)] by process" in message


class Pairs(torch.utils.data.Dataset):
    """Two pairs, of which the second cannot be read."""

    def __init__(self, pictures):
        self.pictures = pictures

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict:
        return {"image": self.pictures, "caption": CAPTIONS[0], "num_skipped": index}


def evaluate_share(rank: int, world_size: int) -> dict[str, float]:
    from PIL import Image

    from triptych.data.pairs import PairCollator

    model, processor = mammut_pair()
    pairs = Pairs(Image.new("RGB", (20, 20), "red"))
    return evaluate_pairs(model, pairs, PairCollator(processor), Accelerator(cpu=True), batch_size=2)


def test_a_process_without_a_pair_of_its_own_evaluates_along():
    results = run_in_processes(evaluate_share, 2)
    assert results["num_eval_images"] == 1
    assert np.isfinite(results["caption_loss"])


def choose_weights(rank: int, world_size: int, folder: str) -> tuple[int, list[float]]:
    """Three steps, whose evaluations find other values on every process; the step that was chosen, and a weight of every process."""
    from tests.test_engine import arguments, task_of
    from triptych.training.engine import Engine

    values = iter([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0]][rank])
    options = {"max_steps": 3, "eval_epochs": 0.01, "learning_rate": 1e-2, "batch_size": 1}
    engine = Engine(arguments(Path(folder), metric_for_best_model="a_loss", **options))
    engine.train(task_of(evaluate=lambda model, is_last: {"a_loss": next(values)}))
    weights = [None] * world_size
    torch.distributed.all_gather_object(weights, engine.trained.model.text_projection.weight.sum().item())
    return engine.state.best_step, weights


def test_processes_that_find_other_values_keep_the_same_weights(tmp_path):
    step, weights = run_in_processes(choose_weights, 2, str(tmp_path))
    assert step == 2
    assert weights[0] == weights[1]
