"""Kill a training at random moments, go on, and see that it comes out as if nothing had happened.

    python benchmarks/kill_drill.py --output_dir outputs/drill --shards "shards/train-*.tar" --eval_shards "shards/test-*.tar"

One run is left alone. Then `--num_kills` runs of the same command are killed once each (SIGKILL to the whole process group, worker processes
included): every third one while a checkpoint is being written, the others at a moment drawn from the whole training. The same command with
`--resume auto` goes on. Losses of every step and final numbers must be those of the first run, bit for bit. `examples/write_shards.py`
writes shards; without `--shards` the runs read OpenMoji as a table.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tqdm.auto import tqdm

from triptych.hub import describe_machine


PRETRAIN = Path(__file__).parents[1] / "examples" / "pretrain.py"


def command(args: argparse.Namespace, folder: Path) -> list[str]:
    """The training, which writes a checkpoint after every other step."""
    options = {
        "output_dir": folder,
        "max_steps": args.num_steps,
        "checkpoint_steps": 2,
        "batch_size": 16,
        "num_workers": args.num_workers,
        "dropout": 0.1,
        "config_overrides": json.dumps({"vision_config": {"num_hidden_layers": 2}}),
        "resume": "auto",
    }
    if args.shards is None:
        options |= {"eval_epochs": 0}
    else:
        options |= {
            "dataset": args.shards,
            "eval_shards": args.eval_shards,
            "shuffle_buffer": 100,
            "max_eval_rows": 64,
        }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, str(PRETRAIN), *words, *(["--streaming"] if args.shards is not None else [])]


def start(args: argparse.Namespace, folder: Path) -> subprocess.Popen:
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        return subprocess.Popen(command(args, folder), stdout=log, stderr=log, start_new_session=True)


def finish(args: argparse.Namespace, folder: Path) -> dict:
    """Run to the end. Returns the losses of all steps, and the final numbers."""
    if start(args, folder).wait() != 0:
        raise RuntimeError(f"The training in {folder} failed; see {folder}.log.")
    rows = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    return {"losses": losses, "results": json.loads((folder / "eval_results.json").read_text())}


def has_logged(folder: Path) -> bool:
    log = folder / "training_log.jsonl"
    return log.exists() and log.stat().st_size > 0


def kill(args: argparse.Namespace, folder: Path, seconds: float, while_saving: bool) -> str:
    """Start a run and kill it. Returns where it was."""
    process = start(args, folder)
    while not has_logged(folder):
        if process.poll() is not None:
            raise RuntimeError(f"The training in {folder} failed; see {folder}.log.")
        time.sleep(0.01)
    moment = time.monotonic() + seconds
    while time.monotonic() < moment and process.poll() is None:
        time.sleep(0.001)
    while while_saving and process.poll() is None and not any((folder / "checkpoints").glob("incomplete-*")):
        time.sleep(0.0005)
    if process.poll() is not None:
        return "finished before"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = sorted(path.name for path in (folder / "checkpoints").glob("*"))
    steps = len((folder / "training_log.jsonl").read_text().splitlines())
    return f"behind step {steps}, with {', '.join(kept) or 'no checkpoint'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="where the runs and drill.json go")
    parser.add_argument("--shards", help="pattern of tar or parquet shards to stream")
    parser.add_argument("--eval_shards", help="pattern of shards to evaluate on")
    parser.add_argument("--num_kills", type=int, default=20, help="runs that are killed")
    parser.add_argument("--num_steps", type=int, default=24, help="optimiser steps of a run")
    parser.add_argument("--num_workers", type=int, default=2, help="processes that read")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    if (args.shards is None) != (args.eval_shards is None):
        parser.error("--shards and --eval_shards go together")
    args.output_dir.mkdir(parents=True, exist_ok=False)
    rng = random.Random(args.seed)
    whole = args.output_dir / "whole"
    expected = finish(args, whole)
    rows = [json.loads(line) for line in (whole / "training_log.jsonl").read_text().splitlines()]
    seconds = sum(row.get("step_seconds", 0.0) for row in rows)
    trials = []
    for number in tqdm(range(args.num_kills), desc="kills", unit="run"):
        folder = args.output_dir / f"killed-{number:02d}"
        where = kill(args, folder, rng.uniform(0, 1.2 * seconds), while_saving=number % 3 == 0)
        found = finish(args, folder)
        is_equal = found == expected
        trials.append({"killed": where, "equal": is_equal})
        tqdm.write(f"{folder.name}: killed {where}: {'equal' if is_equal else 'OTHERWISE'}")
    num_equal = sum(trial["equal"] for trial in trials)
    (args.output_dir / "drill.json").write_text(
        json.dumps({"machine": describe_machine(), "trials": trials}, indent=2) + "\n"
    )
    print(f"{num_equal} of {len(trials)} killed runs ended as the one that was left alone ({args.num_steps} steps).")
    sys.exit(num_equal < len(trials))


if __name__ == "__main__":
    main()
