"""From a stored picture and its caption to a batch, on one core, beside open_clip, torchvision and transformers; and who waits for whom.

    pip install -e ".[peers,detection,dev]"
    python benchmarks/data_path.py
    python benchmarks/data_path.py --parts pictures loading --images path/to/photographs
    python benchmarks/data_path.py --parts waiting

Photographs are the two that scikit-learn brings, 640 x 427 pixels as in COCO, and both enlarged to what a camera takes; or those of a
folder. A ratio is peer / ours of one turn; the median of all turns counts, with the lowest and the highest beside it. "waiting" trains
for a moment on drawings that are rendered or composed as they are asked for, and says which share of the time the training waits.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import datasets
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPImageProcessor, CLIPTokenizer

from timing import seconds_in_turns
from triptych import GrrCocaProcessor
from triptych.data.pairs import ImageCaptionDataset, PairCollator
from triptych.data.pictures import decode_image
from triptych.data.shards import open_shards
from triptych.data.streams import PairStream
from triptych.hub import describe_machine
from triptych.training.normalization import DeferredNormalization


ROOT = Path(__file__).parents[1]
SIZE = 224
CAPTION = "a pagoda with golden roofs stands behind the trees of a park"


def compare(title: str, ours: str, ways: dict[str, Callable[[], Any]], count: int, repeats: int) -> None:
    """Print the time per picture or text of every way, and its ratio to ours."""
    seconds = seconds_in_turns(ways, repeats)
    print(f"\n{title}\n| way | ms each | times ours |\n| --- | --- | --- |")
    for name, times in seconds.items():
        ratios = [theirs / own for theirs, own in zip(times, seconds[ours], strict=True)]
        spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {name} | {1e3 * median(times) / count:.2f} | {'1' if name == ours else spread} |", flush=True)


def photographs(folder: Path | None, count: int) -> dict[str, list[bytes]]:
    """JPEG files by what they are."""
    if folder is not None:
        files = [path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix.lower() in (".jpg", ".jpeg")]
        if not files:
            raise SystemExit(f"--images: {folder} holds no .jpg or .jpeg")
        return {str(folder): [files[index % len(files)] for index in range(count)]}
    from sklearn.datasets import load_sample_images

    shown = [Image.fromarray(values) for values in load_sample_images().images]
    found = {}
    for width, height in ((640, 427), (2560, 1708)):
        files = []
        for picture in shown:
            buffer = io.BytesIO()
            picture.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
            files.append(buffer.getvalue())
        found[f"{width} x {height}"] = [files[index % 2] for index in range(count)]
    return found


def stored(file: bytes) -> dict[str, Any]:
    return {"bytes": file, "path": None}


def pictures(args: argparse.Namespace) -> None:
    """Files to normalised inputs of 224 x 224."""
    import open_clip
    import torchvision
    from torchvision.transforms import v2

    image_processor = CLIPImageProcessor()
    mean, std = image_processor.image_mean, image_processor.image_std
    their_transform = open_clip.image_transform(SIZE, is_train=False, mean=mean, std=std)
    transform = v2.Compose(
        [
            v2.Resize(SIZE, interpolation=v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(SIZE),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )
    processor = GrrCocaProcessor(image_processor, clip_tokenizer())
    for name, files in photographs(args.images, args.count).items():

        def ours(size: int | None, files: list[bytes] = files) -> torch.Tensor:
            shown = [decode_image(stored(file), 0, size) for file in files]
            return processor(images=shown, return_tensors="pt")["pixel_values"]

        def open_clip_reads(files: list[bytes] = files) -> torch.Tensor:
            return torch.stack([their_transform(Image.open(io.BytesIO(file))) for file in files])

        def torchvision_reads(files: list[bytes] = files) -> torch.Tensor:
            tensors = (torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files)
            return torch.stack([transform(torchvision.io.decode_jpeg(each)) for each in tensors])

        def transformers_reads(files: list[bytes] = files) -> torch.Tensor:
            return image_processor([Image.open(io.BytesIO(file)) for file in files], return_tensors="pt").pixel_values

        ways = {
            "triptych, to evaluate": partial(ours, None),
            "triptych, to train": partial(ours, SIZE),
            "open_clip": open_clip_reads,
            "torchvision, its own decoder": torchvision_reads,
            "transformers' CLIPImageProcessor": transformers_reads,
        }
        expected = ways["open_clip"]()
        for way, read in ways.items():
            print(f"{way}: mean deviation from open_clip {(read() - expected).abs().mean():.4f}")
        compare(f"JPEG of {name} to {SIZE} x {SIZE}", "triptych, to train", ways, args.count, args.repeats)


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's, out of the vocabulary that open_clip brings."""
    import open_clip

    theirs = open_clip.get_tokenizer("ViT-B-32")
    special = {"bos_token": "<start_of_text>", "eos_token": "<end_of_text>", "unk_token": "<end_of_text>"}
    merges = list(theirs.bpe_ranks)
    return CLIPTokenizer(dict(theirs.encoder), merges, **special, pad_token="<end_of_text>", model_max_length=77)


def texts(args: argparse.Namespace) -> None:
    """Captions to ids of 77 tokens, all of a batch at once."""
    import open_clip

    tokenizer = clip_tokenizer()
    processor, theirs = GrrCocaProcessor(CLIPImageProcessor(), tokenizer), open_clip.get_tokenizer("ViT-B-32")
    captions = [f"{CAPTION}, number {index}" for index in range(args.count)]
    ways = {
        "triptych": lambda: processor(text=captions, return_tensors="pt")["input_ids"],
        "open_clip": lambda: theirs(captions),
        "transformers' CLIPTokenizer": lambda: (
            tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
        ),
    }
    lengths = processor(text=captions, padding="longest")["attention_mask"]
    alike = all(ours[: sum(mask)].equal(other[: sum(mask)])
                for ours, other, mask in zip(ways["triptych"](), ways["open_clip"](), lengths, strict=True))  # fmt: skip
    print(f"\nids are {'' if alike else 'not '}those of open_clip")
    compare("captions of 17 tokens", "triptych", ways, args.count, args.repeats)


class TheirRows(Dataset):
    """What open_clip's reader of a table does for every row: transform and tokenise it."""

    def __init__(self, files: list[bytes], transform: Callable, tokenizer: Callable):
        self.files, self.transform, self.tokenizer = files, transform, tokenizer

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        picture = Image.open(io.BytesIO(self.files[index]))
        return self.transform(picture), self.tokenizer([f"{CAPTION}, number {index}"])[0]


def loading(args: argparse.Namespace) -> None:
    """Batches of 64 in the training process, prepared by one other process; both crop at random."""
    import open_clip

    processor = GrrCocaProcessor(CLIPImageProcessor(), clip_tokenizer())
    collator = PairCollator(processor)
    their_transform = open_clip.image_transform(SIZE, is_train=True)
    for name, files in photographs(args.images, args.num_rows).items():
        rows = [{"image": stored(file), "caption": f"{CAPTION}, number {index}"} for index, file in enumerate(files)]
        data = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
        whole, reduced = (ImageCaptionDataset(data, crop_scale=0.9) for _ in range(2))
        reduced.set_decode_size(SIZE)
        deferred = DeferredNormalization(collator)
        theirs = TheirRows(files, their_transform, open_clip.get_tokenizer("ViT-B-32"))

        def read(
            dataset: Dataset, collate: Callable | None, finish: Callable[[Any], Any] = lambda batch: batch
        ) -> None:
            for batch in DataLoader(dataset, batch_size=64, num_workers=1, collate_fn=collate):
                finish(batch)

        ways = {
            "whole pictures, floats": partial(read, whole, collator),
            "reduced pictures, floats": partial(read, reduced, collator),
            "reduced pictures, bytes, as scripts train": partial(read, reduced, deferred, deferred.on_device),
            "open_clip": partial(read, theirs, None),
        }
        ours = "reduced pictures, bytes, as scripts train"
        compare(f"batches from one process, JPEG of {name}", ours, ways, len(files), args.repeats)


def write_shards(folder: Path, files: list[bytes], num_shards: int = 4) -> list[str]:
    """Pictures and their captions in tar files."""
    from webdataset import TarWriter

    names = [str(folder / f"{number:05d}.tar") for number in range(num_shards)]
    for shard, name in enumerate(names):
        with TarWriter(name) as writer:
            for number in range(shard, len(files), num_shards):
                caption = f"{CAPTION}, number {number}"
                writer.write({"__key__": f"{number:09d}", "jpg": files[number], "txt": caption, "json": {"a": number}})
    return names


def shards(args: argparse.Namespace) -> None:
    """The same batches out of tar shards; open_clip's pipeline put together from webdataset as its training does it."""
    import open_clip
    import webdataset
    from torchdata.stateful_dataloader import StatefulDataLoader

    processor = GrrCocaProcessor(CLIPImageProcessor(), clip_tokenizer())
    collator = PairCollator(processor)
    deferred = DeferredNormalization(collator)
    transform, tokenizer = open_clip.image_transform(SIZE, is_train=True), open_clip.get_tokenizer("ViT-B-32")

    def ours(names: list[str], collate: Callable, decode_size: int | None) -> None:
        stream = PairStream([open_shards(names)], crop_scale=0.9, num_passes=1)
        if decode_size is not None:
            stream.set_decode_size(decode_size)
        for batch in StatefulDataLoader(stream, batch_size=64, num_workers=1, collate_fn=collate):
            deferred.on_device(batch)

    def theirs(names: list[str], *finish: Callable) -> None:
        pipeline = webdataset.DataPipeline(
            webdataset.SimpleShardList(names),
            webdataset.split_by_worker,
            webdataset.tarfile_to_samples(),
            webdataset.shuffle(bufsize=1000, initial=100),
            webdataset.decode("pilrgb"),
            webdataset.rename(image="jpg;png;jpeg;webp", text="txt"),
            *finish,
        )
        for _ in DataLoader(pipeline, batch_size=None, num_workers=1):
            pass

    transformed = (
        webdataset.map_dict(image=transform, text=lambda text: tokenizer(text)[0]),
        webdataset.to_tuple("image", "text"),
        webdataset.batched(64, partial=False),
    )
    decoded = (webdataset.to_tuple("text"), webdataset.batched(64, partial=False))
    for name, files in photographs(args.images, args.num_rows).items():
        with tempfile.TemporaryDirectory() as folder:
            names = write_shards(Path(folder), files)
            ways = {
                "triptych": partial(ours, names, deferred, SIZE),
                "triptych, whole pictures": partial(ours, names, deferred, None),
                "open_clip": partial(theirs, names, *transformed),
                "webdataset alone: pictures decoded, nothing else": partial(theirs, names, *decoded),
            }
            compare(f"batches out of tar shards, JPEG of {name}", "triptych", ways, len(files), args.repeats)


def waiting(args: argparse.Namespace) -> None:
    """Train the models of the demos for a moment; which share of a step does it wait for its batch?"""
    print("\n| training | seconds / step | waits for its data |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:

        def train(name: str, script: str, output: str, *options: str) -> None:
            command = [sys.executable, str(ROOT / "examples" / script), "--output_dir", f"{folder}/{output}", *options]
            command += ["--max_steps", str(args.steps), "--eval_epochs", "0", "--checkpoint_steps", "0"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
            lines = Path(folder, output, "training_log.jsonl").read_text(encoding="utf-8").splitlines()
            steps = [row for row in map(json.loads, lines) if "data_seconds" in row][
                2:
            ]  # the first ones start processes
            waited = sum(row["data_seconds"] for row in steps)
            total = sum(row["step_seconds"] for row in steps)
            print(f"| {name} | {total / len(steps):.2f} | {waited / total:.1%} |", flush=True)

        train("GRR-CoCa on OpenMoji (`make demo`)", "pretrain.py", "demo")
        patches = {
            "vision_config": {"patch_size": 12, "num_hidden_layers": 6, "crop_positions": True}
        }  # as in docs/mammut.md
        scenes = ("--model", "mammut", "--dataset", "openmoji-scenes", "--config_overrides", json.dumps(patches))
        train("MaMMUT on composed pictures", "pretrain.py", "scenes", *scenes)
        source = ("--model_name_or_path", f"{folder}/scenes", "--num_scenes", "400", "--num_pictures", "0")
        train("a detector on scenes", "finetune_detection.py", "detector", *source)


PARTS = {part.__name__: part for part in (pictures, texts, loading, shards, waiting)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="what to measure")
    parser.add_argument("--images", type=Path, help="folder with photographs to read, JPEG")
    parser.add_argument("--count", type=int, default=32, help="pictures or texts at a time")
    parser.add_argument("--num_rows", type=int, default=256, help="pictures that are loaded")
    parser.add_argument("--steps", type=int, default=40, help="of every training")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    args = parser.parse_args()
    print(f"one core, {args.repeats} turns, {describe_machine()}")
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name in args.parts:
        PARTS[name](args)
    torch.set_num_threads(num_threads)


if __name__ == "__main__":
    main()
