"""One training step of GRR-CoCa, Baseline CoCa and CoCa at equal parameters, and of the chunked loss: ratios of one run.

python benchmarks/training_step.py --size base --batch_size 4
"""

import argparse

import torch
from torch import nn

from timing import median_seconds
from triptych import GrrCocaConfig, GrrCocaForConditionalGeneration
from triptych.hub import describe_machine
from triptych.modeling.losses import captioning_loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="tiny", choices=["tiny", "base", "large"])
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--text_length", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5, help="the median of so many steps counts")
    parser.add_argument("--bf16", action="store_true", help="autocast to bf16")
    args = parser.parse_args()

    torch.manual_seed(0)
    # CoCa in the paper's own layer layout: open_clip's has a second feed-forward layer per multimodal layer.
    configs = {
        "CoCa": GrrCocaConfig.from_preset(f"coca-{args.size}", text_config={"multimodal_layer_type": "coca"}),
        "Baseline CoCa": GrrCocaConfig.from_preset(f"baseline-coca-{args.size}-iso"),
        "GRR-CoCa": GrrCocaConfig.from_preset(f"grr-coca-{args.size}-iso"),
    }
    steps, counts = {}, {}
    for name, config in configs.items():
        model = GrrCocaForConditionalGeneration(config).train()
        size = model.config.vision_config.image_size
        ids = torch.randint(1, 49000, (args.batch_size, args.text_length))
        batch = {"pixel_values": torch.randn(args.batch_size, 3, size, size), "input_ids": ids, "labels": ids}
        counts[name] = model.num_parameters()

        def step(model=model, batch=batch) -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
                loss = model(**batch).loss
            loss.backward()
            model.zero_grad()

        steps[name] = step
    seconds = median_seconds(steps, args.repeats)
    precision = "bf16 autocast" if args.bf16 else "fp32"
    print(f"{args.size}, batch {args.batch_size}, {args.text_length} tokens, {precision}, {describe_machine()}")
    print(f"{'model':<15} {'parameters':>12} {'step':>9} {'ratio to CoCa':>14}")
    for name, value in seconds.items():
        print(f"{name:<15} {counts[name] / 1e6:>10.1f} M {value:>7.3f} s {value / seconds['CoCa']:>13.2f}x")

    # The captioning loss alone, against keeping all vocabulary logits
    hidden, vocabulary = 512, 49408
    head = nn.Linear(hidden, vocabulary, bias=False)
    states = torch.randn(32, 65, hidden, requires_grad=True)
    labels = torch.randint(0, vocabulary, (32, 65))

    def plain() -> None:
        logits = head(states)[:, :-1].flatten(0, 1).float()
        nn.functional.cross_entropy(logits, labels[:, 1:].flatten()).backward()

    def chunked() -> None:
        captioning_loss(states, labels, head).backward()

    seconds = median_seconds({"plain": plain, "chunked": chunked}, args.repeats)
    logits_mb, chunk_mb = 32 * 64 * vocabulary * 4 / 2**20, 1024 * vocabulary * 4 / 2**20
    print(
        f"\ncaptioning loss over {32 * 64} tokens and {vocabulary} words: chunked takes "
        f"{seconds['chunked'] / seconds['plain']:.2f}x the time and holds {chunk_mb:.0f} MiB of logits instead of "
        f"{logits_mb:.0f} MiB (and stays there for any batch)"
    )


if __name__ == "__main__":
    main()
