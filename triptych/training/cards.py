"""The facts of a training run, from which the templates in `model_cards/runs/` write its card. Every number was measured by that run."""

import math
import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard

from triptych.data.statements import statement_of, title_of
from triptych.hub import describe_machine, portable


if TYPE_CHECKING:
    from triptych.training.engine import Engine
from triptych.training.run_arguments import RunArguments


_PERMISSIVE = ("apache-2.0", "bsd-3-clause", "cc-by-4.0", "cc0-1.0", "mit")


def training_command() -> str:
    """How this run was started, for the card: without access tokens and the folders of this machine."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    words = ["python"] if processes == 1 else ["accelerate", "launch", "--num_processes", str(processes)]
    words.append(f"examples/{Path(sys.argv[0]).name}")
    arguments = iter(sys.argv[1:])
    for word in arguments:
        name, _, value = word.partition("=")
        if name.startswith("--") and name.endswith("token"):
            if not value:
                next(arguments, None)
            continue
        words.append(portable(word))
    return shlex.join(words)


def combined_license(data: str | None, base: str | None) -> tuple[str | None, str]:
    """Licence of a checkpoint that was trained on data with one licence from a checkpoint with another, and a sentence on it.

    Args:
        data (`str`, *optional*): Licence of the data.
        base (`str`, *optional*): Folder or Hub name of the checkpoint it started from, whose card is read.

    Returns:
        `tuple`: The stricter of the two if the other is permissive, `None` if neither is or one is unknown; and the sentence.
    """
    if base is None:
        return data, ""
    try:
        licence = ModelCard.load(Path(base) / "README.md" if Path(base).is_dir() else base).data.license
    except (OSError, ValueError):  # no card, no network
        licence = None
    stated = f"the licence {licence}" if licence else "no licence"
    origin = f" The checkpoint it started from, {portable(base)}, states {stated}."
    if licence is None:
        return None, origin
    if licence in (data, *_PERMISSIVE):
        return data, origin
    return (licence if data in _PERMISSIVE else None), origin


def card_fields(arguments: list[Any], args: "RunArguments", pipeline_tag: str, tags: list[str]) -> dict[str, Any]:
    """Fields of a run's card that are known before the training.

    Args:
        arguments (`list`): Dataclasses of the script's own arguments, first the one that names the data. A `model_name_or_path`
            among them is what the training starts from.
        args ([`RunArguments`]): Of the run. The last part of `output_dir` is the model's name.
        pipeline_tag (`str`), tags (`list[str]`): As the Hub knows them.
    """
    name = Path(args.output_dir).resolve().name
    own = {key: value for each in arguments for key, value in asdict(each).items()}
    data = statement_of(getattr(arguments[0], "data_name", arguments[0].dataset), arguments[0].dataset_license)
    base, shards = own.get("model_name_or_path"), own.get("eval_shards")
    license_id, origin = combined_license(data.license, base)
    return {
        "name": name,
        "repo": name,
        "license": license_id,
        "language": data.language,
        "dataset_ids": None if data.hub_name is None else [data.hub_name],
        "pipeline_tag": pipeline_tag,
        "tags": tags,
        "evaluation_data": title_of(shards) if shards else f"the held-out split of {data.title}",
        "data": data,
        "data_statement": data.text + origin,
        "limits": data.limits,
        "origin": f"from {portable(base)}" if base else f"preset {own.get('preset')}, from scratch",
        "command": training_command(),
        "arguments": own,
    }


def run_facts(engine: "Engine") -> dict[str, Any]:
    """How a run went, a line of its card each."""
    args, state, accelerator = engine.args, engine.state, engine.accelerator
    batch = args.batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    # a stream, whose steps per epoch are infinite, has none
    epochs = f"{state.step / engine.steps_per_epoch:.3g} epochs, " if engine.steps_per_epoch < math.inf else ""
    facts = {
        "rows seen": f"{state.step * batch:,} ({epochs}{state.step:,} steps, batch {batch})",
        "optimiser": (
            f"AdamW, peak learning rate {args.learning_rate:g}, weight decay {args.weight_decay:g} on matrices, "
            f"{args.lr_scheduler_type} schedule with {args.warmup_ratio:.0%} warm-up"
        ),
        "precision": accelerator.mixed_precision if accelerator.mixed_precision != "no" else "fp32",
        "seed": args.seed,
        "corrupt images skipped": state.num_skipped,
        "time": f"{state.seconds / 60:.1f} min on {describe_machine()}",
    }
    weights = [] if args.ema_decay is None else [f"averaged with decay {args.ema_decay:g}"]
    if state.best is not None:
        weights.append(f"of step {state.best_step:,}, where {args.metric_for_best_model} was best: {state.best:.4g}")
    if weights:
        facts["weights"] = ", ".join(weights)
    return facts


__all__ = ["card_fields", "combined_license", "run_facts", "training_command"]
