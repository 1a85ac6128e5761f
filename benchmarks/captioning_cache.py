"""Captioning time with and without key-value cache, and with images encoded per beam: ratios of one run.

python benchmarks/captioning_cache.py --preset grr-coca-base --num_images 4 --new_tokens 24
"""

import argparse
from functools import partial

import torch

from timing import median_seconds
from triptych import GrrCocaConfig, GrrCocaForConditionalGeneration
from triptych.hub import describe_machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="grr-coca-tiny", choices=sorted(GrrCocaConfig.presets()))
    parser.add_argument("--num_images", type=int, default=8)
    parser.add_argument("--new_tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5, help="the median of so many runs counts")
    args = parser.parse_args()

    torch.manual_seed(0)
    model = GrrCocaForConditionalGeneration(GrrCocaConfig.from_preset(args.preset)).eval()
    vision = model.config.vision_config
    pixel_values = torch.randn(args.num_images, 3, vision.image_size, vision.image_size)
    length = {"max_new_tokens": args.new_tokens, "min_new_tokens": args.new_tokens}
    print(f"{args.preset}, {args.num_images} images, {args.new_tokens} tokens, fp32, {describe_machine()}")

    def generate(num_beams: int, use_cache: bool) -> None:
        model.generate(pixel_values=pixel_values, **length, num_beams=num_beams, use_cache=use_cache)

    print(f"{'search':<10} {'cache':>10} {'no cache':>10} {'ratio':>7}")
    for name, beams in (("greedy", 1), ("6 beams", 6)):
        functions = {"cache": partial(generate, beams, True), "no cache": partial(generate, beams, False)}
        seconds = median_seconds(functions, args.repeats)
        cached, uncached = seconds["cache"], seconds["no cache"]
        print(f"{name:<10} {cached:>8.3f} s {uncached:>8.3f} s {uncached / cached:>6.1f}x")

    expanded = pixel_values.repeat_interleave(6, dim=0)
    functions = {
        "once": lambda: model.get_image_features(pixel_values),
        "per beam": lambda: model.get_image_features(expanded),
    }
    with torch.no_grad():
        seconds = median_seconds(functions, args.repeats)
    print(f"encoding images once instead of once per beam (6): {seconds['per beam'] / seconds['once']:.1f}x less")


if __name__ == "__main__":
    main()
