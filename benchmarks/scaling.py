"""What a large training will cost: counted on the meta device, without a weight in memory, and divided among GPUs.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --presets grr-coca-large --batch_size 256 --gpus 8 64 --pairs 12e6 400e6
    python benchmarks/scaling.py --check

Operations and saved activations are those that torch itself counts in a step on tensors without content (two batch sizes, their difference is
a pair's). Memory, communication and time follow from them and from what the machine is said to reach; those numbers are assumptions, each
an argument, not measurements. `--check` compares the counts with a real step of small models on this CPU.
"""

import argparse
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from random_models import captioner, chat_config, chat_model, pairs
from timing import in_fresh_process, peak_mib
from triptych import VwLmmConfig
from triptych.hub import describe_machine
from triptych.modeling import layers
from triptych.modeling.losses import visual_modeling_loss
from triptych.modeling.transformers_versions import checkpoint_activations


GB, TB = 1e9, 1e12


@dataclass
class Cost:
    """What a model needs.

    Args:
        parameters, trained (`int`): All of them, and those with gradients.
        flops (`float`): Operations of a training step for one pair.
        activations, checkpointed (`float`): Bytes kept for the backward pass of one pair, plain and with checkpointed layers.
        embedding (`int`): Bytes that a process receives for every pair of another one, for the contrastive loss and its gradient.
        largest_block (`int`): Parameters of the largest layer, which FSDP gathers whole.
        num_blocks (`int`): Layers.
    """

    parameters: int
    trained: int
    flops: float
    activations: float
    checkpointed: float
    embedding: int
    largest_block: int
    num_blocks: int


@contextmanager
def _static() -> Iterator[None]:
    """Take the ways without numbers that depend on content, as for a compiler; but keep activations as without one."""

    def recomputed(project, *inner):
        return checkpoint(project, *inner, use_reentrant=False, preserve_rng_state=False)

    with ExitStack() as stack:
        stack.enter_context(patch("torch.compiler.is_compiling", lambda: True))
        stack.enter_context(patch.object(layers, "recomputed", recomputed))
        yield


def _step(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[int, int]:
    """Operations of a step, and bytes that its forward pass keeps beside the weights."""
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = (storage.nbytes(), tensor)  # the tensor, so that nothing else gets its address
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(**batch).loss
        loss.backward()
    return counter.get_total_flops(), sum(size for key, (size, _) in kept.items() if key not in own)


def count_captioner(preset: str, length: int, dtype: torch.dtype = torch.float32) -> Cost:
    """Of a contrastive captioner, both losses."""

    def of_pair(checkpointed: bool) -> tuple[float, float]:
        model = captioner(preset, "meta").to(dtype).train()
        if checkpointed:
            checkpoint_activations(model)
        with _static():
            batches = (pairs(model, count, length) for count in (2, 4))
            (flops, size), (more_flops, more) = (
                _step(model, {**batch, "pixel_values": batch["pixel_values"].to(dtype)}) for batch in batches
            )
        return (more_flops - flops) / 2, (more - size) / 2

    model = captioner(preset, "meta")
    blocks = [sum(p.numel() for p in each.parameters()) for name, each in model.named_modules() if _is_layer(name)]
    flops, activations = of_pair(False)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    width = getattr(model.config, "projection_dim", model.config.text_config.hidden_size)
    # A softmax gathers images and texts, the focal loss texts; gradients of all are then summed, which is twice a gathering
    sides = 1 if getattr(model.config, "contrastive_loss_type", "softmax") == "focal" else 2
    embedding = 3 * sides * 4 * width
    return Cost(parameters, parameters, flops, activations, of_pair(True)[1], embedding, max(blocks), len(blocks))


def _is_layer(name: str) -> bool:
    return name.rpartition(".")[2].isdigit()


class _LanguageModel(nn.Module):
    """VW-LMM from the adapter's features on: an image's and a text's positions, both losses."""

    def __init__(self, model: nn.Module, num_patches: int):
        super().__init__()
        self.model, self.num_patches = model, num_patches

    def forward(self, inputs_embeds: torch.Tensor, features: torch.Tensor, labels: torch.Tensor):
        features = self.model.model.multi_modal_projector(features)
        outputs = self.model(
            inputs_embeds=torch.cat([features, inputs_embeds], dim=1), labels=labels, output_hidden_states=True
        )
        states = outputs.hidden_states[-1][:, : self.num_patches].flatten(0, 1)
        heads = (self.model.lm_head, self.model.vm_head)
        outputs.loss = outputs.loss + visual_modeling_loss(states, features.flatten(0, 1), *heads, detach_target=True)
        return outputs


def count_chat(preset: str, length: int, dtype: torch.dtype = torch.float32) -> Cost:
    """Of VW-LMM's last stage: the tower is frozen, the language model and the adapter are trained."""
    config = chat_config(preset, {}, {})
    model = chat_model(config, device="meta", dtype=dtype).train()
    num_patches, width = config.image_seq_length, config.text_config.hidden_size
    size, vision_width = config.vision_config.image_size, config.vision_config.hidden_size

    def of_pair(checkpointed: bool) -> tuple[float, float]:
        if checkpointed:
            checkpoint_activations(model)
        found = []
        for count in (1, 2):
            options = {"device": "meta", "dtype": dtype}
            labels = torch.zeros(count, num_patches + length, dtype=torch.long, device="meta")
            batch = {
                "inputs_embeds": torch.empty(count, length, width, **options),
                "features": torch.empty(count, num_patches, vision_width, **options),
                "labels": labels,
            }
            with _static():
                found.append(_step(_LanguageModel(model, num_patches), batch))
        (flops, size), (more_flops, more) = found
        return more_flops - flops, more - size

    with FlopCounterMode(display=False) as counter, torch.no_grad(), _static():
        model.model.vision_tower(torch.empty(1, 3, size, size, device="meta", dtype=dtype))
    flops, activations = of_pair(False)
    blocks = [sum(p.numel() for p in each.parameters()) for name, each in model.named_modules() if _is_layer(name)]
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    trained = sum(size for size, is_trained in sizes if is_trained)
    everything = sum(size for size, _ in sizes)
    return Cost(
        everything,
        trained,
        flops + counter.get_total_flops(),
        activations,
        of_pair(True)[1],
        0,
        max(blocks),
        len(blocks),
    )


def cost_of(preset: str, length: int, dtype: torch.dtype = torch.float32) -> Cost:
    count = count_chat if preset in VwLmmConfig.presets() else count_captioner
    return count(preset, length, dtype)


def memory(cost: Cost, sharding: str, gpus: int, per_node: int) -> float:
    """Bytes of a GPU for weights, gradients and AdamW's moments in fp32; DDP's buckets, and the copies in bf16 that are multiplied."""
    shards = min(gpus, per_node) if sharding == "hybrid" else gpus
    weights, rest = 4 * cost.parameters, 12 * cost.trained
    if sharding in ("none", "moments"):
        buckets = 4 * cost.trained if gpus > 1 else 0
        moments = 8 * cost.trained / (gpus if sharding == "moments" else 1)  # ZeRO-1 shares them out
        return weights + 2 * cost.parameters + 4 * cost.trained + buckets + moments
    return (weights + rest) / shards + 2 * 2 * cost.largest_block  # one at work, one on its way


def communication(cost: Cost, sharding: str, gpus: int, per_node: int, batch_size: int) -> dict[str, float]:
    """Bytes that a GPU receives in a step, within its node and from other ones; ring algorithms."""
    embeddings = cost.embedding * batch_size * (gpus - 1)
    if sharding == "hybrid":
        inside, outside = min(gpus, per_node), max(1, gpus // per_node)
        within = 3 * 2 * cost.parameters * (inside - 1) / inside
        return {"within": within, "between": 2 * 4 * cost.trained / inside * (outside - 1) / outside + embeddings}
    share = (gpus - 1) / gpus
    # FSDP gathers weights in bf16 twice and scatters gradients once; otherwise gradients are summed in fp32
    size = 3 * 2 * cost.parameters * share if sharding == "full" else 2 * 4 * cost.trained * share
    key = "within" if gpus <= per_node else "between"
    return {"within": 0.0, "between": 0.0, key: size + embeddings}


def row(cost: Cost, sharding: str, gpus: int, args: argparse.Namespace) -> str:
    """A line of the table: memory, bytes to send, what bounds a step, and days."""
    # Of checkpointed layers one is made anew at a time
    kept = cost.checkpointed + cost.activations / cost.num_blocks if args.checkpointed else cost.activations
    needed = memory(cost, sharding, gpus, args.gpus_per_node) + kept * args.batch_size
    sent = communication(cost, sharding, gpus, args.gpus_per_node, args.batch_size)
    flops = cost.flops * (4 / 3 if args.checkpointed else 1)
    seconds = {
        "compute": flops * args.batch_size / (args.tflops * TB * args.mfu),
        "network": sent["within"] / (args.within_gbs * GB) + sent["between"] / (args.between_gbs * GB),
        "data": args.batch_size / (args.pictures_per_core * args.cores_per_gpu),
    }
    bound = max(seconds, key=seconds.__getitem__)  # all three go on at the same time, at best
    rate = args.batch_size * gpus / seconds[bound]
    days = ", ".join(f"{pairs_ / rate / 86400:.3g}" for pairs_ in args.pairs)
    fits = f"{needed / GB:.0f}" + ("" if needed < args.memory_gb * GB else " (too much)")
    traffic = f"{(sent['within'] + sent['between']) / GB:.2f}"
    times = " / ".join(f"{1e3 * each:.0f}" for each in seconds.values())
    return f"| {sharding} | {gpus} | {fits} | {traffic} | {times} | {bound} | {rate:,.0f} | {days} |"


def measured(preset: str, count: int, length: int) -> tuple[float, float]:
    """Operations of a real step, and its peak memory beside weights and gradients; in a process of its own."""
    torch.set_num_threads(2)
    model = captioner(preset).train()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    batch = pairs(model, count, length)
    model(**{name: each[:2] for name, each in batch.items()}).loss.backward()  # libraries take their own memory once
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = peak_mib()
    loss = model(**batch).loss
    peak = peak_mib() - before  # what the forward pass keeps; the backward pass frees as it goes
    loss.backward()
    with FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    return counter.get_total_flops(), peak * 2**20


def check(length: int) -> None:
    """Counts of small models beside a real step on this CPU."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "100000"  # fresh processes give back what they free: peaks are exact
    print("| preset | operations, counted / real | kept, counted / real |\n| --- | --- | --- |")
    for preset, count in (("grr-coca-tiny", 64), ("baseline-coca-tiny", 64), ("mammut-tiny", 64)):
        cost = cost_of(preset, length)
        (few, small), (many, large) = (in_fresh_process(measured, preset, each, length) for each in (count, 2 * count))
        flops, kept = (many - few) / count, (large - small) / count
        print(
            f"| {preset} | {cost.flops / 1e9:.3f} / {flops / 1e9:.3f} G, {cost.flops / flops:.2f} "
            f"| {cost.activations / 2**20:.2f} / {kept / 2**20:.2f} MiB, {cost.activations / kept:.2f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    presets = ["grr-coca-base", "grr-coca-large", "mammut-2b", "vw-lmm-vicuna-7b"]
    parser.add_argument("--presets", nargs="+", default=presets, help="models to count")
    parser.add_argument("--length", type=int, default=64, help="tokens of a text")
    parser.add_argument("--batch_size", type=int, default=64, help="pairs of a GPU and step")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--gpus_per_node", type=int, default=8)
    parser.add_argument(
        "--shardings", nargs="+", default=["none", "full", "hybrid"], choices=["none", "moments", "full", "hybrid"]
    )
    parser.add_argument(
        "--checkpointed", action="store_true", help="make activations of layers anew in the backward pass"
    )
    parser.add_argument(
        "--pairs", type=float, nargs="+", default=[12e6, 1e9, 10e9], help="pairs to train on: days for each"
    )
    parser.add_argument("--kb_per_pair", type=float, default=50.0, help="stored picture and text, in kB")
    parser.add_argument("--tflops", type=float, default=989.0, help="of a GPU, in bf16 (H100)")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of them that a step reaches")
    parser.add_argument("--memory_gb", type=float, default=80.0, help="of a GPU")
    parser.add_argument("--within_gbs", type=float, default=450.0, help="GB/s that a GPU receives from its node")
    parser.add_argument("--between_gbs", type=float, default=50.0, help="GB/s that it receives from other nodes")
    parser.add_argument(
        "--pictures_per_core", type=float, default=327.0, help="prepared per second: data_path.py, 640 x 427"
    )
    parser.add_argument("--cores_per_gpu", type=int, default=16)
    parser.add_argument("--check", action="store_true", help="compare the counts with real steps instead")
    args = parser.parse_args()
    if args.check:
        print(describe_machine())
        check(args.length)
        return
    stored = ", ".join(f"{count:,.0f}: {count * args.kb_per_pair / 1e9:.3g} TB" for count in args.pairs)
    print(f"Storage at {args.kb_per_pair:g} kB a pair: {stored}.")
    for preset in args.presets:
        cost = cost_of(preset, args.length, torch.bfloat16)
        print(
            f"\n{preset}: {cost.parameters / 1e6:,.0f} M parameters, {cost.trained / 1e6:,.0f} M of them trained; a pair takes "
            f"{cost.flops / 1e9:,.0f} G operations and {cost.activations / 1e6:,.0f} MB of activations in bf16, "
            f"{cost.checkpointed / 1e6:,.0f} MB with checkpointed layers.\n\n"
            "| sharding | GPUs | GB a GPU | GB received a step | compute / network / data, ms | bound | pairs a second | days |\n"
            "| --- | --- | --- | --- | --- | --- | --- | --- |"
        )
        for sharding in args.shardings:
            for gpus in args.gpus:
                if not (sharding == "hybrid" and gpus <= args.gpus_per_node) and not (
                    sharding != "none" and gpus == 1
                ):
                    print(row(cost, sharding, gpus, args), flush=True)


if __name__ == "__main__":
    main()
