"""The engine of all scripts: what it honours, for every one of them."""

import ast
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from PIL import Image
from torch._dynamo.utils import counters
from torch.utils.data import Dataset

from tests.conftest import (
    argument_classes,
    load_example,
    tiny_config,
    tiny_mammut,
    tiny_model,
    tiny_processor,
    tiny_vw_lmm,
)
from tests.processes import logged_losses
from tests.test_benchmarks import coco_objects, webdataset
from tests.test_tasks import image_folder
from triptych.data.orders import EpochSampler, GroupedSampler, LengthGroupedSampler
from triptych.data.pairs import PairCollator
from triptych.data.splits import DataArguments
from triptych.data.streams import StreamArguments
from triptych.tasks.classification import Classification
from triptych.tasks.encoders import Encoder
from triptych.training.compilation import compile_layers, without_compilation
from triptych.training.engine import Engine, Task
from triptych.training.run_arguments import RunArguments


ROOT = Path(__file__).parents[1]
CAPTIONS = ("a red heart", "an apple", "a blue one")


class Squares(Dataset):
    """Seven pictures, each of its own colour."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> dict:
        picture = Image.new("RGB", (20, 20), (30 * index, 0, 200))
        return {"image": picture, "caption": CAPTIONS[index % 3], "num_skipped": int(index == 3)}


def task_of(**fields) -> Task:
    processor = tiny_processor()
    model = tiny_model(text_config={"vocab_size": len(processor.tokenizer)})
    parts = ("contrastive_loss", "caption_loss")
    defaults = {
        "name": "pretrain", "model": model, "processor": processor, "train_set": Squares(),
        "collator": PairCollator(processor), "loss_parts": parts,
    }  # fmt: skip
    return Task(**{**defaults, **fields})


def arguments(folder: Path, **fields) -> RunArguments:
    defaults = {"batch_size": 2, "num_workers": 0, "mixed_precision": "no", "checkpoint_steps": 0, "warmup_ratio": 0.0}
    return RunArguments(output_dir=str(folder), **{**defaults, **fields})


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]


def test_data_sets_are_told_the_size_of_inputs(tmp_path):
    train_set = Squares()
    train_set.set_decode_size = lambda size: setattr(train_set, "told", size)
    Engine(arguments(tmp_path, max_steps=1)).train(task_of(train_set=train_set))
    assert train_set.told == task_of().model.config.vision_config.image_size


@pytest.mark.parametrize("options", [{"metric_for_best_model": "loss"}, {"ema_decay": 0.9}], ids=str)
def test_what_needs_whole_weights_does_not_go_with_shared_ones(tmp_path, monkeypatch, options):
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` is not for weights that processes share out"):
        Engine(arguments(tmp_path, **options))


def test_adapters_and_unused_parameters_are_refused_before_a_training_that_shares_weights(tmp_path, monkeypatch):
    engine, adapted, unused = Engine(arguments(tmp_path, max_steps=1)), task_of(), task_of(find_unused_parameters=True)
    adapted.model.peft_config = {}
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(ValueError, match="Adapters go with DDP or DeepSpeed ZeRO-2"):
        engine.train(adapted)
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.DEEPSPEED)
    with pytest.raises(ValueError, match=r"use FSDP2 \(examples/accelerate/fsdp2.yaml\)"):
        engine.train(unused)


class SlowSquares(Squares):
    def __getitem__(self, index: int) -> dict:
        time.sleep(0.05)
        return super().__getitem__(index)


def test_the_log_says_how_long_batches_were_waited_for(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("triptych.training.engine._START_UP", 0.0)
    monkeypatch.setattr("triptych.training.engine._MOST_WAITING", 0.01)
    engine = Engine(arguments(tmp_path, max_steps=3))
    engine.train(task_of(train_set=SlowSquares()))
    waited = [row["data_seconds"] for row in rows_of(tmp_path)]
    assert waited[0] >= 0.1
    assert sum(waited) >= 0.3
    assert engine.state.data_seconds == pytest.approx(sum(waited))
    assert "`num_workers` is 0" in caplog.text


def test_the_last_step_of_an_epoch_counts_the_batches_that_it_has(tmp_path):
    """Three batches, two to a step: the second step has one. By hand, with the same order."""
    task, by_hand = task_of(), task_of().model
    options = {"lr_scheduler_type": "constant_with_warmup", "max_grad_norm": 1e9, "weight_decay": 0.0}
    engine = Engine(arguments(tmp_path, gradient_accumulation_steps=2, learning_rate=1e-3, **options))
    by_hand.load_state_dict(task.model.state_dict())
    by_hand.set_attn_implementation("eager")
    engine.train(task)
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0)
    order, losses = list(EpochSampler(7, seed=0)), []
    by_hand.train()
    for step in ([order[0:2], order[2:4]], [order[4:6]]):
        for rows in step:
            batch = task.collator([task.train_set[row] for row in rows])
            batch.pop("num_skipped")
            loss = by_hand(**batch).loss / len(step)
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    trained = engine.trained.state_dict()
    for name, tensor in by_hand.state_dict().items():
        torch.testing.assert_close(trained[name], tensor, atol=1e-6, rtol=1e-5)
    logged = [row["loss"] for row in rows_of(tmp_path)]
    assert logged == pytest.approx([losses[0] + losses[1], losses[2]], rel=1e-5)
    assert engine.state.num_skipped == int(3 in order[:6])


def test_only_matrices_decay_and_modules_may_have_rates_of_their_own(tmp_path):
    task = task_of(learning_rates={"model.vision_model.": 1e-5})
    engine = Engine(arguments(tmp_path, max_steps=1, learning_rate=1e-3, weight_decay=0.3))
    engine.train(task)
    names = {id(parameter): name for name, parameter in engine.trained.named_parameters()}
    for group in engine.optimizer.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.3 if parameter.ndim >= 2 else 0.0)
            own = names[id(parameter)].startswith("model.vision_model.")
            assert group["initial_lr"] == (1e-5 if own else 1e-3)


def test_the_logit_scale_stays_below_its_maximum(tmp_path):
    task = task_of()
    task.model.config.logit_scale_max = 2.7
    Engine(arguments(tmp_path, max_steps=3, learning_rate=0.5)).train(task)
    assert all(row["logit_scale"] <= torch.tensor(2.7).exp() * 1.0001 for row in rows_of(tmp_path))


def test_the_average_of_the_weights_is_evaluated(tmp_path):
    seen = []
    task = task_of(evaluate=lambda model, is_last: seen.append((model, is_last)) or {"a": 1.0}, headline=("a",))
    engine = Engine(arguments(tmp_path, num_epochs=2, ema_decay=0.5, eval_epochs=0.34))
    engine.train(task)
    engine.evaluate(task)
    assert [is_last for _, is_last in seen] == [False] * 5 + [True]  # after every step but the last
    assert all(model is engine.ema.module for model, _ in seen)
    assert [row["step"] for row in rows_of(tmp_path) if "eval_a" in row] == [1, 2, 3, 4, 5, 6]
    assert not torch.equal(engine.trained.model.logit_scale, task.model.model.logit_scale)


def chosen(folder: Path, metric: str, values: list[float], **fields) -> tuple[dict, dict]:
    """Weights after a run of six steps whose evaluations find these values; and those of the best one, which are not the last."""
    values, seen = iter(values), {}

    def evaluate(model, is_last: bool) -> dict:
        value = next(values)
        seen[value] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        return {metric: value}

    task = task_of(evaluate=evaluate)
    options = {"num_epochs": 2, "eval_epochs": 0.34, "learning_rate": 1e-2, **fields}
    engine = Engine(arguments(folder, metric_for_best_model=metric, **options))
    engine.train(task)
    return engine.trained.state_dict(), seen


@pytest.mark.parametrize(
    ("metric", "values"),
    [("a_loss", [3.0, float("nan"), 1.0, 2.0, 4.0, 1.0]), ("recall", [0.1, 0.3, 0.9, 0.2, float("nan"), 0.9])],
)
def test_the_weights_of_the_best_evaluation_are_kept(tmp_path, metric, values):
    best = values[2]
    found, seen = chosen(tmp_path / "whole", metric, [*values[:5], values[3]])
    torch.testing.assert_close(found, seen[best], atol=0, rtol=0)
    # Stopped behind the best one, and gone on
    with pytest.raises((StopIteration, RuntimeError)):
        chosen(tmp_path / "parts", metric, values[:4], checkpoint_steps=4)
    again, _ = chosen(tmp_path / "parts", metric, [*values[4:5], values[3]], checkpoint_steps=4, resume=True)
    torch.testing.assert_close(again, found, atol=0, rtol=0)


def test_what_chooses_weights_must_be_measured(tmp_path):
    with pytest.raises(
        ValueError, match="`metric_for_best_model` needs evaluations to choose from: `eval_epochs` is 0"
    ):
        arguments(tmp_path, metric_for_best_model="loss", eval_epochs=0)
    engine = Engine(arguments(tmp_path, metric_for_best_model="loss", max_steps=1))
    with pytest.raises(ValueError, match="'loss' is no number of the evaluation, which has a, b"):
        engine.train(task_of(evaluate=lambda model, is_last: {"a": 1.0, "b": 1.0}))


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    task = task_of()
    with torch.no_grad():
        task.model.model.text_projection.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="The loss of step 1 is nan"):
        Engine(arguments(tmp_path)).train(task)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 3}, "`batch_size times processes` was 2 when .* is 3 now"),
        ({"gradient_accumulation_steps": 2}, "`gradient_accumulation_steps` was 1 when .* is 2 now"),
        ({"num_epochs": 4}, "`number of steps` was 9 when .* is 12 now"),
        ({"seed": 1}, "`seed` was 0 when .* is 1 now"),
    ],
)
def test_a_run_does_not_go_on_in_another_order(tmp_path, fields, message):
    Engine(arguments(tmp_path, num_epochs=3, checkpoint_steps=4)).train(task_of())
    with pytest.raises(ValueError, match=message):
        Engine(arguments(tmp_path, **{"num_epochs": 3, "resume": True, **fields})).train(task_of())


def test_a_run_goes_on_exactly_in_a_later_epoch(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    Engine(arguments(whole, num_epochs=3)).train(task_of())
    # Behind the last batch of an epoch, and amid the next one
    for step in (6, 7):
        engine = Engine(arguments(parts, num_epochs=3, checkpoint_steps=step))
        engine.train(task_of())
        engine = Engine(arguments(parts, num_epochs=3, resume=True))
        engine.train(task_of())
        assert logged_losses(parts) == logged_losses(whole)
        for each in (parts / "checkpoints").iterdir():
            for path in sorted(each.rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
            each.rmdir()


@pytest.mark.parametrize(
    "order",
    [EpochSampler(40), GroupedSampler([row // 3 for row in range(40)], 2), LengthGroupedSampler(list(range(40)), 4)],
    ids=lambda order: type(order).__name__,
)
def test_an_order_depends_on_its_epoch_alone(order):
    found = []
    for epoch in (0, 1, 2, 1):
        order.set_epoch(epoch)
        found.append(list(order))
    assert found[1] == found[3]
    assert len({tuple(rows) for rows in found}) == 3
    assert all(sorted(rows) == list(range(40)) for rows in found)


def test_sigterm_saves_and_stops_and_the_run_goes_on(tmp_path):
    from tests.test_trainers import picture_folder

    picture_folder(tmp_path / "data", [{"caption": f"a {CAPTIONS[index % 3]}"} for index in range(40)])
    command = [
        sys.executable, str(ROOT / "examples" / "pretrain.py"), "--dataset", str(tmp_path / "data"), "--num_epochs", "40",
        "--batch_size", "4", "--num_workers", "0", "--mixed_precision", "no", "--eval_epochs", "0", "--vocab_size", "300",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    folder = tmp_path / "run"
    process = subprocess.Popen([*command, "--output_dir", folder], env=environment, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while len(logged_losses(folder)) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM
    (checkpoint,) = (folder / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step-"))
    assert f"Stopped by SIGTERM; go on with `resume` from {checkpoint}" in output
    assert len(logged_losses(folder)) == step < 360


def test_publishing_is_refused_before_the_training(tmp_path):
    with pytest.raises(ValueError, match="`hub_model_id` needs a licence"):
        Engine(arguments(tmp_path, hub_model_id="someone/model")).train(task_of(card={"license": None}))
    with pytest.raises(ValueError, match="`hub_private` needs `hub_model_id`"):
        arguments(tmp_path, hub_private=True)
    assert not (tmp_path / "training_log.jsonl").exists()


def names_read(*folders: Path) -> set[str]:
    """Attributes that the code of these folders reads."""
    files = [path for folder in folders for path in folder.rglob("*.py")]
    nodes = (node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute)}


SCRIPTS = ("pretrain", "finetune_vqa", "finetune_video_qa", "finetune_detection", "finetune_lora", "train_vw_lmm")


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_argument_is_accepted_and_ignored(script):
    """Every argument that a script offers is read by it, or by the room that it hands its arguments to."""
    module = load_example(script)
    offered = {each.name for kind in argument_classes(module) for each in dataclasses.fields(kind)}
    tree = ast.parse((ROOT / "examples" / f"{script}.py").read_text(encoding="utf-8"))
    read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    read |= names_read(ROOT / "triptych" / "training") | {"report_to"}
    trees = [tree]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("triptych.training."):
            trees.append(ast.parse((ROOT / f"{node.module.replace('.', '/')}.py").read_text(encoding="utf-8")))
    nodes = [node for each in trees for node in ast.walk(each)]
    calls = [node for node in nodes if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "loading"]
    if any(issubclass(kind, StreamArguments) for kind in argument_classes(module)):
        streams = ast.parse((ROOT / "triptych" / "data" / "streams.py").read_text(encoding="utf-8"))
        read |= {node.attr for node in ast.walk(streams) if isinstance(node, ast.Attribute)}
    if calls:  # whose result goes to a loader, which knows what it takes
        (data,) = (kind for kind in argument_classes(module) if issubclass(kind, DataArguments))
        read |= {"dataset_config", "eval_split", "on_bad_row", *data.columns()}
        read |= {name.value for call in calls for name in ast.walk(call) if isinstance(name, ast.Constant)}
    assert offered - read == set()


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("pretrain", "--dataset openmoji-scenes --crop_scale 0.5", "`crop_scale=0.5` is for pictures that are read"),
        (
            "pretrain",
            "--dataset openmoji-scenes --also_evaluate test",
            "`also_evaluate='test'` is for pictures that are read",
        ),
        ("pretrain", "--max_train_rows 0", "`max_train_rows` must be at least 1, got 0"),
        ("pretrain", "--model_name_or_path base --vocab_size 300", "`vocab_size=300` belongs to a model from scratch"),
        ("pretrain", "--tokenizer gpt2 --vocab_size 300", "`vocab_size=300` is of a tokenizer trained here"),
        (
            "pretrain",
            "--streaming --dataset a --num_epochs 3",
            "`num_epochs` counts passes, a stream is counted in steps",
        ),
        ("pretrain", "--streaming --dataset a --validation_split b", "is for data sets that fit into a table"),
        ("pretrain", "--group_column page", "`group_column='page'` is for data of your own"),
        ("finetune_vqa", "--on_bad_row skip", "`on_bad_row='skip'` is for data of your own"),
        ("finetune_detection", "--model_name_or_path a --dataset b --on_bad_row skip", "is for `train_annotations`"),
        (
            "finetune_detection",
            "--model_name_or_path a --dataset b --num_scenes 5",
            "`num_scenes=5` is for emoji scenes",
        ),
        ("finetune_lora", "--model_name_or_path a --task vqa --truncate_captions", "says nothing about `task` 'vqa'"),
        ("finetune_lora", "--model_name_or_path a --task vqa --method ia3 --rank 4", "belong to LoRA and DoRA"),
        ("train_vw_lmm", "--vision a --num_epochs 3", "`num_epochs=3.0` stands in `steps` and `learning_rates`"),
        ("train_vw_lmm", "--vision a --eval_epochs 1", "`eval_epochs=1.0` has no meaning here"),
        ("train_vw_lmm", "--vision a --dataset b.json --compare", "`compare=True` says nothing about `dataset`"),
    ],
)
def test_arguments_without_a_meaning_are_refused(script, flags, message, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", [script, "--output_dir", str(tmp_path / "out"), *flags.split()])
    with pytest.raises(ValueError, match=re.escape(message)):
        load_example(script).main()
    assert not (tmp_path / "out").exists()


def test_a_resumed_log_keeps_the_evaluation_of_its_step(tmp_path):
    def task() -> Task:
        return task_of(evaluate=lambda model, is_last: {"a": 1.0})

    Engine(arguments(tmp_path, num_epochs=2, eval_epochs=1, checkpoint_steps=3, num_checkpoints=2)).train(task())
    before = rows_of(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000006")
    Engine(arguments(tmp_path, num_epochs=2, eval_epochs=1, resume=True)).train(task())
    after = rows_of(tmp_path)
    assert [sorted(row) for row in after] == [sorted(row) for row in before]
    assert [row["step"] for row in after if "eval_a" in row] == [3]


def test_scripts_are_short_and_do_not_repeat_one_another():
    lines = {name: (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8").splitlines() for name in SCRIPTS}
    for name, content in lines.items():
        assert len(content) <= 150, name
    runs: dict[tuple[str, ...], str] = {}
    for name, content in lines.items():
        body = [line.strip() for line in content if line.strip() and not line.startswith(("from ", "import "))]
        for start in range(len(body) - 8):
            run = tuple(body[start : start + 9])
            assert runs.setdefault(run, name) == name, run


@pytest.mark.parametrize("family", ["grr_coca", "mammut", "vw_lmm"])
def test_compiled_layers_train_alike_and_are_compiled_for_any_length(family):
    """With the graphs alone: what torch makes of them takes minutes."""
    model = {"grr_coca": tiny_model, "mammut": tiny_mammut, "vw_lmm": tiny_vw_lmm}[family]().train()
    model.set_attn_implementation("eager")

    def step(length: int) -> list[torch.Tensor]:
        torch.manual_seed(length)
        ids = torch.randint(5, 20, (2, length))
        pictures = torch.randn(2, 3, model.config.vision_config.image_size, model.config.vision_config.image_size)
        if family == "vw_lmm":
            image = torch.full((2, model.config.image_seq_length), model.config.image_token_id)
            ids = torch.cat([image, ids], dim=1)
        loss = model(input_ids=ids, pixel_values=pictures, labels=ids.clone()).loss
        loss.backward()
        gradients = [each.grad.clone() for each in model.parameters() if each.grad is not None]
        model.zero_grad()
        return [loss.detach(), *gradients]

    expected = {length: step(length) for length in (9, 7, 8, 5)}
    compile_layers(model)
    torch._dynamo.reset()
    counters.clear()
    with torch.compiler.set_stance(force_backend="eager"):
        for number, (length, values) in enumerate(expected.items()):
            for value, found in zip(values, step(length), strict=True):
                torch.testing.assert_close(found, value, atol=1e-5, rtol=1e-4)
            if number == 1:
                num_graphs = counters["stats"]["unique_graphs"]
    assert 0 < counters["stats"]["unique_graphs"] == num_graphs
    assert not counters["graph_break"]
    with without_compilation():
        assert step(4)[0].isfinite()
    assert counters["stats"]["unique_graphs"] == num_graphs


@pytest.mark.parametrize(
    "options", [{"ema_decay": 0.5}, {"gradient_checkpointing": True, "micro_batch_size": 1}], ids=str
)
def test_a_compiled_training_is_the_same_one(tmp_path, options):
    losses, results = {}, {}
    for name in (False, True):
        engine = Engine(arguments(tmp_path / str(name), max_steps=3, compile=name, **options))
        torch._dynamo.reset()
        counters.clear()
        with torch.compiler.set_stance(force_backend="eager"):
            engine.train(task_of())
        assert (counters["stats"]["unique_graphs"] > 0) == name
        losses[name], results[name] = logged_losses(tmp_path / str(name)), engine.trained.state_dict()
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)
    for name, value in results[False].items():
        torch.testing.assert_close(results[True][name], value, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", ["grr_coca", "mammut", "vw_lmm"])
def test_vision_towers_are_one_graph(family):
    model = {"grr_coca": tiny_model, "mammut": tiny_mammut, "vw_lmm": tiny_vw_lmm}[family]()
    tower = model.model.vision_tower if family == "vw_lmm" else model.model.vision_model
    size = model.config.vision_config.image_size
    pictures = torch.randn(2, 3, size, size)
    found = torch.compile(tower, fullgraph=True, backend="eager")(pictures)
    torch.testing.assert_close(found.last_hidden_state, tower(pictures).last_hidden_state)


def test_what_has_no_layers_cannot_be_compiled():
    with pytest.raises(ValueError, match="`compile` finds no layers in a Linear"):
        compile_layers(torch.nn.Linear(2, 2))


def test_benchmarks_are_evaluated_while_training(tmp_path):
    """With the weights of the moment: class names are encoded anew."""
    pictures = image_folder(tmp_path / "pictures")
    captions = webdataset(tmp_path / "captions")
    file = tmp_path / "tasks.yaml"
    file.write_text(
        f"icons: {{task: classification, dataset: {pictures}, limit: 5}}\npairs: {{task: retrieval, dataset: {captions}}}\n"
    )
    processor = tiny_processor(tiny_config(text_config={"max_position_embeddings": 40}))
    model = tiny_model(text_config={"vocab_size": len(processor.tokenizer), "max_position_embeddings": 40})
    options = {"max_steps": 2, "eval_steps": 1, "learning_rate": 0.01, "eval_tasks": str(file)}
    engine = Engine(arguments(tmp_path / "out", **options))
    task = task_of(
        model=model, processor=processor, collator=PairCollator(processor), evaluate=lambda model, is_last: {}
    )
    engine.train(task)
    engine.evaluate(task)
    rows = [row for row in rows_of(tmp_path / "out") if "eval_icons_top1" in row]
    assert [row["step"] for row in rows] == [1, 2]
    by_hand = Classification(str(pictures))
    encoder = Encoder(engine.trained.eval(), processor)
    samples = by_hand.predict(encoder, [by_hand.rows[number] for number in range(5)])
    assert rows[-1]["eval_icons_top1"] == by_hand.score(samples)[0]["top1"]
    assert 0 <= rows[-1]["eval_pairs_text_to_image_recall@1"] <= 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- captions", "must name tasks, as in"),
        ("icons: {task: classification}", "icons needs `task` and `dataset`"),
        (
            "icons: {task: classification, dataset: PLACE, limit: -1}",
            "`limit` of icons must be a number of rows, got -1",
        ),
        (
            "icons: {task: classification, dataset: PLACE, prompt: x}",
            "icons: `prompt` has no meaning for classification",
        ),
        ("icons: {task: classification, dataset: PLACE, split: other}", "icons: `split` 'other' is not in"),
    ],
)
def test_benchmarks_that_cannot_be_done_are_named_at_the_start(tmp_path, content, message):
    file = tmp_path / "tasks.yaml"
    file.write_text(content.replace("PLACE", str(image_folder(tmp_path / "pictures"))))
    with pytest.raises(ValueError, match=message):
        Engine(arguments(tmp_path / "out", eval_tasks=str(file)))


def test_a_benchmark_that_the_model_cannot_do_is_named_at_the_start(tmp_path):
    file = tmp_path / "tasks.yaml"
    file.write_text(f"boxes: {{task: detection, dataset: {coco_objects(tmp_path / 'data')}, split: val}}")
    with pytest.raises(ValueError, match="`eval_tasks`, boxes: A grr_coca names no boxes"):
        Engine(arguments(tmp_path / "out", eval_tasks=str(file))).train(task_of())
