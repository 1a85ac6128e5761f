"""What a GPU adds: agreement of precisions and attention kernels, compiled steps, speed and memory. A table of one run.

python benchmarks/gpu.py --batch_size 64
"""

import argparse

import torch
from torch import nn
from transformers.utils import is_flash_attn_2_available

from triptych import (
    GrrCocaConfig,
    GrrCocaForConditionalGeneration,
    MammutConfig,
    MammutForConditionalGeneration,
    VwLmmConfig,
    VwLmmForCausalLM,
)
from triptych.hub import describe_machine
from triptych.modeling.losses import captioning_loss, visual_modeling_loss


CAPTIONERS = {
    "GRR-CoCa base": (GrrCocaForConditionalGeneration, GrrCocaConfig, "grr-coca-base"),
    "MaMMUT base": (MammutForConditionalGeneration, MammutConfig, "mammut-base"),
}


def build(name: str, attention: str = "sdpa") -> nn.Module:
    model_class, config_class, preset = CAPTIONERS[name]
    torch.manual_seed(0)
    model = model_class._from_config(config_class.from_preset(preset), attn_implementation=attention)
    return model.cuda()


def batch_for(model: nn.Module, batch_size: int, length: int) -> dict[str, torch.Tensor]:
    size, vocabulary = model.config.vision_config.image_size, model.config.text_config.vocab_size
    ids = torch.randint(3, vocabulary, (batch_size, length), device="cuda")
    return {
        "pixel_values": torch.randn(batch_size, 3, size, size, device="cuda"),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
    }


def milliseconds(function, repeats: int = 10) -> float:
    """Median time of a call, by events of the device, behind three that are not counted."""
    times = []
    for index in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        if index >= 3:
            times.append(start.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def peak_gib(function) -> float:
    """Most memory that a call holds beside what is there already."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def deviation(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


@torch.no_grad()
def compare_kernels(name: str, length: int) -> None:
    """Deviation of logits and embeddings from fp32 with eager attention."""
    reference = build(name, "eager").eval()
    inputs = batch_for(reference, 4, length)
    expected = reference(**inputs)
    # Untrained logits are all alike, so the embeddings of images are compared too.
    kernels = ["sdpa", "flex_attention"] + ["flash_attention_2"] * is_flash_attn_2_available()
    for attention in kernels:
        for dtype in (torch.float32, torch.bfloat16):
            if attention == "flash_attention_2" and dtype == torch.float32:
                continue
            model = build(name, attention).to(dtype).eval()
            model.load_state_dict(reference.state_dict())
            found = model(**inputs)
            print(
                f"  {attention:<18} {str(dtype).rpartition('.')[2]:<9} logits {deviation(found.logits, expected.logits):.1e}"
                f"   image embeddings {deviation(found.image_embeds, expected.image_embeds):.1e}"
            )


def time_steps(name: str, batch_size: int, length: int) -> None:
    """Training steps: fp32, bf16 autocast, compiled, with checkpointed activations."""
    seconds = {}
    for label in ("fp32", "bf16", "bf16 compiled", "bf16 checkpointed"):
        model = build(name).train()
        if "checkpointed" in label:
            from triptych.modeling.transformers_versions import checkpoint_activations

            checkpoint_activations(model)
        inputs = batch_for(model, batch_size, length)
        inputs["labels"] = inputs["input_ids"]
        forward = torch.compile(model) if "compiled" in label else model

        def step(model=model, forward=forward, inputs=inputs, label=label) -> None:
            with torch.autocast("cuda", torch.bfloat16, enabled=label != "fp32"):
                loss = forward(**inputs).loss
            loss.backward()
            model.zero_grad()

        seconds[label] = milliseconds(step)
        print(
            f"  {label:<18} {seconds[label]:7.1f} ms a step of {batch_size}, {batch_size / seconds[label] * 1e3:6.0f} images/s, "
            f"{seconds['fp32'] / seconds[label]:4.2f}x fp32, {peak_gib(step):5.2f} GiB"
        )


@torch.no_grad()
def time_captions(name: str, batch_size: int) -> None:
    """Greedy captions with every cache; ids must be those of the dynamic one."""
    model = build(name).to(torch.bfloat16).eval()
    pixel_values = batch_for(model, batch_size, 2)["pixel_values"].bfloat16()
    options = {"max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False}
    expected = model.generate(pixel_values=pixel_values, **options)
    for label, extra in (
        ("no cache", {"use_cache": False}),
        ("dynamic", {}),
        ("static, compiled", {"cache_implementation": "static"}),
    ):

        def caption(extra=extra) -> torch.Tensor:
            return model.generate(pixel_values=pixel_values, **options, **extra)

        same = (caption() == expected).float().mean().item()
        print(
            f"  {label:<18} {milliseconds(caption, 3):7.1f} ms for {batch_size} captions of 32 tokens; {same:.3f} of the ids alike"
        )


def measure_losses() -> None:
    """Memory of the two losses over a vocabulary at the shape of a 7 B model, against keeping all logits."""
    hidden, vocabulary, tokens = 4096, 32000, 4608  # eight images of 576 patches
    lm_head, vm_head = (
        nn.Linear(hidden, vocabulary, bias=False, device="cuda", dtype=torch.bfloat16) for _ in range(2)
    )
    states, features = (
        torch.randn(tokens, hidden, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(2)
    )
    labels = torch.randint(0, vocabulary, (8, 576), device="cuda")

    def naive_visual() -> None:
        student, target = (head(x).float().log_softmax(-1) for head, x in ((lm_head, states), (vm_head, features)))
        nn.functional.kl_div(student, target, reduction="batchmean", log_target=True).backward()

    def naive_captions() -> None:
        logits = lm_head(states.unflatten(0, (8, 576)))[:, :-1].flatten(0, 1).float()
        nn.functional.cross_entropy(logits, labels[:, 1:].flatten()).backward()

    for label, ours, naive in (
        ("visual words", lambda: visual_modeling_loss(states, features, lm_head, vm_head).backward(), naive_visual),
        (
            "captions",
            lambda: captioning_loss(states.unflatten(0, (8, 576)), labels, lm_head).backward(),
            naive_captions,
        ),
    ):
        ours(), naive()  # gradients exist by now, and count on neither side
        memory, plain_memory = peak_gib(ours), peak_gib(naive)
        time, plain_time = milliseconds(ours), milliseconds(naive)
        print(
            f"  {label:<14} {memory:5.2f} GiB against {plain_memory:5.2f} (1/{plain_memory / memory:.1f}), "
            f"{time:6.1f} ms against {plain_time:6.1f} ({time / plain_time:.2f}x)"
        )


@torch.no_grad()
def time_answers() -> None:
    """VW-LMM at SmolLM2's size in bf16."""
    torch.manual_seed(0)
    model = VwLmmForCausalLM(VwLmmConfig.from_preset("vw-lmm-smollm2-135m")).cuda().bfloat16().eval()
    length, image_id = model.config.image_seq_length, model.config.image_token_id
    ids = torch.tensor([[1] + [image_id] * length + list(range(5, 15))] * 16, device="cuda")
    size = model.config.vision_config.image_size
    inputs = {"input_ids": ids, "pixel_values": torch.randn(16, 3, size, size, device="cuda").bfloat16()}
    options = {"max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False}
    for label, extra in (("dynamic", {}), ("static, compiled", {"cache_implementation": "static"})):
        time = milliseconds(lambda extra=extra: model.generate(**inputs, **options, **extra), 3)
        print(f"  {label:<18} {time:7.1f} ms for 16 answers of 32 tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--text_length", type=int, default=32)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no CUDA device is here")
    print(f"{torch.cuda.get_device_name()}, {describe_machine()}")
    for name in CAPTIONERS:
        print(f"{name}: deviation from fp32 with eager attention")
        compare_kernels(name, args.text_length)
        print(f"{name}: training")
        time_steps(name, args.batch_size, args.text_length)
        print(f"{name}: captions in bf16")
        time_captions(name, args.batch_size)
    print("VW-LMM, SmolLM2-135M: answers in bf16")
    time_answers()
    print("Losses at the shape of a 7 B model (4608 tokens, 32000 words), against keeping all logits")
    measure_losses()


if __name__ == "__main__":
    main()
