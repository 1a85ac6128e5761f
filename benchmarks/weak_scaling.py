"""Pairs per second of processes that train one model together, beside as many that train one each: what waiting for gradients costs.

    python benchmarks/weak_scaling.py --output_dir outputs/weak-scaling
    python benchmarks/weak_scaling.py --output_dir outputs/weak-scaling --num_processes 2 --repeats 3 -- --preset grr-coca-base

A process has one thread and reads its own rows. Both ways are measured in turns, by the median of the steps behind the first ones.
Processes that train together wait in every step for the slowest. What that alone costs follows from the steps of those apart, whose
seeds, and with them their texts, differ; what is below it costs something else. Arguments behind `--` go to examples/pretrain.py.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

from triptych.hub import describe_machine


PRETRAIN = Path(__file__).parents[1] / "examples" / "pretrain.py"
WARM_UP = 5  # steps


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="where the runs leave their logs; emptied first"
    )
    parser.add_argument("--num_processes", type=int, default=2, help="as many as there are cores, at most")
    parser.add_argument("--batch_size", type=int, default=64, help="pairs per process and step")
    parser.add_argument("--num_steps", type=int, default=30, help="of every training")
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    parser.add_argument("pretrain", nargs="*", metavar="-- ...", help="arguments of examples/pretrain.py")
    args = parser.parse_args()
    if args.num_processes < 2:
        parser.error("--num_processes must be at least 2: one waits for nobody.")
    if args.num_steps <= WARM_UP:
        parser.error(f"--num_steps must be above {WARM_UP}, which warm up.")
    return args


def start(args: argparse.Namespace, folder: Path, num_processes: int, seed: int) -> subprocess.Popen:
    """A training; its output goes to `log.txt` in its folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    options = {
        "output_dir": folder,
        "max_steps": args.num_steps,
        "batch_size": args.batch_size,
        "eval_epochs": 0,
        "checkpoint_steps": 0,
        "num_workers": 0,
        "seed": seed,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    command = [sys.executable, *(launch if num_processes > 1 else []), str(PRETRAIN), *words, *args.pretrain]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    with (folder / "log.txt").open("w") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def step_seconds(folder: Path) -> list[float]:
    """Of a finished training, behind the warm-up."""
    lines = (folder / "training_log.jsonl").read_text(encoding="utf-8").splitlines()
    return [row["step_seconds"] for row in map(json.loads, lines) if "step_seconds" in row][WARM_UP:]


def measure(args: argparse.Namespace, folders: list[Path], num_processes: int) -> list[list[float]]:
    """Seconds of the steps of trainings beside one another, of so many processes each."""
    trainings = [start(args, folder, num_processes, seed) for seed, folder in enumerate(folders)]
    for training, folder in zip(trainings, folders, strict=True):
        if training.wait():
            sys.exit(f"A training ended with code {training.returncode}: see {folder / 'log.txt'}.")
    return [step_seconds(folder) for folder in folders]


def main() -> None:
    args = parse_arguments()
    print(f"{args.num_processes} processes, {args.batch_size} pairs each; {describe_machine()}")
    alone = [args.output_dir / f"alone-{index}" for index in range(args.num_processes)]
    ratios, bounds = [], []
    for _ in range(args.repeats):
        apart = measure(args, alone, 1)
        (together,) = measure(args, [args.output_dir / "together"], args.num_processes)
        pairs_apart = sum(args.batch_size / median(seconds) for seconds in apart)
        pairs_together = args.num_processes * args.batch_size / median(together)
        pairs_waiting = args.num_processes * args.batch_size / median(map(max, *apart))
        ratios.append(pairs_together / pairs_apart)
        bounds.append(pairs_waiting / pairs_apart)
        print(
            f"  apart {pairs_apart:8.1f} pairs/s   together {pairs_together:8.1f} pairs/s, {ratios[-1]:.2f}   "
            f"waiting alone {bounds[-1]:.2f}",
            flush=True,
        )
    print(f"together {median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}; waiting alone {median(bounds):.2f}")


if __name__ == "__main__":
    main()
