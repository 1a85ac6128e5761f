"""Write image-caption pairs as tar shards in webdataset's layout, in random order, for `examples/pretrain.py --streaming`.

The demo's pairs:                   python examples/write_shards.py --output_dir shards
A folder of images and captions:    python examples/write_shards.py --output_dir shards --dataset path/to/folder --rows_per_shard 5000

Shards are called train-00000.tar, ..., test-00000.tar, ...; a sample is a picture as it was stored, its caption as .txt, and where there are
several captions all of them as .json (`--caption_column json.captions` reads them).
"""

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from PIL import Image
from tqdm.auto import tqdm
from transformers import HfArgumentParser
from webdataset import TarWriter

from triptych.arguments import argument
from triptych.data.pairs import load_pairs
from triptych.data.pictures import decode_image
from triptych.data.splits import DataArguments
from triptych.hub import staged
from triptych.modeling.configuration_base import check_positive


ENDINGS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}  # other pictures are written anew, as PNG


@dataclass
class ShardArguments(DataArguments):
    output_dir: str = argument(default="shards", help="Where the shards go.")
    dataset: str = argument(
        default="openmoji",
        help="What examples/pretrain.py reads as a table: a name, a folder, a parquet file, a Hub name.",
    )
    image_column: str = argument(default="image", help="Column with the images.")
    caption_column: str = argument(default="caption", help="Column with a caption or a list of captions.")
    image_size: int = argument(
        default=96, help="Size at which drawings are rendered, in pixels; others stay as they are."
    )
    rows_per_shard: int = argument(default=500, help="Most rows of a shard; all of a split get about equally many.")
    seed: int = argument(default=0, help="Seed of the order, and of what is held out where there is no eval_split.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "image_size", "rows_per_shard")


def sample_of(row: dict[str, Any], number: int, args: ShardArguments) -> dict[str, Any]:
    """A row as the files of one sample."""
    image, captions = row[args.image_column], row[args.caption_column]
    picture = decode_image(image, number)  # what nobody can read does not go into a shard
    content = Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]
    with Image.open(io.BytesIO(content)) as stored:
        ending = ENDINGS.get(stored.format or "")
    if ending is None:
        ending, file = "png", io.BytesIO()
        picture.save(file, format="PNG")
        content = file.getvalue()
    files = {"__key__": f"{number:09d}", ending: content}
    if isinstance(captions, str):
        return files | {"txt": captions}
    return files | {"txt": captions[0], "json": {"captions": captions}}


def main() -> None:
    (args,) = HfArgumentParser((ShardArguments,)).parse_args_into_dataclasses()
    output = Path(args.output_dir)
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"`output_dir` {output} holds files already; write into a new folder.")
    data = load_pairs(**args.loading(), image_size=args.image_size, seed=args.seed)
    numbers = {}
    with staged(output, last="shards.json") as staging:
        for split, rows in data.items():
            rows = rows.cast_column(args.image_column, datasets.Image(decode=False)).shuffle(seed=args.seed)
            num_shards = math.ceil(len(rows) / args.rows_per_shard)
            with tqdm(total=len(rows), desc=split, unit="pair") as progress:
                for shard in range(num_shards):
                    with TarWriter(str(staging / f"{split}-{shard:05d}.tar")) as writer:
                        for row in rows.shard(num_shards, shard):
                            writer.write(sample_of(row, progress.n, args))
                            progress.update()
            numbers[split] = {"rows": len(rows), "shards": num_shards}
        (staging / "shards.json").write_text(json.dumps(numbers) + "\n", encoding="utf-8")
    print(", ".join(f"{each['rows']} pairs in {each['shards']} shards of {split}" for split, each in numbers.items()))


if __name__ == "__main__":
    main()
