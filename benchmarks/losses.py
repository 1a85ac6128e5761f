"""Losses in chunks against keeping everything: time, and memory beside inputs and gradients.

Those over a vocabulary against all logits, contrastive ones against all similarities.

python benchmarks/losses.py
python benchmarks/losses.py --device cuda --rows 4608 --hidden 4096 --vocabulary 32000 --bf16
"""

import argparse
import os
from functools import partial
from pathlib import Path

import torch
from torch import nn

from timing import in_fresh_process, median_seconds, peak_gib, peak_mib
from triptych.hub import describe_machine
from triptych.modeling import contrastive_losses
from triptych.modeling.losses import captioning_loss, visual_modeling_loss


def captions(states, features, labels, lm_head, vm_head):
    return captioning_loss(states[None], labels[None], lm_head)


def captions_of_all_logits(states, features, labels, lm_head, vm_head):
    return nn.functional.cross_entropy(lm_head(states[:-1]).float(), labels[1:])


def visual_words(states, features, labels, lm_head, vm_head):
    return visual_modeling_loss(states, features, lm_head, vm_head)


def visual_words_of_all_logits(states, features, labels, lm_head, vm_head):
    target = vm_head(features).float().softmax(-1)
    return nn.functional.kl_div(lm_head(states).float().log_softmax(-1), target, reduction="batchmean")


LOSSES = {"captions": (captions_of_all_logits, captions), "visual words": (visual_words_of_all_logits, visual_words)}


def softmax(images, texts, scale):
    return contrastive_losses.contrastive_losses(images, texts, scale, per_pair=False)


def focal(images, texts, scale):
    return contrastive_losses.focal_contrastive_losses(images, texts, scale, per_pair=False)


def contrastive_step_of(loss, chunk: int, args: argparse.Namespace):
    """One forward and backward pass of a contrastive loss, with so many similarities at a time."""
    torch.manual_seed(0)
    embeds = [nn.functional.normalize(torch.randn(args.pairs, 512, device=args.device), dim=-1) for _ in range(2)]
    inputs = [*embeds, torch.tensor([14.0], device=args.device)]
    for each in inputs:
        each.requires_grad_().grad = torch.zeros_like(each)

    def step() -> None:
        contrastive_losses._CHUNK = chunk
        loss(*inputs).backward()

    return step


def step_of(loss, args: argparse.Namespace):
    """One forward and backward pass of a loss. The gradients exist already, so they count on no side."""
    options = {"device": args.device, "dtype": torch.bfloat16 if args.bf16 else torch.float32}
    torch.manual_seed(0)
    heads = [nn.Linear(args.hidden, args.vocabulary, bias=False, **options) for _ in range(2)]
    heads[1].requires_grad_(False)  # as in VW-LMM's last stage
    states, features = (torch.randn(args.rows, args.hidden, requires_grad=True, **options) for _ in range(2))
    for tensor in (states, features, heads[0].weight):
        tensor.grad = torch.ones_like(tensor)
    labels = torch.randint(args.vocabulary, (args.rows,), device=args.device)
    return lambda: loss(states, features, labels, *heads).backward()


def peak_of(make_step, *given) -> float:
    """Memory of one step, in MiB."""
    step, args = make_step(*given), given[-1]
    if args.device == "cuda":
        return 1024 * peak_gib(step)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = peak_mib()
    step()
    return peak_mib() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rows", type=int, default=1152, help="tokens or patches: two images of 576")
    parser.add_argument("--hidden", type=int, default=576, help="width of the language model")
    parser.add_argument("--vocabulary", type=int, default=49_152, help="words")
    parser.add_argument("--pairs", type=int, default=8192, help="of the contrastive losses")
    parser.add_argument("--repeats", type=int, default=5, help="the median of so many turns counts")
    parser.add_argument("--bf16", action="store_true", help="weights and states in bf16")
    args = parser.parse_args()
    print(f"{args.rows} rows of width {args.hidden}, {args.vocabulary} words, {describe_machine()}")
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "1000000"  # fresh processes give back what they free: peaks are exact
    for name, (naive, chunked) in LOSSES.items():
        compare(name, "all logits", partial(step_of, naive), partial(step_of, chunked), args)
    print(f"{args.pairs} pairs of width 512, fp32")
    for loss in (softmax, focal):
        steps = [partial(contrastive_step_of, loss, chunk) for chunk in (2**62, contrastive_losses._CHUNK)]
        compare(f"contrastive, {loss.__name__}", "all similarities", *steps, args)


def compare(name: str, naive: str, *steps_and_args) -> None:
    """Print time and memory of a step in chunks beside one that keeps everything."""
    *steps, args = steps_and_args
    ways = dict(zip((naive, "chunks"), steps, strict=True))
    seconds = median_seconds({way: step(args) for way, step in ways.items()}, args.repeats, args.device)
    measure = peak_of if args.device == "cuda" else partial(in_fresh_process, peak_of)
    peaks = {way: measure(step, args) for way, step in ways.items()}
    print(
        f"{name}: chunks take {seconds['chunks'] / seconds[naive]:.2f}x the time and {peaks['chunks']:.0f} MiB "
        f"instead of {peaks[naive]:.0f}, 1/{peaks[naive] / peaks['chunks']:.1f}"
    )


if __name__ == "__main__":
    main()
