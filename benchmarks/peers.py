"""Triptych beside its peers, with the same weights, in one run: open_clip, and transformers' CLIP, BLIP, Llava and OWLv2.

    pip install -e ".[peers]"
    python benchmarks/peers.py --output_dir outputs/peers
    python benchmarks/peers.py --output_dir outputs/peers --parts encoding captions --num_images 8

Outputs are compared first, where the peer can hold the same weights. Then all take turns; a ratio is peer / ours of one turn, the
median of all turns counts, with the lowest and the highest beside it. "packed" is the same model behind
`triptych.hardware.pack_linear_layers`. open_clip up to 3.3.0 cannot write captions beside transformers 5; a checkout of its main branch
can, with its `src` in PYTHONPATH. Llava's training step is in `speed.py --parts visual_words`, the naive losses in `losses.py`.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    CLIPVisionConfig,
    CLIPVisionModel,
    Owlv2Config,
    Owlv2ForObjectDetection,
)

from random_models import CLIP_B, chat_config, chat_model, conversations
from timing import in_fresh_process, peak_mib, seconds_in_turns
from triptych import (
    GrrCocaConfig,
    GrrCocaForConditionalGeneration,
    GrrCocaVisionConfig,
    GrrCocaVisionModel,
    MammutConfig,
    MammutForObjectDetection,
)
from triptych.convert.conversion import export_open_clip
from triptych.hardware import pack_linear_layers
from triptych.hub import describe_machine
from triptych.modeling.contrastive_captioner import unit_vectors
from triptych.modeling.transformers_versions import checkpoint_activations


PRESET, PEER = "coca-vit-b-32", "coca_ViT-B-32"
BEGIN, END = 49406, 49407  # of CLIP's vocabulary


@dataclass
class Comparison:
    """A measure of ours beside that of a peer.

    Args:
        measure, peer (`str`): What is measured, and who is compared.
        goal (`str`): What the ratio should reach; empty without one.
        ours, theirs (`list[float]`): Seconds of every turn, or MiB of one.
        deviation (`float`, *optional*): Largest difference of what both answer, where they have the same weights.
        unit (`str`): "s" or "MiB".
    """

    measure: str
    peer: str
    goal: str
    ours: list[float]
    theirs: list[float]
    deviation: float | None = None
    unit: str = "s"
    ratios: list[float] = field(init=False)

    def __post_init__(self) -> None:
        pairs = zip(self.ours, self.theirs, strict=True)
        # Of time how much longer the peer takes, of memory which share of the peer's is enough
        self.ratios = [theirs / ours if self.unit == "s" else ours / theirs for ours, theirs in pairs]

    def row(self) -> str:
        """A line of the table in docs/benchmarks.md."""
        spread = f" ({min(self.ratios):.2f} to {max(self.ratios):.2f})" if len(self.ratios) > 1 else ""
        sides = " / ".join(f"{median(side):.3g}" for side in (self.theirs, self.ours))
        deviation = "" if self.deviation is None else f"{self.deviation:.0e}"
        ratio = f"{median(self.ratios):.2f}{spread}"
        return f"| {self.measure} | {self.peer} | {sides} {self.unit} | {ratio} | {self.goal} | {deviation} |"


def in_turns(
    args: argparse.Namespace,
    measure: str,
    peer: str,
    goal: str,
    theirs: Callable[[], Any],
    ours: dict[str, Callable[[], Any]],
    deviations: dict[str, float] | None = None,
) -> Iterator[Comparison]:
    """Time a peer and one or more forms of ours in turns."""

    def in_precision(function: Callable[[], Any]) -> Any:
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
            return function()

    ways = {name: partial(in_precision, function) for name, function in {"theirs": theirs, **ours}.items()}
    seconds = seconds_in_turns(ways, args.repeats, args.device)
    for name in ours:
        title = f"{measure}, {name}" if name else measure
        yield Comparison(title, peer, goal, seconds[name], seconds["theirs"], (deviations or {}).get(name))


def both_coca(args: argparse.Namespace) -> tuple[GrrCocaForConditionalGeneration, nn.Module]:
    """CoCa ViT-B/32 of ours and of open_clip, with the same weights."""
    import open_clip  # not at the top: `--help` should not need it

    torch.manual_seed(0)
    config = GrrCocaConfig.from_preset(PRESET)
    ours = GrrCocaForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    theirs = open_clip.create_model(PEER)
    theirs.load_state_dict(export_open_clip("open-clip-coca", ours), strict=True)
    return ours.to(args.device), theirs.to(args.device)


def peer_coca() -> str:
    import open_clip

    return f"open_clip {open_clip.__version__}"


def packed(args: argparse.Namespace, build: Callable[[], nn.Module]) -> dict[str, nn.Module]:
    """The form of a model that answers soonest on a CPU in fp32; nothing elsewhere."""
    return {"packed": pack_linear_layers(build())} if args.device == "cpu" and not args.bf16 else {}


def pictures(args: argparse.Namespace, count: int, size: int = 224) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1)).to(args.device)


@torch.no_grad()
def encoding(args: argparse.Namespace) -> Iterator[Comparison]:
    """Images to embeddings: open_clip's CoCa and transformers' CLIP, both ViT-B/32."""
    images = pictures(args, args.num_images)
    ours, theirs = both_coca(args)
    ours, theirs = ours.eval(), theirs.eval()
    forms = {"": ours, **packed(args, lambda: both_coca(args)[0])}
    expected = theirs.encode_image(images)
    deviations = {
        name: (unit_vectors(model.get_image_features(images).pooler_output) - expected).abs().max().item()
        for name, model in forms.items()
    }
    ways = {name: partial(model.get_image_features, images) for name, model in forms.items()}
    title = f"encode {args.num_images} images, CoCa B/32"
    yield from in_turns(args, title, peer_coca(), "1.1", partial(theirs.encode_image, images), ways, deviations)

    fields = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    clip = CLIPVisionModel(CLIPVisionConfig(**fields, patch_size=32, attn_implementation="sdpa"))
    clip = clip.to(args.device).eval()

    def tower() -> GrrCocaVisionModel:
        own = {
            "pooler_type": "class_token",
            "mlp_type": "quick_gelu",
            "pooler_hidden_size": 768,
            "num_pooler_heads": 12,
        }
        config = GrrCocaVisionConfig(**{**GrrCocaConfig.presets()[PRESET]["vision_config"], **own})
        model = GrrCocaVisionModel._from_config(config, attn_implementation="sdpa")
        names = {"vision_model.": "", "encoder.": "", "pre_layrnorm": "pre_layernorm"}
        weights = {}
        for name, tensor in clip.state_dict().items():
            for old, new in names.items():
                name = name.replace(old, new)
            weights[name] = tensor
        weights.pop("embeddings.position_ids", None)
        model.load_state_dict(weights, strict=True)
        return model.to(args.device).eval()

    forms = {"": tower(), **packed(args, tower)}
    expected = clip(images).pooler_output
    deviations = {name: (model(images).pooler_output - expected).abs().max().item() for name, model in forms.items()}
    ways = {name: partial(model, images) for name, model in forms.items()}
    title = f"encode {args.num_images} images, CLIP ViT-B/32"
    yield from in_turns(args, title, "transformers' CLIP", "1.1", partial(clip, images), ways, deviations)


@torch.no_grad()
def captions(args: argparse.Namespace) -> Iterator[Comparison]:
    """Captions of 30 tokens: beams beside open_clip's CoCa, greedy ones beside transformers' BLIP."""
    images = pictures(args, 4)
    length = {"max_new_tokens": 29, "min_new_tokens": 29, "do_sample": False}
    ours, theirs = both_coca(args)
    forms = {"": ours.eval(), **packed(args, lambda: both_coca(args)[0])}
    ways = {name: partial(model.generate, pixel_values=images, num_beams=6, **length) for name, model in forms.items()}
    generate = partial(theirs.eval().generate, images, seq_len=30, min_seq_len=29, num_beams=6, num_beam_groups=1)
    try:
        expected = generate()
    except (AssertionError, RuntimeError) as error:
        print(f"{peer_coca()} writes no captions here: {error}")
    else:
        alike = (ways[""]() == expected).float().mean().item()
        print(f"captions: {alike:.1%} of the ids are those of open_clip")
        title = "captions, 6 beams, 30 tokens, 4 images, CoCa B/32"
        yield from in_turns(args, title, peer_coca(), "10", generate, ways)

    # Equal parameters: 12 layers of BLIP with self- and cross-attention, 4 without and 9 with cross-attention of ours
    width = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    vocabulary = {"vocab_size": 49408, "bos_token_id": BEGIN, "eos_token_id": END, "pad_token_id": 0}
    text = {**width, **vocabulary, "num_hidden_layers": 12, "encoder_hidden_size": 768, "sep_token_id": END}
    vision = {**width, "num_hidden_layers": 12, "image_size": 224, "patch_size": 32}
    blip = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision)).to(args.device).eval()

    def captioner() -> GrrCocaForConditionalGeneration:
        config = GrrCocaConfig.from_preset(
            PRESET,
            vision_config={**width, "pooler_type": "class_token", "pooler_hidden_size": 768, "num_pooler_heads": 12},
            text_config={
                **width, **vocabulary, "num_unimodal_layers": 4, "num_multimodal_layers": 9, "multimodal_layer_type": "coca",
            },
        )  # fmt: skip
        config.tie_word_embeddings = True  # as BLIP's
        model = GrrCocaForConditionalGeneration._from_config(config, attn_implementation="sdpa")
        return model.to(args.device).eval()

    forms = {"": captioner(), **packed(args, captioner)}
    sizes = [sum(p.numel() for p in model.parameters()) / 1e6 for model in (forms[""], blip)]
    print(f"greedy captions: {sizes[0]:.1f} M parameters, BLIP {sizes[1]:.1f} M")
    ways = {name: partial(model.generate, pixel_values=images, **length) for name, model in forms.items()}
    generate = partial(blip.generate, pixel_values=images, num_beams=1, **length)
    yield from in_turns(args, "captions, greedy, 30 tokens, 4 images", "transformers' BLIP", "1.2", generate, ways)


def coca_batch(args: argparse.Namespace, num_tokens: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, BEGIN, (args.num_pairs, num_tokens), generator=generator)
    ids[:, 0], ids[:, -1] = BEGIN, END
    return {"pixel_values": pictures(args, args.num_pairs), "input_ids": ids.to(args.device)}


def our_step(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Forward and backward pass of the joint loss."""
    loss = model(**batch, attention_mask=torch.ones_like(batch["input_ids"]), labels=batch["input_ids"]).loss
    loss.backward()
    model.zero_grad(set_to_none=False)
    return loss.detach()


def their_step(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The same of open_clip, whose texts always have 76 tokens."""
    ids = batch["input_ids"]
    texts = nn.functional.pad(ids, (0, 76 - ids.shape[1]))
    outputs = model(batch["pixel_values"], texts)
    logits = outputs["logits"][:, : texts.shape[1] - 1]
    caption = cross_entropy(logits.transpose(1, 2), texts[:, 1 : logits.shape[1] + 1], ignore_index=0)
    similarity = outputs["logit_scale"] * outputs["image_features"] @ outputs["text_features"].T
    own = torch.arange(len(ids), device=ids.device)
    contrastive = (cross_entropy(similarity, own) + cross_entropy(similarity.T, own)) / 2
    loss = contrastive + 2 * caption
    loss.backward()
    model.zero_grad(set_to_none=False)
    return loss.detach()


def memory_of_step(args: argparse.Namespace, name: str) -> float:
    """Peak of a training step beside weights, gradients and the optimiser's moments, in MiB; in a process of its own."""
    ours, theirs = both_coca(args)
    model, step = (theirs, their_step) if name == "theirs" else (ours, our_step)
    model.train()
    if name == "checkpointed":
        checkpoint_activations(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    batch = coca_batch(args, 76)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = peak_mib()
    step(model, batch)
    return peak_mib() - before


def training(args: argparse.Namespace) -> Iterator[Comparison]:
    """A joint training step of CoCa B/32 beside open_clip's: time, memory, share of what the machine multiplies."""
    peer = peer_coca()
    ours, theirs = both_coca(args)
    ours, theirs = ours.train(), theirs.train()
    for num_tokens, goal in ((76, "1.5"), (20, "2.5")):
        batch = coca_batch(args, num_tokens)
        deviation = (our_step(ours, batch) - their_step(theirs, batch)).abs().item()
        ways = {"": partial(our_step, ours, batch)}
        title = f"training step, {args.num_pairs} pairs of {num_tokens} tokens, CoCa B/32"
        for found in in_turns(args, title, peer, goal, partial(their_step, theirs, batch), ways, {"": deviation}):
            yield found
            if num_tokens == 76:
                with FlopCounterMode(display=False) as counter:
                    our_step(ours, batch)
                rate = counter.get_total_flops() / median(found.ours)
                share = rate / matrix_rate(torch.bfloat16 if args.bf16 else torch.float32, args.device)
                print(
                    f"training step: {rate / 1e9:.0f} G/s are {share:.0%} of what one large product reaches (goal: 70 %)"
                )
    del ours, theirs
    if args.device == "cpu":
        theirs_mib = in_fresh_process(memory_of_step, args, "theirs")
        for name, goal in (("ours", "0.75"), ("checkpointed", "0.35")):
            mib = in_fresh_process(memory_of_step, args, name)
            title = f"memory of that step{', checkpointed' if name != 'ours' else ''}, share of the peer's"
            yield Comparison(title, peer, f"<= {goal}", [mib], [theirs_mib], unit="MiB")


@torch.no_grad()
def answers(args: argparse.Namespace) -> Iterator[Comparison]:
    """Answers of 30 tokens beside transformers' Llava with the same weights: SmolLM2-135M's shape, CLIP ViT-B/14 at 336 pixels."""
    config = chat_config("vw-lmm-smollm2-135m", CLIP_B, {})
    theirs = chat_model(config, "Llava", args.device).eval()

    def model() -> nn.Module:
        ours = chat_model(config, device=args.device)
        missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
        assert not unexpected
        assert all(name.startswith("vm_head") for name in missing)
        return ours.eval()

    inputs = conversations(config, 4, 10, args.device)
    del inputs["labels"]
    length = {"max_new_tokens": 30, "min_new_tokens": 30, "do_sample": False}
    forms = {"": model(), **packed(args, model)}
    ways = {name: partial(form.generate, **inputs, **length) for name, form in forms.items()}
    generate = partial(theirs.generate, **inputs, **length)
    alike = (ways[""]() == generate()).float().mean().item()
    print(f"answers: {alike:.1%} of the ids are those of Llava")
    title = "answers of 30 tokens to 4 images of 576 patches, SmolLM2-135M"
    yield from in_turns(args, title, "transformers' Llava", "", generate, ways)


@torch.no_grad()
def detection(args: argparse.Namespace) -> Iterator[Comparison]:
    """A ViT-B/16 at 768 pixels that finds things beside transformers' OWLv2 of the same tower: an image, and 64 names."""
    width = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    text = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
    config = Owlv2Config(vision_config={**width, "image_size": 768, "patch_size": 16}, text_config=text)
    owl = Owlv2ForObjectDetection(config).to(args.device).eval()

    def detector() -> MammutForObjectDetection:
        config = MammutConfig.from_preset(
            "mammut-base", vision_config={**width, "image_size": 768, "patch_size": 16}, text_config=text
        )
        return MammutForObjectDetection._from_config(config, attn_implementation="sdpa").to(args.device).eval()

    forms = {"": detector(), **packed(args, detector)}
    image = pictures(args, 1, 768)
    ways = {name: partial(model.get_regions, image) for name, model in forms.items()}
    theirs = partial(owl.image_embedder, image)
    yield from in_turns(args, "regions of an image of 768 x 768", "transformers' OWLv2", "", theirs, ways)
    ids = torch.randint(3, 26_000, (64, 16), device=args.device)  # of the smaller vocabulary, the paper's
    mask = torch.ones_like(ids)
    ways = {name: partial(model.get_class_embeds, ids, mask) for name, model in forms.items()}
    theirs = partial(owl.owlv2.get_text_features, ids, mask)
    yield from in_turns(args, "embeddings of 64 names", "transformers' OWLv2", "", theirs, ways)


def matrix_rate(dtype: torch.dtype, device: str, size: int = 2048) -> float:
    """Operations per second of a large matrix product, the best of ten."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = seconds_in_turns({"product": lambda: left @ right}, 10, device)["product"]
    return 2 * size**3 / min(times)


def machine(args: argparse.Namespace) -> Iterator[Comparison]:
    """What the machine can do: products in fp32 and bf16, and the bandwidth of its memory."""
    for dtype in (torch.float32, torch.bfloat16):
        print(f"matrix products in {str(dtype)[6:]}: {matrix_rate(dtype, args.device) / 1e9:.0f} G operations / s")
    values = torch.randn(2**26, device=args.device)
    seconds = min(seconds_in_turns({"read": values.sum}, 10, args.device)["read"])
    print(f"reads {values.numel() * 4 / seconds / 1e9:.0f} GB / s")
    yield from ()


PARTS = {part.__name__: part for part in (machine, encoding, captions, training, answers, detection)}
HEAD = "| measure | peer | peer / ours | ratio | goal | deviation |\n| --- | --- | --- | --- | --- | --- |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="where peers.json goes")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="what to measure")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--num_images", type=int, default=16, help="images encoded at once")
    parser.add_argument("--num_pairs", type=int, default=8, help="pairs of a training step")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    parser.add_argument(
        "--bf16", action="store_true", help="time all under autocast to bf16; outputs are compared in fp32"
    )
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is here")
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "1000000"  # fresh processes give back what they free: peaks are exact
    print(f"{'bf16' if args.bf16 else 'fp32'}, {args.repeats} turns, {describe_machine()}")
    found = []
    for name in args.parts:
        for comparison in PARTS[name](args):
            found.append(comparison)
            print(comparison.row(), flush=True)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    content = {"machine": describe_machine(), "comparisons": [asdict(each) for each in found]}
    (args.output_dir / "peers.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print("\n".join(["", HEAD, *(each.row() for each in found)]))


if __name__ == "__main__":
    main()
