"""MaMMUT: a joint step against a contrastive one, and a clip through tubes against its frames one by one. Ratios of one run.

python benchmarks/two_passes.py --preset mammut-base --bf16
"""

import argparse

import torch

from timing import median_seconds
from triptych import MammutConfig, MammutForConditionalGeneration, MammutVisionModel
from triptych.hub import describe_machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="mammut-tiny", choices=sorted(MammutConfig.presets()))
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument(
        "--text_length", type=int, default=16, help="tokens per caption, as captions of a few words have"
    )
    parser.add_argument("--num_frames", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5, help="the median of so many steps counts")
    parser.add_argument("--bf16", action="store_true", help="autocast to bf16")
    args = parser.parse_args()

    torch.manual_seed(0)
    model = MammutForConditionalGeneration(MammutConfig.from_preset(args.preset)).train()
    size, vocabulary = model.config.vision_config.image_size, model.config.text_config.vocab_size
    ids = torch.randint(3, vocabulary, (args.batch_size, args.text_length))
    pixel_values = torch.randn(args.batch_size, 3, size, size)

    def step(joint: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            if joint:
                loss = model(ids, pixel_values, labels=ids).loss
            else:
                loss = model.model(ids, pixel_values, return_loss=True).loss
        loss.backward()
        model.zero_grad()

    seconds = median_seconds({"contrastive": lambda: step(False), "joint": lambda: step(True)}, args.repeats)
    precision = "bf16 autocast" if args.bf16 else "fp32"
    print(f"{args.preset}, {precision}, {describe_machine()}")
    print(
        f"step at batch {args.batch_size}, {args.text_length} tokens: contrastive {seconds['contrastive']:.3f} s, joint "
        f"{seconds['joint']:.3f} s, ratio {seconds['joint'] / seconds['contrastive']:.2f}"
    )

    vision_config = MammutConfig.from_preset(
        args.preset, vision_config={"use_tubes": True, "use_fixed_positions": True, "image_size": 224}
    ).vision_config
    vision = MammutVisionModel(vision_config).eval()
    clip = torch.randn(1, args.num_frames, 3, 224, 224)

    @torch.no_grad()
    def tubes() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            vision(pixel_values_videos=clip)

    @torch.no_grad()
    def frames() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            for frame in clip[0]:
                vision(frame[None])

    seconds = median_seconds({"tubes": tubes, "frames": frames}, args.repeats)
    print(
        f"{args.num_frames} frames of 224 x 224: tubes {seconds['tubes']:.3f} s, frames one by one "
        f"{seconds['frames']:.3f} s, ratio 1/{seconds['frames'] / seconds['tubes']:.1f}"
    )


if __name__ == "__main__":
    main()
