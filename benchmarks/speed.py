"""Training steps, captions, answers and attention kernels: medians taken in turns, as ratios to the first of each table.

    python benchmarks/speed.py --parts families passes captions visual_words --bf16
    python benchmarks/speed.py --parts captions --presets coca-vit-b-32 --batch_size 2
    python benchmarks/speed.py --parts large_batches --size base --batch_size 8
    python benchmarks/speed.py --device cuda --size base --batch_size 64 --bf16

On a GPU every table has the memory too that a call needs beside what was there before.
"""

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.utils import is_flash_attn_2_available

from timing import in_fresh_process, median_seconds, peak_gib, peak_mib
from triptych import MammutConfig, MammutVisionModel, VwLmmConfig, VwLmmForCausalLM
from triptych.hub import describe_machine
from triptych.modeling.transformers_versions import checkpoint_activations
from triptych.training.captioners import FAMILIES
from triptych.training.gradient_cache import backward_in_parts


def compare(title: str, functions: dict[str, Callable[[], Any]], args: argparse.Namespace) -> None:
    """Print the median time of every function, its ratio to the first one's, and on a GPU its memory."""
    print(title)
    seconds = median_seconds(functions, args.repeats, args.device)
    for name, function in functions.items():
        memory = f" {peak_gib(function):8.2f} GiB" if args.device == "cuda" else ""
        ratio = seconds[name] / next(iter(seconds.values()))
        print(f"  {name:<24} {1e3 * seconds[name]:10.1f} ms {ratio:7.2f}x{memory}", flush=True)


def build(preset: str, args: argparse.Namespace, attention: str = "sdpa", **fields: Any) -> nn.Module:
    config_class, model_class, _ = next(family for family in FAMILIES.values() if preset in family[0].presets())
    torch.manual_seed(0)
    config = config_class.from_preset(preset, **fields)
    return model_class._from_config(config, attn_implementation=attention).to(args.device)


def batch_for(model: nn.Module, args: argparse.Namespace) -> dict[str, torch.Tensor]:
    size, vocabulary = model.config.vision_config.image_size, model.config.text_config.vocab_size
    ids = torch.randint(3, vocabulary, (args.batch_size, args.text_length), device=args.device)
    pixel_values = torch.randn(args.batch_size, 3, size, size, device=args.device)
    return {"pixel_values": pixel_values, "input_ids": ids, "labels": ids}


def autocast(args: argparse.Namespace, bf16: bool) -> torch.autocast:
    return torch.autocast(args.device, torch.bfloat16, enabled=bf16)


def step(model: nn.Module, batch: dict[str, torch.Tensor], args: argparse.Namespace, bf16: bool) -> None:
    with autocast(args, bf16):
        loss = model(**batch).loss
    loss.backward()
    model.zero_grad()


def families(args: argparse.Namespace) -> None:
    """A training step of CoCa, Baseline CoCa and GRR-CoCa at equal parameters."""
    # CoCa in the paper's own layer layout: open_clip's has a second feed-forward layer per multimodal layer.
    models = {
        "CoCa": build(f"coca-{args.size}", args, text_config={"multimodal_layer_type": "coca"}),
        "Baseline CoCa": build(f"baseline-coca-{args.size}-iso", args),
        "GRR-CoCa": build(f"grr-coca-{args.size}-iso", args),
    }
    steps = {}
    for name, model in models.items():
        label = f"{name}, {model.num_parameters() / 1e6:.1f} M"
        steps[label] = partial(step, model.train(), batch_for(model, args), args, args.bf16)
    compare(f"Training step of the {args.size} presets", steps, args)


def passes(args: argparse.Namespace) -> None:
    """MaMMUT's joint step against a contrastive one, and a clip through tubes against its frames one by one."""
    for preset in (preset for preset in args.presets if preset in MammutConfig.presets()):
        model = build(preset, args).train()
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
        vision = MammutVisionModel(config).to(args.device).eval()
        clip = torch.randn(1, args.num_frames, 3, 224, 224, device=args.device)
        with torch.no_grad(), autocast(args, args.bf16):
            ways = {
                "tubes": lambda vision=vision, clip=clip: vision(pixel_values_videos=clip),
                "frames one by one": lambda vision=vision, clip=clip: [vision(frame[None]) for frame in clip[0]],
            }
            compare(f"{preset}: {args.num_frames} frames of 224 x 224", ways, args)


def steps(args: argparse.Namespace) -> None:
    """Training steps in fp32 and bf16 autocast, compiled, and with checkpointed activations."""
    for preset in args.presets:
        functions = {}
        for label in ("fp32", "bf16", "bf16 compiled", "bf16 checkpointed"):
            model = build(preset, args).train()
            if "checkpointed" in label:
                checkpoint_activations(model)
            forward = torch.compile(model) if "compiled" in label else model
            functions[label] = partial(step, forward, batch_for(model, args), args, label != "fp32")
        compare(f"{preset}: training step", functions, args)


def parts_of(preset: str, count: int, args: argparse.Namespace) -> tuple[nn.Module, list[dict[str, torch.Tensor]]]:
    """A model with gradients, and as many batches of `--batch_size` as make a large one of `count` pairs."""
    model = build(preset, args).train()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return model, [batch_for(model, args) for _ in range(count // args.batch_size)]


def in_parts(model: nn.Module, parts: list[dict[str, torch.Tensor]], args: argparse.Namespace) -> None:
    precision = "bf16" if args.bf16 else "no"
    accelerator = Accelerator(cpu=args.device == "cpu", mixed_precision=precision)
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
        sizes = [factor * args.batch_size for factor in (1, 4, 16)]
        model, parts = parts_of(preset, sizes[-1], args)

        def plain(model: nn.Module = model, parts: list[dict] = parts) -> None:
            for part in parts:
                with autocast(args, args.bf16):
                    loss = model(**part).loss
                loss.backward()

        ways = {"plain": plain, "one batch in parts": partial(in_parts, model, parts, args)}
        compare(f"{preset}: {sizes[-1]} pairs, {args.batch_size} at a time", ways, args)
        if args.device == "cpu":
            for size in sizes:
                mib = in_fresh_process(memory_in_parts, preset, size, args)
                print(f"  {size} pairs need {mib:.0f} MiB", flush=True)


@torch.no_grad()
def captions(args: argparse.Namespace) -> None:
    """Captions with every cache, greedily and with 6 beams, and what encoding the images once per beam would cost."""
    for preset in args.presets:
        model = build(preset, args).to(args.dtype).eval()
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
    model = VwLmmForCausalLM(VwLmmConfig.from_preset("vw-lmm-smollm2-135m")).to(args.device, args.dtype).eval()
    config, size = model.config, model.config.vision_config.image_size
    row = [1] + [config.image_token_id] * config.image_seq_length + list(range(5, 15))
    ids = torch.tensor([row] * args.batch_size, device=args.device)
    images = torch.randn(args.batch_size, 3, size, size, device=args.device, dtype=args.dtype)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": images}
    generate = partial(model.generate, **inputs, **args.generation)
    functions = {name: partial(generate, **options) for name, options in args.caches.items()}
    compare(f"vw-lmm-smollm2-135m: answers of {args.new_tokens} tokens", functions, args)


def visual_words(args: argparse.Namespace) -> None:
    """VW-LMM's last stage against transformers' Llava of the same parts: a step, and the operations of one at 7 B."""

    presets = VwLmmConfig.presets()

    def pair(preset: str, vision: dict, **text: Any) -> tuple[dict[str, nn.Module], dict[str, torch.Tensor]]:
        fields = {**presets[preset], "vision_feature_select_strategy": "default", "detach_visual_target": True}
        fields["vision_config"] = presets["vw-lmm-vicuna-7b"]["vision_config"] | vision
        fields["text_config"] = presets[preset]["text_config"] | text
        config = VwLmmConfig(**fields)
        parts = {"vision_config": config.vision_config, "text_config": config.text_config}
        llava = LlavaForConditionalGeneration(LlavaConfig(**parts, image_token_index=config.image_token_id))
        models = {"Llava": llava, "VW-LMM": VwLmmForCausalLM(config)}
        for model in models.values():
            model.model.vision_tower.requires_grad_(False)
        models["VW-LMM"].vm_head.requires_grad_(False)
        ids = torch.randint(10, config.image_token_id, (args.batch_size, args.text_length))
        image = torch.full((args.batch_size, config.image_seq_length), config.image_token_id)
        labels = ids.clone()
        labels[:, : args.text_length // 2] = -100  # the second half of the text is the answer
        labels = torch.cat([torch.full_like(image, -100), labels], dim=1)
        pixel_values = torch.randn(args.batch_size, 3, *[config.vision_config.image_size] * 2)
        return models, {"pixel_values": pixel_values, "input_ids": torch.cat([image, ids], dim=1), "labels": labels}

    # CLIP ViT-B/14 at 336 pixels: 576 patches, at a size that suits a small language model
    clip = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    models, batch = pair("vw-lmm-smollm2-135m", clip)
    batch = {name: tensor.to(args.device) for name, tensor in batch.items()}
    steps = {
        name: partial(step, model.to(args.device).train(), batch, args, args.bf16) for name, model in models.items()
    }
    compare("vw-lmm-smollm2-135m with 576 patches: training step", steps, args)

    operations = dict.fromkeys(models, 0)
    for layers, share in ((1, -30), (2, 31)):  # every layer costs the same: 32 of them cost one and 31 differences
        models, batch = pair("vw-lmm-vicuna-7b", {}, num_hidden_layers=layers)
        for name, model in models.items():
            with FlopCounterMode(display=False) as counter:
                step(model.to(torch.bfloat16), batch, args, bf16=True)
            operations[name] += share * counter.get_total_flops()
    ratio = operations["VW-LMM"] / operations["Llava"]
    print(
        f"Vicuna 7B: {' and '.join(f'{name} {count / 1e12:.1f} T' for name, count in operations.items())}, {ratio:.3f}x"
    )


@torch.no_grad()
def kernels(args: argparse.Namespace) -> None:
    """Deviation of logits and embeddings from fp32 with eager attention."""
    for preset in args.presets:
        reference = build(preset, args, "eager").eval()
        batch = batch_for(reference, args)
        expected = reference(**batch)
        print(f"{preset}: relative deviation from fp32 with eager attention")
        for attention in ["sdpa", "flex_attention"] + ["flash_attention_2"] * is_flash_attn_2_available():
            for dtype in (torch.float32, torch.bfloat16)[attention == "flash_attention_2" :]:
                found = build(preset, args, attention).to(dtype).eval()(**batch)
                # Untrained logits are all alike, so the embeddings of images are compared too.
                logits, embeds = (
                    ((found[name].float() - expected[name]).norm() / expected[name].norm()).item()
                    for name in ("logits", "image_embeds")
                )
                name = f"{attention}, {str(dtype).removeprefix('torch.')}"
                print(f"  {name:<24} logits {logits:.1e}, image embeddings {embeds:.1e}", flush=True)


PARTS = {
    part.__name__: part for part in (families, passes, steps, large_batches, captions, answers, visual_words, kernels)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="what to measure")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--size", default="tiny", choices=["tiny", "base", "large"])
    parser.add_argument("--presets", nargs="+", help="captioners; default: GRR-CoCa and MaMMUT of --size")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--text_length", type=int, default=32, help="tokens of a caption in training")
    parser.add_argument("--new_tokens", type=int, default=24, help="tokens of a caption or answer that is generated")
    parser.add_argument("--num_frames", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5, help="the median of so many turns counts")
    parser.add_argument("--bf16", action="store_true", help="train with autocast to bf16, generate with bf16 weights")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is here")
    known = {preset for config_class, *_ in FAMILIES.values() for preset in config_class.presets()}
    args.presets = args.presets or [f"grr-coca-{args.size}", f"mammut-{args.size}"]
    if unknown := set(args.presets) - known:
        parser.error(f"--presets: {sorted(unknown)} are not among {sorted(known)}")
    args.dtype = torch.bfloat16 if args.bf16 else torch.float32
    args.generation = {"max_new_tokens": args.new_tokens, "min_new_tokens": args.new_tokens, "do_sample": False}
    # On a GPU, `generate` compiles with a static cache.
    args.caches = {"cache": {}, "static cache": {"cache_implementation": "static"}}
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "1000000"  # fresh processes give back what they free: peaks are exact
    card = f"{torch.cuda.get_device_name()}, " if args.device == "cuda" else ""
    print(f"batch {args.batch_size}, {args.text_length} tokens, {str(args.dtype)[6:]}, {card}{describe_machine()}")
    for name in args.parts:
        PARTS[name](args)


if __name__ == "__main__":
    main()
