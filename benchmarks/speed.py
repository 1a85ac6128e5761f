"""Training steps, captions and answers on the CPU: medians taken in turns, as ratios to the first of each table.

    python benchmarks/speed.py --parts families passes captions visual_words --bf16
    python benchmarks/speed.py --parts captions --presets coca-vit-b-32 --batch_size 2
    python benchmarks/speed.py --parts large_batches --size base --batch_size 8

`gpu_check.py` is for GPUs.
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from random_models import CLIP_B, captioner, chat_config, chat_model, conversations, pairs
from timing import in_fresh_process, median_seconds, peak_mib
from triptych import MammutConfig, MammutVisionModel, VwLmmConfig, VwLmmForCausalLM
from triptych.hub import describe_machine
from triptych.training.captioners import FAMILIES
from triptych.training.compilation import compile_layers, without_compilation
from triptych.training.gradient_cache import backward_in_parts


def compare(title: str, functions: dict[str, Callable[[], Any]], args: argparse.Namespace) -> None:
    """Print the median time of every function, and its ratio to the first one's."""
    print(title)
    seconds = median_seconds(functions, args.repeats)
    for name in functions:
        ratio = seconds[name] / next(iter(seconds.values()))
        print(f"  {name:<24} {1e3 * seconds[name]:10.1f} ms {ratio:7.2f}x", flush=True)


def batch_for(model: nn.Module, args: argparse.Namespace) -> dict[str, torch.Tensor]:
    return pairs(model, args.batch_size, args.text_length)


def step(model: nn.Module, batch: dict[str, torch.Tensor], args: argparse.Namespace, bf16: bool) -> float:
    """Loss of one training step without an optimiser."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(**batch).loss
    loss.backward()
    model.zero_grad()
    return loss.item()


def families(args: argparse.Namespace) -> None:
    """A training step of CoCa, Baseline CoCa and GRR-CoCa at equal parameters."""
    # CoCa in the paper's own layer layout: open_clip's has a second feed-forward layer per multimodal layer.
    models = {
        "CoCa": captioner(f"coca-{args.size}", text_config={"multimodal_layer_type": "coca"}),
        "Baseline CoCa": captioner(f"baseline-coca-{args.size}-iso"),
        "GRR-CoCa": captioner(f"grr-coca-{args.size}-iso"),
    }
    steps = {}
    for name, model in models.items():
        label = f"{name}, {model.num_parameters() / 1e6:.1f} M"
        steps[label] = partial(step, model.train(), batch_for(model, args), args, args.bf16)
    compare(f"Training step of the {args.size} presets", steps, args)


def passes(args: argparse.Namespace) -> None:
    """MaMMUT's joint step against a contrastive one, and a clip through tubes against its frames one by one."""
    for preset in (preset for preset in args.presets if preset in MammutConfig.presets()):
        model = captioner(preset).train()
        joint = batch_for(model, args)
        contrastive = {**joint, "return_loss": True}
        del contrastive["labels"]
        steps = {
            "contrastive": partial(step, model.model, contrastive, args, args.bf16),
            "joint": partial(step, model, joint, args, args.bf16),
        }
        compare(f"{preset}: training step", steps, args)

        fields = {"use_tubes": True, "use_fixed_positions": True, "image_size": 224}
        config = MammutConfig.from_preset(preset, vision_config=fields).vision_config
        vision = MammutVisionModel(config).eval()
        clip = torch.randn(1, args.num_frames, 3, 224, 224)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            ways = {
                "tubes": lambda vision=vision, clip=clip: vision(pixel_values_videos=clip),
                "frames one by one": lambda vision=vision, clip=clip: [vision(frame[None]) for frame in clip[0]],
            }
            compare(f"{preset}: {args.num_frames} frames of 224 x 224", ways, args)


def parts_of(preset: str, count: int, args: argparse.Namespace) -> tuple[nn.Module, list[dict[str, torch.Tensor]]]:
    """A model with gradients, and as many batches of `--batch_size` as make a large one of `count` pairs."""
    model = captioner(preset).train()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return model, [batch_for(model, args) for _ in range(count // args.batch_size)]


def in_parts(model: nn.Module, parts: list[dict[str, torch.Tensor]], args: argparse.Namespace) -> None:
    precision = "bf16" if args.bf16 else "no"
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    backward_in_parts(model, parts, accelerator, {}, lambda part: part)


def memory_in_parts(preset: str, count: int, args: argparse.Namespace) -> float:
    """MiB beside weights, gradients and the pictures; in a process of its own."""
    model, parts = parts_of(preset, count, args)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = peak_mib()
    in_parts(model, parts, args)
    return peak_mib() - before


def large_batches(args: argparse.Namespace) -> None:
    """Gradient caching beside plain steps on as many pairs, each of which compares its own pairs alone; memory by size."""
    for preset in args.presets:
        sizes = [args.batch_size * factor for factor in (1, 4, args.num_parts)]
        model, parts = parts_of(preset, sizes[-1], args)

        def plain(model: nn.Module = model, parts: list[dict] = parts) -> None:
            for part in parts:
                with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
                    loss = model(**part).loss
                loss.backward()

        ways = {"plain": plain, "one batch in parts": partial(in_parts, model, parts, args)}
        compare(f"{preset}: {sizes[-1]} pairs, {args.batch_size} at a time", ways, args)
        for size in sizes:
            mib = in_fresh_process(memory_in_parts, preset, size, args)
            print(f"  {size} pairs need {mib:.0f} MiB", flush=True)


@torch.no_grad()
def captions(args: argparse.Namespace) -> None:
    """Captions with every cache, greedily and with 6 beams, and what encoding the images once per beam would cost."""
    for preset in args.presets:
        model = captioner(preset).to(args.dtype).eval()
        images = batch_for(model, args)["pixel_values"].to(args.dtype)
        for search, beams in (("greedy", 1), ("6 beams", 6)):
            functions = {
                name: partial(model.generate, pixel_values=images, num_beams=beams, **args.generation, **options)
                for name, options in {**args.caches, "no cache": {"use_cache": False}}.items()
            }
            compare(f"{preset}, {search}: captions of {args.new_tokens} tokens", functions, args)
            expected, *others = (function() for function in functions.values())
            alike = (f"{(ids == expected).float().mean():.3f}" for ids in others)
            print(f"  ids alike: {', '.join(alike)}")
        encoders = {
            "images once": partial(model.get_image_features, images),
            "once per beam, 6": partial(model.get_image_features, images.repeat_interleave(6, dim=0)),
        }
        compare(f"{preset}: encoding", encoders, args)


@torch.no_grad()
def answers(args: argparse.Namespace) -> None:
    """Answers of VW-LMM at SmolLM2's size."""
    torch.manual_seed(0)
    model = VwLmmForCausalLM(VwLmmConfig.from_preset("vw-lmm-smollm2-135m")).to(args.dtype).eval()
    config, size = model.config, model.config.vision_config.image_size
    row = [1] + [config.image_token_id] * config.image_seq_length + list(range(5, 15))
    ids = torch.tensor([row] * args.batch_size)
    images = torch.randn(args.batch_size, 3, size, size, dtype=args.dtype)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": images}
    generate = partial(model.generate, **inputs, **args.generation)
    functions = {name: partial(generate, **options) for name, options in args.caches.items()}
    compare(f"vw-lmm-smollm2-135m: answers of {args.new_tokens} tokens", functions, args)


def visual_words(args: argparse.Namespace) -> None:
    """VW-LMM's last stage against transformers' Llava of the same parts: a step, and the operations of one at 7 B."""
    kinds = ("Llava", "VW-LMM")
    # CLIP ViT-B/14 at 336 pixels: 576 patches, at a size that suits a small language model
    config = chat_config("vw-lmm-smollm2-135m", CLIP_B, {})
    batch = conversations(config, args.batch_size, args.text_length)
    steps = {kind: partial(step, chat_model(config, kind).train(), batch, args, args.bf16) for kind in kinds}
    compare("vw-lmm-smollm2-135m with 576 patches: training step", steps, args)

    operations = dict.fromkeys(kinds, 0)
    for layers, share in ((1, -30), (2, 31)):  # every layer costs the same: 32 of them cost one and 31 differences
        config = chat_config("vw-lmm-vicuna-7b", {}, {"num_hidden_layers": layers})
        batch = conversations(config, args.batch_size, args.text_length, dtype=torch.bfloat16)
        for kind in kinds:
            with FlopCounterMode(display=False) as counter:
                step(chat_model(config, kind, dtype=torch.bfloat16).train(), batch, args, bf16=False)
            operations[kind] += share * counter.get_total_flops()
    ratio = operations["VW-LMM"] / operations["Llava"]
    print(
        f"Vicuna 7B: {' and '.join(f'{name} {count / 1e12:.1f} T' for name, count in operations.items())}, {ratio:.3f}x"
    )


def compiled(args: argparse.Namespace) -> None:
    """Training steps with compiled layers, on texts of five lengths, beside the same steps as they are written.

    VW-LMM, twenty times as large, gets an eighth of the batch.
    """
    config = chat_config("vw-lmm-smollm2-135m", CLIP_B | {"num_hidden_layers": 2, "image_size": 112}, {})
    lengths = [args.text_length * share // 8 for share in (8, 5, 6, 7, 4)]
    models = {preset: captioner(preset, attention="eager").train() for preset in args.presets}
    models["vw-lmm-smollm2-135m"] = chat_model(config).train()
    models["vw-lmm-smollm2-135m"].set_attn_implementation("eager")
    for name, model in models.items():
        batches = [
            pairs(model, args.batch_size, length)
            if name in args.presets
            else conversations(config, max(1, args.batch_size // 8), length)
            for length in lengths
        ]

        def steps(model: nn.Module = model, batches: list[dict] = batches) -> float:
            return sum(step(model, batch, args, args.bf16) for batch in batches)

        def plainly(steps: Callable[[], float] = steps) -> float:
            with without_compilation():
                return steps()

        compile_layers(model)
        started = time.perf_counter()
        relative = steps() / plainly() - 1
        print(f"{name}: compiled in {time.perf_counter() - started:.0f} s; losses differ by {relative:.1e}")
        compare(f"{name}: {len(lengths)} steps", {"as written": plainly, "compiled": steps}, args)


PARTS = {part.__name__: part for part in (families, passes, compiled, large_batches, captions, answers, visual_words)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="what to measure")
    parser.add_argument("--size", default="tiny", choices=["tiny", "base", "large"])
    parser.add_argument("--presets", nargs="+", help="captioners; default: GRR-CoCa and MaMMUT of --size")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--num_parts", type=int, default=16, help="batches that large_batches compares as one")
    parser.add_argument("--text_length", type=int, default=32, help="tokens of a caption in training")
    parser.add_argument("--new_tokens", type=int, default=24, help="tokens of a caption or answer that is generated")
    parser.add_argument("--num_frames", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5, help="the median of so many turns counts")
    parser.add_argument("--bf16", action="store_true", help="train with autocast to bf16, generate with bf16 weights")
    args = parser.parse_args()
    known = {preset for config_class, *_ in FAMILIES.values() for preset in config_class.presets()}
    args.presets = args.presets or [f"grr-coca-{args.size}", f"mammut-{args.size}"]
    if unknown := set(args.presets) - known:
        parser.error(f"--presets: {sorted(unknown)} are not among {sorted(known)}")
    args.dtype = torch.bfloat16 if args.bf16 else torch.float32
    args.generation = {"max_new_tokens": args.new_tokens, "min_new_tokens": args.new_tokens, "do_sample": False}
    args.caches = {"cache": {}, "static cache": {"cache_implementation": "static"}}
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "1000000"  # fresh processes give back what they free: peaks are exact
    print(f"batch {args.batch_size}, {args.text_length} tokens, {str(args.dtype)[6:]}, {describe_machine()}")
    for name in args.parts:
        PARTS[name](args)


if __name__ == "__main__":
    main()
