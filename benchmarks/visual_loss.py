"""VW-LMM's training step against Llava of the same parts, and the visual loss against its naive form: ratios of one run.

python benchmarks/visual_loss.py --batch_size 2 --bf16
"""

import argparse
import os
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlavaConfig, LlavaForConditionalGeneration

from timing import in_fresh_process, median_seconds, peak_mib
from triptych import VwLmmConfig, VwLmmForCausalLM
from triptych.hub import describe_machine
from triptych.modeling.losses import visual_modeling_loss


# CLIP ViT-B/14 at 336 pixels: 576 patches, at a size that suits a small language model
SMALL_CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 336,
    "patch_size": 14,
}


def pair(
    preset: str, vision: dict | None = None, **text_fields
) -> tuple[VwLmmForCausalLM, LlavaForConditionalGeneration]:
    """VW-LMM in its last stage, and Llava of the same parts; towers frozen."""
    fields = VwLmmConfig.presets()[preset]
    config = VwLmmConfig(
        vision_config=vision or fields["vision_config"],
        text_config={**fields["text_config"], **text_fields},
        image_token_id=fields["text_config"]["vocab_size"],
        detach_visual_target=True,  # as in the last stage of examples/train_vw_lmm.py
    )
    llava_config = LlavaConfig(vision_config=config.vision_config, text_config=config.text_config, image_token_index=5)
    models = VwLmmForCausalLM(config), LlavaForConditionalGeneration(llava_config)
    for model in models:
        model.model.vision_tower.requires_grad_(False)
        model.train()
    models[0].vm_head.requires_grad_(False)  # as in the last stage
    return models


def batch_of(model: nn.Module, batch_size: int, text_length: int) -> dict[str, torch.Tensor]:
    """One image per text; the second half of the text is the answer."""
    config = model.config
    ids = torch.randint(10, config.text_config.vocab_size, (batch_size, text_length))
    image = torch.full((batch_size, 576), config.image_token_id)
    ids = torch.cat([ids[:, :4], image, ids[:, 4:]], dim=1)
    labels = ids.clone()
    labels[:, : 576 + text_length // 2] = -100
    size = config.vision_config.image_size
    return {"input_ids": ids, "labels": labels, "pixel_values": torch.randn(batch_size, 3, size, size)}


def naive(states: torch.Tensor, features: torch.Tensor, lm_head: nn.Linear, vm_head: nn.Linear) -> torch.Tensor:
    target = vm_head(features).float().softmax(-1)
    return nn.functional.kl_div(lm_head(states).float().log_softmax(-1), target, reduction="batchmean")


def peak_of(name: str, rows: int, hidden: int, vocabulary: int) -> float:
    """Memory of one visual loss, forward and backward, beyond its inputs and their gradients; in MiB."""
    heads = [nn.Linear(hidden, vocabulary, bias=False) for _ in range(2)]
    heads[1].requires_grad_(False)
    states, features = (torch.randn(rows, hidden, requires_grad=True) for _ in range(2))
    for tensor in (states, features, heads[0].weight):
        tensor.grad = torch.ones_like(tensor)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = peak_mib()
    (naive if name == "naive" else visual_modeling_loss)(states, features, *heads).backward()
    return peak_mib() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--text_length", type=int, default=64, help="tokens beside the 576 of the image")
    parser.add_argument("--repeats", type=int, default=5, help="the median of so many steps counts")
    parser.add_argument("--bf16", action="store_true", help="autocast to bf16")
    args = parser.parse_args()

    torch.manual_seed(0)
    precision = "bf16 autocast" if args.bf16 else "fp32"
    print(
        f"SmolLM2-135M's shape, batch {args.batch_size}, 576 + {args.text_length} tokens, {precision}, {describe_machine()}"
    )
    names = ("VW-LMM", "Llava")
    models = dict(zip(names, pair("vw-lmm-smollm2-135m", SMALL_CLIP), strict=True))

    def step(model: nn.Module, batch: dict) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            loss = model(**batch).loss
        loss.backward()
        model.zero_grad()

    batches = {name: batch_of(model, args.batch_size, args.text_length) for name, model in models.items()}
    seconds = median_seconds(
        {name: lambda name=name: step(models[name], batches[name]) for name in models}, args.repeats
    )
    print(
        f"step: VW-LMM with the visual loss {seconds['VW-LMM']:.2f} s, Llava {seconds['Llava']:.2f} s, ratio "
        f"{seconds['VW-LMM'] / seconds['Llava']:.2f}"
    )

    rows, hidden, vocabulary = args.batch_size * 576, 576, 49152
    head, states = nn.Linear(hidden, vocabulary, bias=False), torch.randn(2, rows, hidden, requires_grad=True)
    losses = {
        "naive": lambda: naive(*states, head, head).backward(),
        "chunked": lambda: visual_modeling_loss(*states, head, head).backward(),
    }
    seconds = median_seconds(losses, args.repeats)
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "1000000"  # fresh processes give back what they free: peaks are exact
    peaks = {name: in_fresh_process(peak_of, name, rows, hidden, vocabulary) for name in losses}
    print(
        f"visual loss over {rows} patches, fp32: chunked takes {seconds['chunked'] / seconds['naive']:.2f}x the time and "
        f"{peaks['chunked']:.0f} MiB instead of {peaks['naive']:.0f} MiB, 1/{peaks['naive'] / peaks['chunked']:.1f}"
    )

    operations = dict.fromkeys(("VW-LMM", "Llava"), 0)
    for layers, share in ((1, -30), (2, 31)):  # every layer costs the same: 32 of them cost one and 31 differences
        models = dict(zip(operations, pair("vw-lmm-vicuna-7b", num_hidden_layers=layers), strict=True))
        for name, model in models.items():
            model.to(torch.bfloat16)
            with FlopCounterMode(display=False) as counter:
                model(**batch_of(model, 1, args.text_length)).loss.backward()
            operations[name] += share * counter.get_total_flops()
    print(
        f"Vicuna-7B's shape, operations of a step: VW-LMM {operations['VW-LMM'] / 1e12:.1f} T, Llava "
        f"{operations['Llava'] / 1e12:.1f} T, ratio {operations['VW-LMM'] / operations['Llava']:.2f}"
    )


if __name__ == "__main__":
    main()
