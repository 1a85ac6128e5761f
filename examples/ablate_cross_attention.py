"""How many cross-attention layers does MaMMUT's decoder need? Train 1, 2, 4 of them on the same data and seeds.

    python examples/ablate_cross_attention.py --output_dir outputs/cross-attention --num_epochs 6
    python examples/ablate_cross_attention.py --output_dir outputs/cross-attention --seeds 0 1 2 --dataset path/to/folder

Prints the ablation of the paper (section 6: retrieval and generation pull in different directions) for this data. Every run is one of
examples/pretrain.py with `--model mammut`, which takes all further arguments, and leaves its repository below output_dir; the same
command goes on after a stop and repeats no finished run.
"""

import argparse
import json
import os
from pathlib import Path

from triptych import MammutConfig
from triptych.evaluation.comparisons import markdown, mean_table
from triptych.training.study import Run, Study, script_trainer


PRETRAIN = Path(__file__).with_name("pretrain.py")
# Column of the table, key of eval_results.json
COLUMNS = {
    "text-to-image R@1": "text_to_image_recall@1",
    "image-to-text R@1": "image_to_text_recall@1",
    "caption perplexity": "perplexity",
    "caption word F1": "caption_word_f1",
}


def by_name(words: list[str]) -> dict[str, str | bool]:
    """Arguments of another script by name; those without a value are flags."""
    arguments: dict[str, str | bool] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name, _, value = word.removeprefix("--").partition("=")
            arguments[name] = value or True
        elif arguments.get(name) is True:
            arguments[name] = word
        else:
            raise SystemExit(f"{word!r} belongs to no argument; see --help.")
    return arguments


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
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
    arguments = by_name(pretrain_arguments)
    if taken := {"model", "config_overrides", "seed", "resume"} & arguments.keys():
        parser.error(f"--{min(taken)} is what this script sets.")

    runs = {
        count: [
            Run(
                f"{count}-layers",
                args.preset,
                seed,
                {
                    "model": "mammut",
                    "preset": args.preset,
                    "config_overrides": {"text_config": {"cross_attn_every": num_layers // count}},
                    **arguments,
                },
            )
            for seed in args.seeds
        ]
        for count in args.cross_layers
    }
    study = Study(args.output_dir, script_trainer(PRETRAIN, os.cpu_count() or 1))
    study.finish((run for seeds in runs.values() for run in seeds), "cross-attention")
    results = {count: [study.results(run) for run in seeds] for count, seeds in runs.items()}
    table = markdown(mean_table(results, COLUMNS, "cross-attention layers"))
    (args.output_dir / "ablation.json").write_text(json.dumps(results, indent=2) + "\n")
    (args.output_dir / "ablation.md").write_text(table + "\n")
    print(f"\n{table}\n\nMean over {len(args.seeds)} seed(s). The numbers are in {args.output_dir / 'ablation.json'}.")


if __name__ == "__main__":
    main()
