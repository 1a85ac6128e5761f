"""Peak memory of converting a checkpoint of VW-LMM on Vicuna 7B's shape, in two pickles as published; random values.

python benchmarks/convert_memory.py --folder /path/with/45/GB
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from timing import in_fresh_process, peak_mib
from triptych import VwLmmConfig
from triptych.convert.conversion import LAYOUTS, convert, empty_model
from triptych.convert.origin import exported


def write_source(folder: Path, num_layers: int) -> None:
    """A checkpoint as its authors store it: bf16, two pickles, flat configuration."""
    text = {**VwLmmConfig.presets()["vw-lmm-vicuna-7b"]["text_config"], "num_hidden_layers": num_layers}
    layout = LAYOUTS["vw-lmm"]
    config = VwLmmConfig.from_preset("vw-lmm-vicuna-7b", text_config={"num_hidden_layers": num_layers})
    state = empty_model(layout, config).state_dict()
    shapes = {key: tensor.shape for key, tensor in exported(state, layout.origins(state)).items()}
    names, index = sorted(shapes), {}
    for number, part in enumerate((names[: 2 * len(names) // 3], names[2 * len(names) // 3 :]), 1):
        tensors = {name: torch.empty(shapes[name], dtype=torch.bfloat16).normal_() for name in part}
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save(tensors, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    config = {key: value for key, value in text.items() if key not in ("model_type", "rope_parameters")}
    config |= {"architectures": ["vwLlamaForCausalLM"], "rope_theta": 10_000.0, "mm_vision_select_layer": -2}
    config |= {"mm_projector_type": "mlp2x_gelu"}
    (folder / "config.json").write_text(json.dumps(config))


def measure(source: Path, target: Path, max_shard_size: str) -> tuple[float, float]:
    """Convert, and return this process's peak memory in GB and the seconds."""
    start = time.perf_counter()
    convert("vw-lmm", str(source), target, with_processor=False, max_shard_size=max_shard_size)
    return peak_mib() * 2**20 / 1e9, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default=None, help="where to write both checkpoints; they are deleted again")
    parser.add_argument("--num_layers", type=int, default=32, help="of the language model")
    parser.add_argument("--max_shard_size", default="2GB")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        source = Path(folder) / "source"
        source.mkdir()
        in_fresh_process(write_source, source, args.num_layers)
        size = sum(path.stat().st_size for path in source.iterdir()) / 1e9
        peak, seconds = in_fresh_process(measure, source, Path(folder) / "out", args.max_shard_size)
    print(f"{size:.1f} GB converted in {seconds:.0f} s, peak memory {peak:.2f} GB (shards of {args.max_shard_size})")


if __name__ == "__main__":
    main()
