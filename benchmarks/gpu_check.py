"""Everything that needs a GPU, in one script of a few minutes: agreement, training steps, decoding, large batches, sharding, 4 bits.

    python benchmarks/gpu_check.py --output outputs/gpu_check.json
    python benchmarks/gpu_check.py --output outputs/gpu_check.json --parts training language
    python benchmarks/gpu_check.py --output outputs/rehearsal.json --rehearse

Weights are random and nothing is downloaded. What fails or is not installed is said in the JSON and stops nothing else; behind the budget
no part begins. The file is written anew after every number, so that a killed script leaves what it has. `--rehearse` does the same
with tiny models on the CPU: its numbers mean nothing, but every line runs. MFU is the rate of the operations that a step needs, without
what checkpointing computes again, as a share of the data sheet's; "of a product" is the share of what one large product reaches here.
"""

import argparse
import gc
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText
from transformers.utils import is_flash_attn_2_available

from losses import LOSSES, step_of
from random_models import captioner, chat_config, chat_model, conversations, pairs
from timing import median_seconds, peak_gib
from triptych import VwLmmConfig
from triptych.hub import describe_machine
from triptych.modeling.transformers_versions import checkpoint_activations
from triptych.training.gradient_cache import backward_in_parts


# Dense products in bf16, operations per second, by what the names of the devices hold (NVIDIA's data sheets)
DATA_SHEETS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "4090": 165e12,
}
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
# of VW-LMM: fields of its tower, of its language model, and others
SHAPES: dict[str, tuple[dict, dict, dict]] = {
    "1 B": (
        {},
        {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_key_value_heads": 8},
        {},
    ),
    "7 B": ({}, {}, {}),
    "tiny": (
        SMALL | {"image_size": 56},
        SMALL | {"num_key_value_heads": 2, "vocab_size": 256},
        {"image_token_id": 200, "num_reserved_tokens": 4},
    ),
}
Found = Iterator[tuple[str, dict[str, Any]]]


def chat(shape: str) -> VwLmmConfig:
    """A configuration of the released models' at a size."""
    vision, text, fields = SHAPES[shape]
    return chat_config("vw-lmm-vicuna-7b", vision, text, **fields)


def train_step(forward: Callable, batch: dict[str, torch.Tensor], args: argparse.Namespace, bf16: bool) -> None:
    with torch.autocast(args.device, torch.bfloat16, enabled=bf16):
        loss = forward(**batch).loss
    loss.backward()


def measure(function: Callable[[], Any], args: argparse.Namespace) -> dict[str, float]:
    """Median time, and on a GPU the memory beside what is there already."""
    found = {"ms": 1e3 * median_seconds({"": function}, args.repeats, args.device)[""]}
    if args.device == "cuda":
        found["GiB"] = peak_gib(function)
    return found


def measure_step(
    forward: Callable, model: nn.Module, batch: dict, args: argparse.Namespace, bf16: bool, count: int
) -> dict:
    """The same of a training step whose gradients exist, with rows per second."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    found = measure(partial(train_step, forward, batch, args, bf16), args)
    return found | {"rows / s": 1e3 * count / found["ms"]}


def operations(model: nn.Module, batch: dict, args: argparse.Namespace, bf16: bool) -> float:
    with FlopCounterMode(display=False) as counter:
        train_step(model, batch, args, bf16)
    return counter.get_total_flops()


def with_rates(found: dict[str, float], count: float, args: argparse.Namespace) -> dict[str, float]:
    rate = 1e3 * count / found["ms"]
    shares = {"of a product": rate / args.product_rate}
    peak = next((rate for name, rate in DATA_SHEETS.items() if name in args.device_name), None)
    return found | {"T / s": rate / 1e12, **shares, **({"MFU": rate / peak} if peak else {})}


def machine(args: argparse.Namespace) -> Found:
    """What a product of two large matrices in bf16 and a pass over memory reach."""
    side = 256 if args.rehearse else 8192
    left, right = (torch.randn(side, side, device=args.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = median_seconds({"": lambda: left @ right}, 20, args.device)[""]
    args.product_rate = 2 * side**3 / seconds
    values = torch.empty(2**16 if args.rehearse else 2**30, device=args.device)
    moved = median_seconds({"": lambda: values.mul_(1.0)}, 10, args.device)[""]
    yield "bf16 products", {"T / s": args.product_rate / 1e12}
    yield "memory", {"GB / s": 8 * values.numel() / moved / 1e9}


@torch.no_grad()
def agreement(args: argparse.Namespace) -> Found:
    """Relative deviation of logits and image embeddings from fp32 with eager attention; TF32 is off, as torch has it."""
    for preset in args.presets:
        reference = captioner(preset, args.device, "eager").eval()
        batch = pairs(reference, 4, 32)
        expected = reference(**batch)
        kinds = ["sdpa", *(["flex_attention"] if args.device == "cuda" else [])]
        kinds += ["flash_attention_2"] * (is_flash_attn_2_available() and args.device == "cuda")
        for attention in kinds:
            for dtype in (torch.float32, torch.bfloat16, torch.float16)[attention == "flash_attention_2" :]:
                model = captioner(preset, args.device, attention).to(dtype).eval()
                typed = {**batch, "pixel_values": batch["pixel_values"].to(dtype)}
                found = model(**typed)
                yield f"{preset}, {attention}, {str(dtype)[6:]}", deviations(found, expected)
        compiled = torch.compile(reference, fullgraph=True)  # a graph break is an error
        yield f"{preset}, compiled in one graph, float32", deviations(compiled(**batch), expected)


def deviations(found: Any, expected: Any) -> dict[str, float]:
    def relative(name: str) -> float:
        return ((found[name].float() - expected[name]).norm() / expected[name].norm()).item()

    return {"logits": relative("logits"), "image_embeds": relative("image_embeds")}


def training(args: argparse.Namespace) -> Found:
    """Steps of the captioners: bf16 autocast, compiled, checkpointed; time, memory, MFU."""
    for preset, count in args.training.items():
        for form in ("bf16", "bf16 compiled", "bf16 checkpointed"):
            model = captioner(preset, args.device).train()
            batch = pairs(model, count, 64)
            if form == "bf16":
                needed = count * operations(model, pairs(model, 1, 64), args, bf16=True)
            if "checkpointed" in form:
                checkpoint_activations(model)
            forward = torch.compile(model) if "compiled" in form else model
            found = measure_step(forward, model, batch, args, True, count)
            yield f"{preset}, {count} pairs, {form}", with_rates(found, needed, args)
            del model, forward, batch
            free(args)


def language(args: argparse.Namespace) -> Found:
    """Steps of VW-LMM's last stage beside transformers' Llava: weights, activations and gradients in bf16, checkpointed at 7 B."""
    for shape, count in args.language.items():
        config = chat(shape)
        batch = conversations(config, count, 8 if shape == "tiny" else 128, args.device, torch.bfloat16)
        row = {name: tensor[:1] for name, tensor in batch.items()}
        for kind in ("VW-LMM", "Llava"):
            for form in ("eager", "compiled"):
                model = chat_model(config, kind, args.device, torch.bfloat16).train()
                needed = count * operations(model, row, args, bf16=False)
                if shape == "7 B":
                    checkpoint_activations(model)
                forward = torch.compile(model) if form == "compiled" else model
                found = measure_step(forward, model, batch, args, False, count)
                found["tokens / s"] = batch["input_ids"].shape[1] * found["rows / s"]
                yield f"{kind}, {shape}, {count} rows, {form}", with_rates(found, needed, args)
                del model, forward
                free(args)


@torch.no_grad()
def decoding(args: argparse.Namespace) -> Found:
    """Captions and answers in bf16: no cache, a dynamic one, and a static one, which transformers compiles into CUDA graphs."""
    length = {"max_new_tokens": args.new_tokens, "min_new_tokens": args.new_tokens, "do_sample": False}
    caches: dict[str, dict] = {
        "no cache": {"use_cache": False},
        "dynamic cache": {},
        "static cache": {"cache_implementation": "static"},
    }

    def compare(name: str, model: nn.Module, inputs: dict, count: int, beams: int) -> Found:
        expected = None
        for cache, options in caches.items():
            if beams > 1 and cache == "no cache":
                continue
            generate = partial(model.generate, **inputs, num_beams=beams, **length, **options)
            ids = generate()
            expected = ids if expected is None else expected
            found = measure(generate, args)
            speed = {
                "tokens / s": 1e3 * count * args.new_tokens / found["ms"],
                "ids alike": (ids == expected).float().mean().item(),
            }
            yield f"{name}, {'greedy' if beams == 1 else f'{beams} beams'}, {cache}", found | speed

    for preset in args.presets:
        model = captioner(preset, args.device).to(torch.bfloat16).eval()
        images = pairs(model, args.num_images, 8)["pixel_values"].to(torch.bfloat16)
        for beams in (1, 6):
            yield from compare(preset, model, {"pixel_values": images}, args.num_images, beams)
    shape = next(iter(args.language))
    inputs = conversations(chat(shape), args.num_answers, 16, args.device, torch.bfloat16)
    del inputs["labels"]
    for kind in ("VW-LMM", "Llava"):
        model = chat_model(chat(shape), kind, args.device, torch.bfloat16).eval()
        yield from compare(f"{kind}, {shape}", model, inputs, args.num_answers, 1)
        free(args)


def vocabulary_losses(args: argparse.Namespace) -> Found:
    """The losses over a vocabulary in chunks against keeping all logits."""
    sizes = argparse.Namespace(device=args.device, bf16=True, rows=64, hidden=32, vocabulary=128)
    if not args.rehearse:
        sizes.rows, sizes.hidden, sizes.vocabulary = 4608, 4096, 32_000
    for name, ways in LOSSES.items():
        for way, loss in zip(("all logits", "chunks"), ways, strict=True):
            yield f"{name}, {way}", measure(step_of(loss, sizes), args)


def gradient_cache(args: argparse.Namespace) -> Found:
    """A contrastive batch that comes in parts, beside the same pairs in plain steps that compare each part alone."""
    accelerator = Accelerator(cpu=args.rehearse, mixed_precision="bf16")
    model = captioner("grr-coca-tiny", args.device).train()
    for count in args.cached:
        size = min(1024, count // 2)
        parts = [pairs(model, size, 32) for _ in range(count // size)]

        def plain(parts: list[dict] = parts) -> None:
            for part in parts:
                train_step(model, part, args, bf16=True)

        ways = {
            "plain": plain,
            "cached": partial(backward_in_parts, model, parts, accelerator, {}, lambda part: part),
        }
        for name, step in ways.items():
            yield f"grr-coca-tiny, {count} pairs in parts of {size}, {name}", measure(step, args)


def open_clip(args: argparse.Namespace) -> Found:
    """A joint step of CoCa ViT-B/32 beside open_clip's, with the same weights, in bf16 autocast."""
    from peers import both_coca, coca_batch, our_step, their_step

    args.num_pairs = 2 if args.rehearse else 64
    ours, theirs = (model.train() for model in both_coca(args))
    batch = coca_batch(args, 76)
    for name, model, step in (("triptych", ours, our_step), ("open_clip", theirs, their_step)):

        def in_bf16(model: nn.Module = model, step: Callable = step) -> torch.Tensor:
            with torch.autocast(args.device, torch.bfloat16):
                return step(model, batch)

        yield f"coca-vit-b-32, {args.num_pairs} pairs, {name}", {"loss": in_bf16().item(), **measure(in_bf16, args)}


def sharding(args: argparse.Namespace) -> Found:
    """FSDP2 on one rank: the same loss and gradient as without."""
    from torch.distributed import HashStore, destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    backend = "nccl" if args.device == "cuda" else "gloo"
    init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh(args.device, (1,))
        for preset in args.presets:
            losses, norms = [], []
            for is_sharded in (False, True):
                model = captioner(preset, args.device).train()
                batch = pairs(model, 8, 32)
                if is_sharded:
                    for layer in (each for each in model.modules() if type(each).__name__ in model._no_split_modules):
                        fully_shard(layer, mesh=mesh)
                    fully_shard(model, mesh=mesh)
                torch.manual_seed(1)
                batch = {**batch, "pixel_values": torch.randn_like(batch["pixel_values"])}
                ids = torch.randint_like(batch["input_ids"], 3, 250)
                loss = model(**{**batch, "input_ids": ids, "labels": ids}).loss
                loss.backward()
                losses.append(loss.item())
                norm = nn.utils.get_total_norm([each.grad for each in model.parameters() if each.grad is not None])
                norms.append(float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm))
            yield (
                preset,
                {"loss deviates": abs(losses[1] - losses[0]), "gradient norm deviates": abs(norms[1] / norms[0] - 1)},
            )
            free(args)
    finally:
        destroy_process_group()


def few_bits(args: argparse.Namespace) -> Found:
    """VW-LMM at SmolLM2's size in 8 and 4 bits of bitsandbytes: deviation of the logits, and size."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError("bitsandbytes is not installed")
    from transformers import BitsAndBytesConfig

    config = VwLmmConfig.from_preset("vw-lmm-smollm2-135m")
    model = chat_model(config, device=args.device, dtype=torch.bfloat16).eval()
    inputs = conversations(config, 2, 10, args.device, torch.bfloat16)
    del inputs["labels"]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(folder)
        expected = model(**inputs).logits.float()
        whole = model.get_memory_footprint()
        for bits in (8, 4):
            options = {
                "quantization_config": BitsAndBytesConfig(**{f"load_in_{bits}bit": True}),
                "dtype": torch.bfloat16,
            }
            fewer = AutoModelForImageTextToText.from_pretrained(folder, device_map=args.device, **options)
            deviation = (fewer(**inputs).logits.float() - expected).norm() / expected.norm()
            yield (
                f"{bits} bits",
                {"logits": deviation.item(), "share of the size": fewer.get_memory_footprint() / whole},
            )


def free(args: argparse.Namespace) -> None:
    gc.collect()
    torch.compiler.reset()
    if args.device == "cuda":
        torch.cuda.empty_cache()


PARTS = {
    part.__name__: part
    for part in (
        machine,
        agreement,
        training,
        language,
        decoding,
        gradient_cache,
        sharding,
        vocabulary_losses,
        open_clip,
        few_bits,
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="what to check")
    parser.add_argument("--budget", type=float, default=440.0, help="seconds behind which no other part begins")
    parser.add_argument("--repeats", type=int, default=5, help="the median of so many calls counts")
    parser.add_argument("--rehearse", action="store_true", help="tiny models on the CPU")
    args = parser.parse_args()
    args.device = "cpu" if args.rehearse else "cuda"
    if not args.rehearse and not torch.cuda.is_available():
        parser.error("no CUDA device is here; --rehearse runs on the CPU")
    args.device_name = "CPU" if args.rehearse else torch.cuda.get_device_name()
    if args.rehearse:
        args.presets, args.training, args.language = (
            ["grr-coca-tiny", "mammut-tiny"],
            {"grr-coca-tiny": 2},
            {"tiny": 2},
        )
        args.num_images, args.num_answers, args.new_tokens, args.repeats, args.cached = 2, 2, 4, 1, [4]
    else:
        args.presets = ["grr-coca-base", "mammut-base"]
        args.training = {"grr-coca-base": 256, "grr-coca-large": 96, "mammut-base": 256}
        args.language = {"1 B": 16, "7 B": 16}
        args.num_images, args.num_answers, args.new_tokens, args.cached = 64, 16, 32, [4096, 32_768]
    started, content = time.perf_counter(), {"machine": f"{args.device_name}, {describe_machine()}", "results": {}}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(["machine", *args.parts]):
        found = content["results"][name] = {}
        try:
            if time.perf_counter() - started > args.budget:
                raise TimeoutError(f"the budget of {args.budget:.0f} s was spent")
            for title, numbers in PARTS[name](args):
                found[title] = numbers
                print(
                    f"{time.perf_counter() - started:5.0f} s  {name}: {title}: "
                    + ", ".join(f"{key} {value:.4g}" for key, value in numbers.items()),
                    flush=True,
                )
                args.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        except Exception as error:  # one part must not cost the others
            found["error"] = f"{type(error).__name__}: {str(error)[:500]}"
            print(f"{time.perf_counter() - started:5.0f} s  {name}: {found['error']}", flush=True)
        free(args)
    content["seconds"] = time.perf_counter() - started
    args.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
