"""The training loop of all scripts in `examples/`. A [`Task`] says what is trained; how is decided here, once, for every one of them."""

import json
import math
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, broadcast_object_list, set_seed
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import AutoProcessor, ProcessorMixin, get_scheduler
from transformers.utils import logging

from triptych.data.pictures import input_side
from triptych.data.streams import PairStream
from triptych.evaluation.sharing import shares_weights
from triptych.hardware import best_precision
from triptych.hub import publish, save_adapter, save_repository, to_json
from triptych.modeling.transformers_versions import checkpoint_activations
from triptych.training.batches import RowBatches, StreamBatches
from triptych.training.benchmarks import Benchmarks
from triptych.training.cards import run_facts
from triptych.training.checkpoints import (
    checkpoint_to_resume,
    keep_adapters_only,
    load_checkpoint,
    remove_folder,
    save_checkpoint,
)
from triptych.training.compilation import compile_layers, without_compilation
from triptych.training.gradient_cache import backward_in_parts
from triptych.training.normalization import DeferredNormalization
from triptych.training.optimization import TrainingState, weight_decay_groups
from triptych.training.run_arguments import RunArguments
from triptych.training.sharding import reach_through_sharding, whole_model
from triptych.training.training_log import TrainingLog


logger = logging.get_logger(__name__)

ARGUMENTS_FILE = "training_arguments.json"  # comes with the finished repository

# How long a training may wait for its data before it says so: share of its time, and seconds
_MOST_WAITING, _START_UP = 0.2, 10.0


@dataclass
class Task:
    """What is trained.

    Args:
        name (`str`): Of the run in trackers, and of the card's template in `model_cards/runs/`.
        model (`PreTrainedModel` or `PeftModel`): What is trained, as far as its parameters require gradients.
        processor (`ProcessorMixin`): Of the model.
        train_set (`Dataset`): Rows by index, or a [`PairStream`]. If it has `set_epoch`, it is told the epoch; if `set_decode_size`, the size of inputs.
        collator (`Callable`): From rows to the arguments of the model's `forward`; `num_skipped`, if there, is counted.
        loss_parts (`tuple[str, ...]`): Outputs of the model, or entries of its `loss_dict`, that are logged beside the loss.
        evaluate (`Callable`, *optional*): From a model, and whether this is the last evaluation, to flat numbers.
        order (`Sampler`, *optional*): Order of the rows with `set_epoch`. Default: random.
        learning_rates (`dict[str, float]`, *optional*): Peak rates of modules that have their own, by prefix of their parameters.
        extra_inputs (`dict`, *optional*): Arguments of `forward` that all batches share.
        find_unused_parameters (`bool`): Whether the loss leaves trained parameters without a gradient, which DDP must be told.
        headline (`tuple[str, ...]`): Numbers of an evaluation that are printed.
        card (`dict`, *optional*): Fields of the card that are known before training, `license` among them.
        base_model (`str`, *optional*): Where others find what an adapter adapts.
    """

    name: str
    model: Any
    processor: ProcessorMixin
    train_set: Dataset
    collator: Callable[[list[Any]], Any]
    loss_parts: tuple[str, ...]
    evaluate: Callable[[nn.Module, bool], dict[str, float]] | None = None
    order: Any = None
    learning_rates: dict[str, float] = field(default_factory=dict)
    extra_inputs: dict[str, Any] = field(default_factory=dict)
    find_unused_parameters: bool = False
    headline: tuple[str, ...] = ()
    card: dict[str, Any] = field(default_factory=dict)
    base_model: str | None = None


class Engine:
    """One run of a script: trains a task, writes what came of it.

    Args:
        args (`RunArguments`): Of the run. Seeds all generators.

    Raises:
        ValueError: If `output_dir` holds checkpoints of an earlier run and `resume` is not set, or the other way round.
        SystemExit: If `resume` is "auto" and the run is finished.
    """

    def __init__(self, args: RunArguments):
        self.args = args
        self.output_dir = Path(args.output_dir)
        self.checkpoints = self.output_dir / "checkpoints"
        self.accelerator = Accelerator(
            mixed_precision=best_precision() if args.mixed_precision == "auto" else args.mixed_precision,
            log_with=None if args.report_to == "none" else args.report_to,
            project_dir=self.output_dir,
            step_scheduler_with_optimizer=False,
        )
        if args.gradient_accumulation_steps > 1 and self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            raise ValueError("`gradient_accumulation_steps` must be 1 with DeepSpeed, which has its own.")
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:  # which looks for it in a loader
            deepspeed: Any = self.accelerator.state.deepspeed_plugin
            deepspeed.deepspeed_config["train_micro_batch_size_per_gpu"] = args.micro_batch_size or args.batch_size
        shared = (DistributedType.FSDP, DistributedType.DEEPSPEED)
        for name in ("metric_for_best_model", "ema_decay"):
            if getattr(args, name) is not None and self.accelerator.distributed_type in shared:
                raise ValueError(f"`{name}` is not for weights that processes share out (FSDP, DeepSpeed).")
        set_seed(args.seed)
        self.checkpoint = checkpoint_to_resume(self.checkpoints, args.resume)
        if args.resume == "auto" and self.checkpoint is None and (self.output_dir / ARGUMENTS_FILE).exists():
            self.accelerator.print(f"{self.output_dir} is finished.")
            raise SystemExit(0)
        self.benchmarks = None if args.eval_tasks is None else Benchmarks(Path(args.eval_tasks))
        self.state = TrainingState()
        self.data_seconds = 0.0  # that the current step has waited for its batches
        self.model: Any = None
        self.ema: AveragedModel | None = None

    def restored(self, processor: ProcessorMixin) -> ProcessorMixin:
        """The processor of the checkpoint that the run goes on from; without one, the one that is given."""
        return processor if self.checkpoint is None else AutoProcessor.from_pretrained(self.checkpoint / "processor")

    @property
    def trained(self) -> Any:
        """The model as it is now, averaged if `ema_decay` asks for it, without what processes wrap around it."""
        return self.accelerator.unwrap_model(self.model if self.ema is None else self.ema.module)

    def train(self, task: Task) -> None:
        """Train, from the beginning or from the checkpoint, up to the last step; with `metric_for_best_model` take the best weights then.

        Raises:
            ValueError: If there are too few rows, there is no number to choose weights by, the checkpoint is of a run in another order, or the result could not be published.
            FloatingPointError: If the loss is no number.
            SystemExit: After a checkpoint, if SIGTERM came.
        """
        self._prepare(task)
        state = self.state
        progress = tqdm(
            total=self.num_steps,
            initial=state.step,
            desc="train",
            unit="step",
            disable=not self.accelerator.is_main_process,
        )
        self.started = time.perf_counter()
        with _caught_sigterm() as stop, progress:
            while state.step < self.num_steps:
                for numbers in self._epoch(task, stop):
                    progress.update()
                    progress.set_postfix(loss=f"{numbers['loss']:.3f}", skipped=state.num_skipped)
            self._take_best()
        self._count_time()
        if state.data_seconds > max(_START_UP, _MOST_WAITING * state.seconds):
            share = f"{state.data_seconds / state.seconds:.0%}"
            logger.warning(
                f"{share} of the time went into waiting for data; more processes prepare it sooner: `num_workers` is "
                f"{self.args.num_workers}."
            )

    def _prepare(self, task: Task) -> None:
        """Order, optimiser, schedule, log; and where the checkpoint was, if there is one."""
        args, accelerator, state = self.args, self.accelerator, self.state
        check_publishable(args, task.card, task.base_model)
        if self.benchmarks is not None:
            self.benchmarks.check(task.model, task.processor, accelerator)
        if args.micro_batch_size is not None and not _compares(task.model):
            raise ValueError(
                "`micro_batch_size` is for captioners with a contrastive loss; `gradient_accumulation_steps` for all."
            )
        if task.find_unused_parameters and accelerator.distributed_type == DistributedType.DEEPSPEED:
            raise ValueError(
                "DeepSpeed trains wrongly or stops where a batch of one process leaves parameters out, as one without images does: "
                "use FSDP2 (examples/accelerate/fsdp2.yaml)."
            )
        if hasattr(task.model, "peft_config") and shares_weights(accelerator):
            raise ValueError(
                "Adapters go with DDP or DeepSpeed ZeRO-2: those that FSDP or ZeRO-3 share out cannot be saved."
            )
        if task.find_unused_parameters:
            accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)
        if args.gradient_checkpointing:
            checkpoint_activations(task.model)
        attention = "eager" if accelerator.device.type == "cpu" else "sdpa"
        task.model.set_attn_implementation(args.attn_implementation or attention)
        if args.compile:
            compile_layers(task.model)

        self.collator = DeferredNormalization(task.collator)
        side = input_side(task.processor)
        if side is not None and hasattr(task.train_set, "set_decode_size"):
            task.train_set.set_decode_size(side)
        self.batches: RowBatches | StreamBatches
        if isinstance(task.train_set, PairStream):
            self.batches = StreamBatches(task.train_set, self.collator, args, accelerator)
        else:
            self.batches = RowBatches(task.train_set, task.order, self.collator, args, accelerator)
        groups = weight_decay_groups(task.model, args.weight_decay, args.learning_rate, task.learning_rates)
        optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, args.adam_beta2))
        self.model_class = type(task.model)
        self.model, self.optimizer = accelerator.prepare(task.model, optimizer)
        reach_through_sharding(self.model)
        self.num_batches, self.batches_per_step = self.batches.num_batches, args.gradient_accumulation_steps
        if args.micro_batch_size is not None:
            self.batches_per_step = args.batch_size // args.micro_batch_size
            if self.num_batches < math.inf:  # whole batches only: fewer pairs would be another loss
                self.num_batches -= self.num_batches % self.batches_per_step
        self.steps_per_epoch, self.num_steps, self.eval_every = self._schedule()
        warmup = round(args.warmup_ratio * self.num_steps)
        self.scheduler = get_scheduler(args.lr_scheduler_type, self.optimizer, warmup, self.num_steps)
        accelerator.register_for_checkpointing(self.scheduler, state)
        self.scaled = [
            module
            for module in self.model.modules()
            if hasattr(type(module), "clamp_logit_scale") and module.logit_scale.requires_grad
        ]
        if args.ema_decay is not None:
            average = get_ema_multi_avg_fn(args.ema_decay)
            self.ema = AveragedModel(accelerator.unwrap_model(self.model), multi_avg_fn=average)
            accelerator.register_for_checkpointing(self.ema)
        if hasattr(task.model, "peft_config"):
            keep_adapters_only(accelerator)
        self.order_facts = {
            "batch_size times processes": args.batch_size * accelerator.num_processes,
            "micro_batch_size times processes": (args.micro_batch_size or args.batch_size) * accelerator.num_processes,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            **self.batches.facts,
            "number of steps": self.num_steps,
            "seed": args.seed,
        }
        if self.checkpoint is not None:
            load_checkpoint(self.checkpoint, accelerator, self.batches, self.order_facts)
            accelerator.print(f"Resuming from {self.checkpoint} at step {state.step} of {self.num_steps}.")
        path = self.output_dir / "training_log.jsonl"
        self.log = TrainingLog(path, accelerator, state, self.steps_per_epoch, resume=self.checkpoint is not None)
        plain = (bool, int, float, str)
        config = {**task.card.get("arguments", {}), **asdict(args)}
        config = {key: value if isinstance(value, plain) else to_json(value) for key, value in config.items()}
        accelerator.init_trackers(task.name, config=config)

    def _schedule(self) -> tuple[float, int, int | None]:
        """Steps of an epoch, of the run, and between evaluations."""
        args = self.args
        if self.num_batches == math.inf:
            if args.max_steps is None:
                raise ValueError("A stream has no end: say with `max_steps` how long to train.")
            if args.metric_for_best_model is not None and args.eval_steps is None:
                raise ValueError(
                    "`metric_for_best_model` needs evaluations to choose from: say with `eval_steps` when."
                )
            return math.inf, args.max_steps, args.eval_steps
        steps = math.ceil(self.num_batches / self.batches_per_step)
        every = args.eval_steps or (max(1, round(args.eval_epochs * steps)) if args.eval_epochs else None)
        return steps, args.max_steps or math.ceil(args.num_epochs * steps), every

    def _epoch(self, task: Task, stop: list[int]) -> Iterator[dict[str, float]]:
        """The steps that are left of the current epoch; numbers of each."""
        args, accelerator, state = self.args, self.accelerator, self.state
        num_batches, window = self.num_batches, self.batches_per_step
        if state.batch == num_batches:  # the checkpoint was made behind the last batch
            state.batch, state.epoch = 0, state.epoch + 1
            return
        batches = self.batches.epoch(state.epoch, state.batch)
        self.model.train()
        sums: torch.Tensor | float = 0.0
        parts: list[Any] = []
        self.step_started = time.perf_counter()
        for batch in self._timed(batches):
            # the last window may be a short one
            size = int(min(window, num_batches - state.batch // window * window))
            is_last = (state.batch + 1) % window == 0 or state.batch + 1 == num_batches
            if args.micro_batch_size is not None:
                parts.append(batch)
                if is_last:
                    sums = self._backward_in_parts(task, parts, bool(stop))
                    parts = []
            else:
                with nullcontext() if is_last else accelerator.no_sync(self.model):
                    sums = sums + self._backward(task, batch, size, bool(stop))
            state.batch += 1
            if not is_last:
                continue
            numbers, is_stopping = self._step(task, sums)
            sums = 0.0
            yield numbers
            is_over, chooses = state.step == self.num_steps, args.metric_for_best_model is not None
            if chooses if is_over else self.eval_every is not None and state.step % self.eval_every == 0:
                results = self.evaluate(task, is_last=False)
                if chooses:
                    self._keep_best(results)
            if is_stopping or (args.checkpoint_steps and state.step % args.checkpoint_steps == 0):
                self._count_time()
                saved = self._save(task)
                if is_stopping:
                    accelerator.print(f"Stopped by SIGTERM; go on with `resume` from {saved}.")
                    accelerator.end_training()
                    raise SystemExit(128 + signal.SIGTERM)
            if is_over:
                return
            if state.batch == num_batches:
                break
            self.step_started = time.perf_counter()
        state.batch, state.epoch = 0, state.epoch + 1

    def _save(self, task: Task) -> Path:
        parts = (self.accelerator, self.batches, task.processor, self.state.step)
        return save_checkpoint(self.checkpoints, *parts, self.args.num_checkpoints, self.order_facts)

    def _timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches, counting the seconds until each was there."""
        remaining = iter(batches)
        while True:
            started = time.perf_counter()
            batch = next(remaining, None)
            self.data_seconds += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def _backward(self, task: Task, batch: Any, size: int, is_stopping: bool) -> torch.Tensor:
        """Gradients of one batch, a `size`-th of a step. Returns its numbers: signal, skipped rows, loss and parts of the loss."""
        batch = self.collator.on_device(dict(batch))
        num_skipped = batch.pop("num_skipped", 0)
        outputs = self.model(**batch, **task.extra_inputs)
        self.accelerator.backward(outputs.loss / size)
        parts = [
            getattr(outputs, name) if hasattr(outputs, name) else outputs.loss_dict[name] for name in task.loss_parts
        ]
        losses = [outputs.loss, *(outputs.loss.new_tensor(math.nan) if part is None else part for part in parts)]
        means = torch.stack([loss.detach().float().reshape(()) for loss in losses]) / size
        counts = torch.tensor([float(is_stopping), float(num_skipped)], device=means.device)
        return torch.cat([counts, means])

    def _backward_in_parts(self, task: Task, parts: list[Any], is_stopping: bool) -> torch.Tensor:
        """Gradients of a step whose batch passes through the model in parts; the same numbers."""
        batches = [dict(part) for part in parts]
        num_skipped = sum(float(batch.pop("num_skipped", 0)) for batch in batches)
        # On the device all wait as bytes; one at a time becomes floats.
        found = backward_in_parts(self.model, batches, self.accelerator, task.extra_inputs, self.collator.on_device)
        losses = [found["loss"], *(found[name] for name in task.loss_parts)]
        return torch.stack([found["loss"].new_tensor(value) for value in (float(is_stopping), num_skipped)] + losses)

    def _step(self, task: Task, sums: torch.Tensor | float) -> tuple[dict[str, float], bool]:
        """One step of the optimiser. Returns the means over batches and processes, and whether a process was told to stop."""
        args, accelerator, state = self.args, self.accelerator, self.state
        norm = accelerator.clip_grad_norm_(self.model.parameters(), args.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not accelerator.optimizer_step_was_skipped:
            self.scheduler.step()
        scales = {}
        for module in self.scaled:
            module.clamp_logit_scale()  # the model clamps where a step begins; this is for the weights that are saved
            scale = module.logit_scale.detach().exp()
            scales["logit_scale"] = float(scale.full_tensor() if isinstance(scale, DTensor) else scale)
        if self.ema is not None:
            self.ema.update_parameters(accelerator.unwrap_model(self.model))
        state.step += 1
        total = accelerator.reduce(sums, "sum").tolist()  # type: ignore[union-attr]
        names = ("loss", *(name if name.endswith("_loss") else f"{name}_loss" for name in task.loss_parts))
        means = {name: value / accelerator.num_processes for name, value in zip(names, total[2:], strict=True)}
        state.num_skipped += int(total[1])
        numbers = {
            **means,
            "grad_norm": math.nan if norm is None else float(norm),  # DeepSpeed tells it late
            "learning_rate": self.scheduler.get_last_lr()[0],
            "step_seconds": time.perf_counter() - self.step_started,
            "data_seconds": self.data_seconds,
            **scales,
        }
        state.data_seconds, self.data_seconds = state.data_seconds + self.data_seconds, 0.0
        if not math.isfinite(means["loss"]):
            raise FloatingPointError(f"The loss of step {state.step} is {means['loss']}: {numbers}")
        self.log.record(numbers)
        return numbers, total[0] > 0

    @property
    def _best_file(self) -> Path:
        return self.checkpoints / "best.safetensors"

    def _trained_parameters(self) -> dict[str, nn.Parameter]:
        return {name: value for name, value in self.trained.named_parameters() if value.requires_grad}

    def _keep_best(self, results: dict[str, float]) -> None:
        """Write the trained weights down if an evaluation is the best one so far."""
        name, state = self.args.metric_for_best_model or "", self.state
        (value,) = broadcast_object_list([results.get(name)])  # one process decides for all
        if value is None:
            raise ValueError(
                f"`metric_for_best_model` {name!r} is no number of the evaluation, which has {', '.join(results)}."
            )
        sign = -1 if re.search("loss|perplexity|rank", name) else 1
        best = -math.inf if state.best is None else sign * state.best
        if not sign * value > best:  # nor is what is no number
            return
        state.best, state.best_step = value, state.step
        if self.accelerator.is_main_process:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            staging = self._best_file.with_suffix(".incomplete")
            save_file({name: value.data.contiguous() for name, value in self._trained_parameters().items()}, staging)
            staging.replace(self._best_file)
        self.accelerator.wait_for_everyone()

    @torch.no_grad()
    def _take_best(self) -> None:
        """Go back to the weights that were the best."""
        if self.state.best is None:
            return
        best = load_file(self._best_file)
        for name, value in self._trained_parameters().items():
            value.copy_(best[name])
        self.accelerator.print(
            f"The weights are those of step {self.state.best_step}, {self.args.metric_for_best_model} {self.state.best:.4f}."
        )

    def _count_time(self) -> None:
        now = time.perf_counter()
        self.state.seconds += now - self.started
        self.started = now

    def evaluate(self, task: Task, is_last: bool = True) -> dict[str, float]:
        """Numbers of the model as it is now, also in the log."""
        if task.evaluate is None:
            return {}
        model = self.model if self.ema is None else self.ema.module
        with without_compilation() if self.args.compile else nullcontext():
            results = task.evaluate(model, is_last)
            if self.benchmarks is not None:
                results |= self.benchmarks.evaluate(model, task.processor, self.accelerator, self.args.eval_batch_size)
        self.log.record({f"eval_{name}": value for name, value in results.items()})
        shown = ", ".join(f"{name} {results[name]:.3f}" for name in task.headline if name in results)
        self.accelerator.print(f"step {self.state.step}: {shown}")
        return results

    def whole_model(self) -> Any:
        """[`trained`] as it can be saved on the main process, also where processes have shared its weights out; called by all of them."""
        if not shares_weights(self.accelerator):
            return self.trained
        return whole_model(self.model, self.model_class, self.accelerator)

    def finish(self, task: Task, results: dict[str, Any], extra_files: dict[str, Any] | None = None) -> Path | None:
        """Write the finished repository, and publish it if that was asked; checkpoints go.

        Returns:
            `Path` or `None`: The repository, on the main process.
        """
        accelerator, model = self.accelerator, self.whole_model()
        if accelerator.is_main_process:
            card = {"metrics": results, **task.card, "template": f"runs/{task.name}.md", "run": run_facts(self)}
            write_repository(self.args, model, task.processor, card, results, extra_files, task.base_model)
            remove_folder(self.checkpoints)
        accelerator.wait_for_everyone()
        accelerator.end_training()
        return self.output_dir if accelerator.is_main_process else None


def write_repository(
    args: RunArguments,
    model: Any,
    processor: ProcessorMixin,
    card: dict[str, Any],
    results: dict[str, Any],
    extra_files: dict[str, Any] | None = None,
    base_model: str | None = None,
) -> None:
    """Write what a run leaves, a model or an adapter, and publish it if that was asked; on the main process.

    Args:
        args ([`RunArguments`]): Of the run.
        model, processor: Trained.
        card (`dict`): Fields of its template; `arguments` among them.
        results (`dict`): Of the last evaluation.
        extra_files (`dict`, *optional*): As of [`save_repository`].
        base_model (`str`, *optional*): As of [`save_adapter`].
    """
    arguments = {**card["arguments"], **asdict(args)}
    files = {"eval_results.json": results, ARGUMENTS_FILE: arguments, **(extra_files or {})}
    if base_model is None:
        save_repository(args.output_dir, model, processor, card, files)
    else:
        save_adapter(args.output_dir, model, base_model, card, files)
    print(json.dumps(results, indent=2))
    print(f"{card['run']['time']}. The repository is in {args.output_dir}.")
    if args.hub_model_id is not None:
        commit = publish(args.output_dir, args.hub_model_id, private=args.hub_private)
        print(commit.commit_url if commit else "")


def check_publishable(args: RunArguments, card: dict[str, Any], base_model: str | None = None) -> None:
    """Say before the training, not behind it, that the result could not be published.

    Raises:
        ValueError: If its licence is unknown, or it is an adapter of something that nobody else has.
    """
    if args.hub_model_id is None:
        return
    if base_model is not None and Path(base_model).exists():
        raise ValueError(
            f"`hub_model_id` needs `base_model_id`: {base_model} is a folder here, from which nobody else can load the base."
        )
    if card.get("license") is None:
        raise ValueError(
            "`hub_model_id` needs a licence for the card: name that of your data with `dataset_license`, and see that the card of the "
            "checkpoint that the training starts from states one that goes with it."
        )


def _compares(model: Any) -> bool:
    return hasattr(model, "contrastive_gradients") and model.config.contrastive_loss_weight != 0


@contextmanager
def _caught_sigterm() -> Iterator[list[int]]:
    """A list that is empty until SIGTERM comes, which schedulers send some time before they kill."""
    received: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, previous)


__all__ = ["Engine", "Task", "check_publishable", "write_repository"]
