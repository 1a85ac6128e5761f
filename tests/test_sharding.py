"""Weights that processes share out on gloo, with the files that people launch with: the same losses, checkpoints and repositories."""

import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.distributed.tensor import DTensor
from transformers import AutoModelForImageTextToText

from tests.conftest import tiny_mammut, tiny_mammut_processor, tiny_vw_lmm, vw_lmm_batch
from tests.processes import run_in_processes
from tests.test_engine import Squares, arguments, rows_of, task_of
from triptych.data.pairs import PairCollator
from triptych.evaluation.captioner import generate_captions, score_pairs, summarize_pairs
from triptych.training.engine import Engine, Task


ROOT = Path(__file__).parents[1]
NUM_STEPS, PAIRS = 20, 4  # of all processes


class ManySquares(Squares):
    def __len__(self) -> int:
        return 44

    def __getitem__(self, index: int) -> dict:
        return super().__getitem__(index % 7)


class ChatRows(torch.utils.data.Dataset):
    """The three texts of a batch, of which one has no image, over and over."""

    def __len__(self) -> int:
        return 44

    def __getitem__(self, index: int) -> dict:
        batch, row = vw_lmm_batch(), index % 3
        images = (slice(0, 1), slice(0, 0), slice(1, 3))[row]
        texts = {name: batch[name][row] for name in ("input_ids", "attention_mask", "labels")}
        return {**texts, "pixel_values": batch["pixel_values"][images]}


def collate_chats(rows: list[dict]) -> dict:
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0] if name != "pixel_values"}
    pixel_values = torch.cat([row["pixel_values"] for row in rows])
    return batch | ({"pixel_values": pixel_values} if len(pixel_values) else {})


def captioner_task(family: str) -> Task:
    task = task_of(train_set=ManySquares(), card={"arguments": {}, "license": "mit"})
    if family == "mammut":
        task.processor = tiny_mammut_processor()
        task.model = tiny_mammut(text_config={"vocab_size": len(task.processor.tokenizer)})
        task.collator = PairCollator(task.processor)
    task.model.generation_config.max_new_tokens = 6
    return task


def chat_task() -> Task:
    # The processor only goes into checkpoints here.
    return Task(
        "visual_words_joint", tiny_vw_lmm(visual_loss_weight=1.0), task_of().processor, ChatRows(), collate_chats,
        loss_parts=("language_loss",), find_unused_parameters=True,
    )  # fmt: skip


TASKS = {
    "grr-coca": partial(captioner_task, "grr-coca"),
    "mammut": partial(captioner_task, "mammut"),
    "vw-lmm": chat_task,
}


def environment_of(config: str, **changes: str) -> dict[str, str]:
    """What `accelerate launch` tells the processes, in fp32."""
    file = str(ROOT / "examples" / "accelerate" / config)
    arguments, _, _ = _validate_launch_command(
        launch_command_parser().parse_args(["--config_file", file, "script.py"])
    )
    told = prepare_multi_gpu_env(arguments)
    return {
        **{name: value for name, value in told.items() if os.environ.get(name) != value},
        **changes,
        "ACCELERATE_MIXED_PRECISION": "no",
    }


def start_process(rank: int, world_size: int, environment: dict[str, str]) -> None:
    numbers = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world_size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": 29500,
    }
    os.environ |= {**environment, **{name: str(value) for name, value in numbers.items()}}
    PartialState(cpu=True)


def share_weights_on_cpus() -> None:
    """Accelerate does it on accelerators alone, though everything that it then does runs on CPUs, too."""
    AcceleratorState._reset_state()  # it keeps the layers of the model before
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_XPU


def _train(rank: int, world_size: int, environment: dict, folder: Path, kinds: list[str], **options) -> dict:
    """Losses of the steps of every kind of model; of captioners what an evaluation found, too. The model is in `model`."""
    torch.manual_seed(0)
    if world_size > 1:
        start_process(rank, world_size, environment)
    found: dict = {}
    for kind in kinds:
        args = arguments(
            folder / kind, max_steps=NUM_STEPS, batch_size=PAIRS // world_size, learning_rate=1e-3, **options
        )
        if world_size > 1:
            share_weights_on_cpus()
        engine, task = Engine(args), TASKS[kind]()
        engine.train(task)
        assert isinstance(next(engine.trained.parameters()), DTensor) == (world_size > 1)
        if kind != "vw-lmm":
            # One row at a time: one process has more of them than another.
            scores = score_pairs(engine.model, Squares(), task.collator, engine.accelerator, 1)
            found[kind, "captions"] = generate_captions(engine.model, Squares(), task.processor, engine.accelerator, 1)
            found[kind, "scores"] = summarize_pairs(scores, task.model.config, 2)
        model = engine.whole_model()
        if rank == 0:
            model.save_pretrained(folder / kind / "model")
        found[kind] = [row["loss"] for row in rows_of(folder / kind) if "loss" in row]
        engine.accelerator.wait_for_everyone()
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[dict, Path]:
    folder = tmp_path_factory.mktemp("alone")
    return _train(0, 1, {}, folder, list(TASKS)), folder


def assert_equal_runs(found: dict, wanted: dict, kinds: list[str]) -> None:
    for kind in kinds:
        assert len(found[kind]) == NUM_STEPS
        assert found[kind] == pytest.approx(wanted[kind], rel=1e-4), kind
        if (kind, "captions") in wanted:
            assert found[kind, "captions"] == wanted[kind, "captions"]
            assert found[kind, "scores"] == pytest.approx(wanted[kind, "scores"], rel=1e-3)


@pytest.mark.skipif(
    torch.__version__.startswith("2.8."),
    reason="torch 2.8 adds up FSDP2's gradients on gloo instead of averaging them",
)
def test_weights_shared_out_train_as_one_process_does(alone, tmp_path):
    wanted, folder = alone
    options = {"checkpoint_steps": 10, "num_checkpoints": 2}
    function = partial(_train, **options)
    found = run_in_processes(function, 2, environment_of("fsdp2.yaml"), tmp_path, list(TASKS))
    assert_equal_runs(found, wanted, list(TASKS))
    for kind in TASKS:
        ours, theirs = (
            (path / kind / "model" / name).read_bytes()
            for path, name in ((tmp_path, "config.json"), (folder, "config.json"))
        )
        assert ours == theirs  # and not that of a class of FSDP2
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "grr-coca" / "model")
    for name, weight in AutoModelForImageTextToText.from_pretrained(folder / "grr-coca" / "model").named_parameters():
        torch.testing.assert_close(model.get_parameter(name), weight, atol=1e-3, rtol=1e-3)

    # The checkpoint of two processes, of which each wrote its part, by four in two groups of copies.
    shutil.rmtree(tmp_path / "grr-coca" / "checkpoints" / f"step-{NUM_STEPS:08}")
    function = partial(_train, resume=True, gradient_checkpointing=True)
    environment = environment_of("fsdp2_hybrid.yaml", PARALLELISM_CONFIG_DP_SHARD_SIZE="2")
    found = run_in_processes(function, 4, environment, tmp_path, ["grr-coca"])
    assert_equal_runs(found, wanted, ["grr-coca"])
