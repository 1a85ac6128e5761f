"""Tensor parallelism: what two processes that share a model compute is what one computes alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.distributed import DistributedConfig

from tests.conftest import random_batch, tiny_mammut, tiny_model, tiny_vw_lmm, vw_lmm_batch
from tests.processes import run_in_processes
from triptych.modeling.contrastive_losses import contrastive_losses, processes_with_other_rows


MODELS = {
    "grr_coca": tiny_model,
    "coca": lambda: tiny_model("open_clip"),
    "mammut": tiny_mammut,
    "mammut, tied": lambda: tiny_mammut(tie_word_embeddings=True),
    "vw_lmm": tiny_vw_lmm,
    "vw_lmm, pseudo image features": lambda: tiny_vw_lmm(pseudo_image_features=True),
}


def batch_of(model) -> dict[str, torch.Tensor]:
    return vw_lmm_batch() if model.config.model_type == "vw_lmm" else random_batch(model.config)


def share_all(rank: int, world_size: int, folder: Path) -> dict[str, dict]:
    """What [`share`] says of every model."""
    return {name: share(world_size, name, str(folder / name)) for name in MODELS}


def share(world_size: int, name: str, folder: str) -> dict:
    """Logits, a caption, gradients and the losses of 20 steps of a model that all processes share."""
    kind = type(MODELS[name]())
    options = {"distributed_config": DistributedConfig(tp_size=world_size)} if world_size > 1 else {}
    model = kind.from_pretrained(folder, **options)
    batch = batch_of(model)
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    prompt = {} if model.config.model_type != "vw_lmm" else {"input_ids": inputs["input_ids"][:1]}
    with torch.no_grad():
        logits = model(**inputs).logits
        ids = model.generate(pixel_values=inputs["pixel_values"][:1], **prompt, max_new_tokens=5, eos_token_id=None)
    model.save_pretrained(f"{folder}/again{world_size}")
    loss = model.train()(**batch).loss
    loss.backward()
    gradients = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-3), [loss.item()]
    for _ in range(20):
        optimizer.step()
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        losses.append(loss.item())
    return {
        "logits": logits.numpy(),
        "ids": ids.numpy(),
        "losses": losses,
        "shards": sorted(key for key, p in model.named_parameters() if hasattr(p, "full_tensor")),
        "gradients": {
            key: (g.full_tensor() if hasattr(g, "full_tensor") else g).numpy() for key, g in gradients.items()
        },
    }


def test_two_processes_with_half_a_model_each_equal_one_with_all_of_it(tmp_path):
    for name, build in MODELS.items():
        build().save_pretrained(tmp_path / name)
    alone, shared = share_all(0, 1, tmp_path), run_in_processes(share_all, 2, tmp_path)
    for name, build in MODELS.items():
        model, one, two = build(), alone[name], shared[name]
        assert not one["shards"]
        np.testing.assert_allclose(two["logits"], one["logits"], atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(two["ids"], one["ids"], err_msg=name)
        again = type(model).from_pretrained(tmp_path / name / "again2").state_dict()
        assert all(torch.equal(again[key], value) for key, value in model.state_dict().items()), name
        assert any("k_proj" in key for key in two["shards"]), name
        # One tensor where they are tied
        assert any("lm_head" in key or "embed_tokens" in key for key in two["shards"]), name
        assert one["losses"][-1] < 0.9 * one["losses"][0], name
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-4), name
        assert two["gradients"].keys() == one["gradients"].keys(), name
        for key, gradient in one["gradients"].items():
            np.testing.assert_allclose(two["gradients"][key], gradient, atol=1e-5, rtol=1e-4, err_msg=f"{name}, {key}")


def one_head(rank: int, world_size: int, folder: str) -> str:
    model = type(tiny_model()).from_pretrained(folder, distributed_config=DistributedConfig(tp_size=world_size))
    try:
        model.get_image_features(random_batch(model.config)["pixel_values"])
    except ValueError as error:
        return str(error)
    return "no error"


def test_heads_that_cannot_be_shared_are_an_error(tmp_path):
    tiny_model(vision_config={"num_attention_heads": 1}).save_pretrained(tmp_path)
    message = run_in_processes(one_head, 2, str(tmp_path))
    assert "the number of heads must be a multiple of `tp_size`, got 1" in message


def negatives(rank: int, world_size: int, tp_size: int) -> tuple[float, np.ndarray]:
    """Mean loss over processes, and its gradient for the embeddings of the first one; three pairs for every `tp_size`."""
    torch.manual_seed(0)
    embeds = torch.nn.functional.normalize(torch.randn(2, 6, 8), dim=-1).requires_grad_()
    rows = slice(0, 6) if world_size == 1 else slice(3 * (rank // tp_size), 3 * (rank // tp_size) + 3)
    group = processes_with_other_rows(tp_size)
    loss = contrastive_losses(*embeds[:, rows], torch.tensor([5.0]), group=group).mean()
    loss.backward()
    total = loss.detach().clone()
    if world_size > 1:
        torch.distributed.all_reduce(total)
    return total.item() / world_size, embeds.grad[:, :3].numpy() / max(1, world_size // tp_size)


def test_neighbours_that_share_a_model_are_no_negatives():
    (expected, gradient), (found, shared) = negatives(0, 1, 1), run_in_processes(negatives, 4, 2)
    assert found == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(shared, gradient, atol=1e-6)
