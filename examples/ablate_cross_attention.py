"""How many cross-attention layers does MaMMUT's decoder need? Train 1, 2, 4 of them on the same data and seeds.

    python examples/ablate_cross_attention.py --output_dir outputs/cross-attention --num_epochs 6
    python examples/ablate_cross_attention.py --output_dir outputs/cross-attention --seeds 0 1 2 --dataset path/to/folder

Prints the ablation of the paper (section 6: retrieval and generation pull in different directions) for this data. Every run is one of
examples/pretrain.py with `--model mammut`, which takes all further arguments, and leaves its repository below output_dir.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from triptych import MammutConfig


PRETRAIN = Path(__file__).with_name("pretrain.py")
# Column of the table, key of eval_results.json
COLUMNS = {
    "text-to-image R@1": "text_to_image_recall@1",
    "image-to-text R@1": "image_to_text_recall@1",
    "caption perplexity": "perplexity",
    "caption word F1": "caption_word_f1",
}


def train(output_dir: Path, preset: str, every: int, seed: int, arguments: list[str]) -> dict[str, float]:
    """Results of one run of examples/pretrain.py."""
    overrides = json.dumps({"text_config": {"cross_attn_every": every}})
    command = [sys.executable, str(PRETRAIN), "--model", "mammut", "--preset", preset, "--output_dir", str(output_dir)]
    command += ["--config_overrides", overrides, "--seed", str(seed), *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # progress goes to stderr
    return json.loads((output_dir / "eval_results.json").read_text())


def ablation_table(runs: dict[int, list[dict[str, float]]]) -> str:
    """Markdown table: mean over seeds, and the sample standard deviation where there are several.

    Args:
        runs (`dict`): Results of every seed, by the number of cross-attention layers.
    """

    def cell(values: list[float]) -> str:
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        return f"{statistics.fmean(values):.3f}{spread}"

    lines = [f"| cross-attention layers | {' | '.join(COLUMNS)} |", "| --- |" + " --- |" * len(COLUMNS)]
    for num_layers, results in runs.items():
        cells = [cell([result[key] for result in results]) for key in COLUMNS.values()]
        lines.append(f"| {num_layers} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="where the runs and the table go")
    parser.add_argument("--preset", default="mammut-tiny", help="MaMMUT preset to vary")
    parser.add_argument("--cross_layers", type=int, nargs="+", default=[1, 2, 4], help="numbers of layers to compare")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="every number is trained with each of them")
    args, pretrain_arguments = parser.parse_known_args()
    num_layers = MammutConfig.from_preset(args.preset).text_config.num_hidden_layers
    for count in args.cross_layers:
        if count < 1 or num_layers % count:
            parser.error(
                f"--cross_layers: {count} cross-attention layers cannot be spread evenly over the {num_layers} decoder "
                f"layers of {args.preset}."
            )
    if any(argument.split("=")[0] in ("--model", "--config_overrides") for argument in pretrain_arguments):
        parser.error("--model and --config_overrides are what this script sets.")

    runs: dict[int, list[dict[str, float]]] = {}
    for count in args.cross_layers:
        for seed in args.seeds:
            folder = args.output_dir / f"{count}-layers-seed-{seed}"
            print(f"{count} cross-attention layer(s), seed {seed}: {folder}", flush=True)
            result = train(folder, args.preset, num_layers // count, seed, pretrain_arguments)
            runs.setdefault(count, []).append(result)
    table = ablation_table(runs)
    (args.output_dir / "ablation.json").write_text(json.dumps(runs, indent=2) + "\n")
    (args.output_dir / "ablation.md").write_text(table + "\n")
    print(f"\n{table}\n\nMean over {len(args.seeds)} seed(s). The numbers are in {args.output_dir / 'ablation.json'}.")


if __name__ == "__main__":
    main()
