"""Pairs in shards: every one once per pass, the same again after a stop, and what is wrong with a shard said or counted."""

import io
import itertools
import json
import re
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from torchdata.stateful_dataloader import StatefulDataLoader

from tests.conftest import load_example
from tests.test_engine import arguments, rows_of, task_of
from triptych.data.pairs import load_pairs
from triptych.data.pictures import CorruptImageError
from triptych.data.shards import ShardError, open_shards, shard_files
from triptych.data.streams import PairStream, StreamArguments, load_streams, table_of
from triptych.training.checkpoints import checkpoint_to_resume, remove_folder
from triptych.training.engine import ARGUMENTS_FILE, Engine
from triptych.training.pair_sets import PairArguments


pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")


def picture(number: int, kind: str = "PNG", side: int = 20) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side + 4), (number % 256, number // 256, 200)).save(file, format=kind)
    return file.getvalue()


def number_of(image: Image.Image) -> int:
    red, green, _ = image.getpixel((0, 0))
    return red + 256 * green


def write_tar(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as file:
        for key, parts in samples.items():
            for ending, content in parts.items():
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    return path


def sample(number: int, **parts: bytes) -> dict[str, bytes]:
    return parts or {"png": picture(number), "txt": f"number {number}".encode()}


@pytest.fixture
def shards(tmp_path) -> list[str]:
    """Seven tar files of 3 to 9 samples, whose pictures and captions are their numbers: 42 in all."""
    files, number = [], 0
    for shard in range(7):
        samples = {}
        for _ in range(3 + shard):
            samples[f"{number:05d}"] = sample(number)
            number += 1
        files.append(str(write_tar(tmp_path / f"train-{shard:03d}.tar", samples)))
    return files


def numbers_of(batches: list[list[dict]]) -> list[int]:
    pairs = [pair for batch in batches for pair in batch]
    assert all(pair["caption"] == f"number {number_of(pair['image'])}" for pair in pairs)
    return [number_of(pair["image"]) for pair in pairs]


def reader(stream: PairStream, num_workers: int = 0) -> StatefulDataLoader:
    return StatefulDataLoader(stream, batch_size=4, num_workers=num_workers, collate_fn=list)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_every_pair_comes_once_in_a_pass(shards, num_processes, num_workers):
    seen = []
    for process in range(num_processes):
        stream = PairStream([open_shards(shards)], shuffle_buffer=5, num_passes=1)
        stream.divide(process, num_processes, num_workers)
        seen.append(numbers_of(list(reader(stream, num_workers))))
    assert sorted(itertools.chain(*seen)) == list(range(42))
    assert seen[0] != sorted(seen[0])


def test_passes_follow_one_another_in_other_orders(shards):
    stream = PairStream([open_shards(shards)], shuffle_buffer=8)
    numbers = [number_of(pair["image"]) for pair in itertools.islice(stream, 3 * 42)]
    passes = [numbers[start : start + 42] for start in (0, 42, 84)]
    assert all(sorted(each) == list(range(42)) for each in passes)
    assert passes[0] != passes[1] != passes[2]
    again = PairStream([open_shards(shards)], shuffle_buffer=8)
    assert [number_of(pair["image"]) for pair in itertools.islice(again, 3 * 42)] == numbers
    other = PairStream([open_shards(shards)], shuffle_buffer=8, seed=1)
    assert [number_of(pair["image"]) for pair in itertools.islice(other, 42)] != passes[0]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("num_batches", [1, 3, 11, 24])
def test_a_stream_goes_on_where_its_state_was_taken(shards, num_workers, num_batches):
    def stream() -> PairStream:
        options = {"shuffle_buffer": 5, "crop_scale": 0.5, "on_corrupt_image": "skip"}
        both = [open_shards(shards[:4]), open_shards([*shards[4:6], write_cut(Path(shards[6]))])]
        return PairStream(both, [0.3, 0.7], **options)

    def summary(batches) -> list:
        return [
            [(pair["caption"], pair["num_skipped"], pair["image"].tobytes()) for pair in batch] for batch in batches
        ]

    loader = reader(stream(), num_workers)
    batches = iter(loader)
    for _ in range(num_batches):
        next(batches)
    state = loader.state_dict()
    expected = summary(itertools.islice(batches, 12))
    resumed = reader(stream(), num_workers)
    resumed.load_state_dict(state)
    assert summary(itertools.islice(resumed, 12)) == expected
    assert len(str(state)) < 6000  # places, not pictures
    many = itertools.islice(stream(), 100)
    assert sum(pair["num_skipped"] for pair in many) > 0  # what cannot be read is part of the order, too


def write_cut(path: Path) -> str:
    """The file without its last two samples and a half of the one before."""
    cut = path.with_suffix(".cut.tar")
    with tarfile.open(path) as file:
        member = file.getmembers()[-6]
    cut.write_bytes(path.read_bytes()[: member.offset_data + member.size // 2])
    return str(cut)


def test_a_shard_that_was_cut_is_an_error_or_counted(shards):
    cut = write_cut(
        Path(shards[6])
    )  # nine samples; where the seventh ends it is noticed, and nobody knows that the sixth is whole
    with pytest.raises(
        ShardError, match=r"train-006.cut.tar cannot be read behind its sample 4: unexpected end of data"
    ):
        list(PairStream([open_shards([cut])], num_passes=1))
    pairs = list(PairStream([open_shards([cut, shards[0]])], num_passes=1, on_corrupt_image="skip", seed=3))
    assert len(pairs) == 5 + 3
    assert sum(pair["num_skipped"] for pair in pairs) == 1


def test_pictures_and_captions_that_cannot_be_read_are_named_or_counted(tmp_path):
    samples = {
        "a": sample(0, png=picture(0), txt=b"number 0"),
        "b": sample(1, png=b"no picture", txt=b"number 1"),
        "c": sample(2, txt=b"number 2"),
        "d": sample(3, png=picture(3)),
        "e": sample(4, png=picture(4), txt=b"  "),
        "f": sample(5, png=picture(5), txt=b"number 5"),
    }

    def stream(*keys: str, **options) -> list[dict]:
        path = write_tar(tmp_path / "some.tar", {key: samples[key] for key in keys})
        return list(PairStream([open_shards([str(path)])], num_passes=1, shuffle_buffer=1, **options))

    for key, error, message in (
        ("b", CorruptImageError, "some.tar, sample b"),
        ("c", CorruptImageError, "some.tar, sample c has no picture"),
        ("d", ValueError, "The caption of .*some.tar, sample d is None, expected a text"),
        ("e", ValueError, "`on_bad_row='skip'` leaves such rows out"),
    ):
        with pytest.raises(error, match=message):
            stream(key)
    pairs = stream(*samples, on_corrupt_image="skip", on_bad_row="skip")
    assert [(pair["caption"], pair["num_skipped"]) for pair in pairs] == [("number 0", 0), ("number 5", 4)]
    endless = PairStream([open_shards([str(tmp_path / "some.tar")])], max_caption_length=3, on_bad_row="skip")
    endless.on_corrupt_image = "skip"
    with pytest.raises(ValueError, match=r"No pair in .*some.tar can be used: all were left out"):
        next(iter(endless))


def test_columns_of_tar_files_are_endings_or_fields(tmp_path):
    both = {"captions": ["one", "another"], "title": "a title"}
    samples = {
        kind: {ending: picture(7, kind), "txt": b"text", "json": json.dumps(both).encode(), "cls": b"1"}
        for ending, kind in (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"))
    }
    path = str(write_tar(tmp_path / "kinds.tar", samples))
    found = {column: [row["caption"] for row in open_shards([path], "image", column).rows(path)] for column in
             ("caption", "txt", "json.title", "json.captions", "cls")}  # fmt: skip
    assert found == {
        "caption": ["text"] * 3, "txt": ["text"] * 3, "json.title": ["a title"] * 3, "json.captions": [["one", "another"]] * 3,
        "cls": ["1"] * 3,
    }  # fmt: skip
    assert all(row["image"] for row in open_shards([path]).rows(path))
    assert [bool(row["image"]) for row in open_shards([path], "webp").rows(path)] == [False, False, True]
    stream = PairStream([open_shards([path], "image", "json.captions")])
    assert {pair["caption"] for pair in itertools.islice(stream, 30)} == {"one", "another"}


def test_filters_leave_pairs_out(tmp_path):
    samples = {
        f"{number:03d}": {"png": picture(number, side=10 + number), "txt": b"x" * (number + 1)} for number in range(20)
    }
    path = str(write_tar(tmp_path / "sizes.tar", samples))
    limits = {"min_image_size": 14, "min_caption_length": 8, "max_caption_length": 12}
    pairs = list(PairStream([open_shards([path])], num_passes=1, **limits))
    assert sorted(len(pair["caption"]) for pair in pairs) == [8, 9, 10, 11, 12]
    pairs = list(PairStream([open_shards([path])], num_passes=1, min_image_size=25))
    assert sorted(pair["image"].width for pair in pairs) == [25, 26, 27, 28, 29]


def test_data_sets_are_mixed_in_their_shares(shards):
    stream = PairStream([open_shards(shards[:3]), open_shards(shards[3:])], [0.8, 0.2])
    count = Counter(number_of(pair["image"]) < 12 for pair in itertools.islice(stream, 1000))
    assert 760 < count[True] < 840


def test_parquet_files_are_read_from_a_row_on(tmp_path, monkeypatch):
    rows = [{"picture": {"bytes": picture(number), "path": None}, "text": f"number {number}"} for number in range(50)]
    path = str(tmp_path / "part.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=8)
    table = open_shards([path], "picture", "text")
    for start in (0, 3, 8, 23, 49, 50):
        assert [row["caption"] for row in table.rows(path, start)] == [f"number {each}" for each in range(start, 50)]
    assert numbers_of([list(PairStream([table], num_passes=1))]) != list(range(50))
    groups = []
    read = pyarrow.parquet.ParquetFile.iter_batches
    monkeypatch.setattr(
        pyarrow.parquet.ParquetFile,
        "iter_batches",
        lambda *args, **given: groups.append(given["row_groups"]) or read(*args, **given),
    )
    next(table.rows(path, 33))
    assert groups == [[4, 5, 6]]
    with pytest.raises(
        ShardError, match=r"`image_column='image'` is no column of .*part.parquet; it has picture, text"
    ):
        next(open_shards([path], "image", "text").rows(path))
    plain = str(tmp_path / "plain.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"image": picture(3), "caption": "number 3"}]), plain)
    assert numbers_of([list(PairStream([open_shards([plain])], num_passes=1))]) == [3]
    Path(path).write_bytes(Path(path).read_bytes()[:-100])
    with pytest.raises(ShardError, match=r"part.parquet cannot be read from its row 0 on"):
        next(table.rows(path))


def test_rows_without_captions_are_left_out_of_the_evaluation_too(tmp_path):
    samples = {f"{number}": {"png": picture(number), "json": json.dumps({"texts": texts}).encode()} for number, texts in
               enumerate((["one", "two"], "three", None, 4))}  # fmt: skip
    held_out = open_shards([str(write_tar(tmp_path / "test.tar", samples))], "image", "json.texts")
    with pytest.raises(ValueError, match=r"The caption of .*test.tar, sample 2 is None"):
        table_of(held_out, 10)
    assert table_of(held_out, 10, on_bad_row="skip")["caption"][:] == [["one", "two"], ["three"], ["4"]]
    assert len(table_of(held_out, 2)) == 2
    assert list(PairStream([held_out]).captions(10)) == ["one", "two", "three", "4"]


def test_shards_give_the_same_pictures_wherever_they_lie(shards, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    there = [str(Path(shutil.copy(file, moved))) for file in shards]
    both = [itertools.islice(PairStream([open_shards(files)], crop_scale=0.3), 60) for files in (shards, there)]
    assert [pair["image"].tobytes() for pair in both[0]] == [pair["image"].tobytes() for pair in both[1]]


def test_patterns_folders_and_addresses_name_shards(shards, tmp_path):
    folder = Path(shards[0]).parent
    assert shard_files(f"{folder}/train-{{000..006}}.tar") == {"train": shards}
    assert shard_files(f"{folder}/train-*.tar") == {"train": shards}
    (folder / "test-000.tar").write_bytes(Path(shards[0]).read_bytes())
    assert {split: len(files) for split, files in shard_files(str(folder)).items()} == {"train": 7, "test": 1}
    memory = fsspec.filesystem("memory")
    for file in shards:
        memory.pipe(f"/bucket/{Path(file).name}", Path(file).read_bytes())
    remote = shard_files("memory://bucket/train-*.tar")["train"]
    assert len(remote) == 7
    assert sorted(numbers_of([list(PairStream([open_shards(remote)], num_passes=1))])) == list(range(42))
    for name, message in (
        (f"{folder}/none-*.tar", "No shard matches"),
        (f"{folder}/none-*.tar.gz", "No shard matches"),
        (f"{folder}/train-{{006..008}}.tar", r"Shard .*train-007.tar of .* does not exist"),
    ):
        with pytest.raises(ValueError, match=message):
            shard_files(name)
    with pytest.raises(ValueError, match=r"Shards all end in .tar or all in .parquet"):
        open_shards([shards[0], "b.parquet"])


def test_shards_are_held_out_and_never_trained_on(shards):
    folder = Path(shards[0]).parent
    pattern = f"{folder}/train-*.tar"
    args = StreamArguments(streaming=True, max_eval_rows=5)
    stream, held_out = load_streams(args, pattern, seed=1)
    assert len(held_out) <= 5
    assert len(stream.shard_names) == 6
    trained = {pair["caption"] for pair in itertools.islice(stream, 200)}
    assert not trained & {caption for captions in held_out["caption"] for caption in captions}
    stream, held_out = load_streams(
        StreamArguments(streaming=True, eval_shards=shards[6]), f"{folder}/train-{{000..005}}.tar"
    )
    assert held_out["caption"] == [[f"number {number}"] for number in range(33, 42)]
    (folder / "test-000.tar").write_bytes(Path(shards[0]).read_bytes())
    stream, held_out = load_streams(StreamArguments(streaming=True), str(folder))
    assert (len(stream.shard_names), held_out["caption"][0]) == (7, ["number 0"])
    for args, name, message in (
        (
            StreamArguments(streaming=True, eval_shards=shards[6]),
            pattern,
            "`eval_shards` are trained on: .*train-006.tar",
        ),
        (StreamArguments(streaming=True), shards[0], "is the only shard"),
        (
            StreamArguments(streaming=True, mixture=[f"{shards[0]}:1", f"{shards[1]}:2"]),
            "",
            "`mixture` needs `eval_shards`",
        ),
    ):
        if message is None:  # its split `test`
            assert load_streams(args, name)[1]["caption"][0] == ["number 0"]
            continue
        with pytest.raises(ValueError, match=message):
            load_streams(args, name)
    with pytest.raises(ValueError, match=r"2 processes with 4 workers each \(`num_workers`\) need at least 8 shards"):
        PairStream([open_shards(shards)]).divide(0, 2, 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shuffle_buffer": 5}, "`shuffle_buffer=5` is for `streaming`"),
        ({"mixture": ["a:1"], "dataset": "b"}, "`dataset='b'` and `mixture` both say what to read"),
        ({"streaming": True, "mixture": ["a"]}, "`mixture` holds 'a'; expected address:weight"),
        ({"streaming": True, "mixture": ["a:0"]}, "`mixture` holds 'a:0'; expected address:weight"),
        ({"streaming": True}, "`streaming` reads shards, 'openmoji' is none"),
        ({"streaming": True, "dataset": "a", "max_train_rows": 5}, "`max_train_rows=5` is for data sets that fit into a table"),
        ({"streaming": True, "dataset": "a", "max_eval_rows": 0}, "`max_eval_rows` must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_arguments_that_would_be_ignored_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        PairArguments(**given)


def stream_of(shards: list[str], **options) -> PairStream:
    return PairStream([open_shards(shards)], shuffle_buffer=4, crop_scale=0.6, **options)


def test_a_training_on_a_stream_goes_on_exactly(shards, tmp_path):
    fields = {"max_steps": 7, "num_workers": 2}
    Engine(arguments(tmp_path / "whole", **fields)).train(task_of(train_set=stream_of(shards)))
    expected = [row["loss"] for row in rows_of(tmp_path / "whole")]
    parts = tmp_path / "parts"
    engine = Engine(arguments(parts, checkpoint_steps=3, resume="auto", **fields))
    with pytest.raises(RuntimeError, match="the power went"):
        engine.train(task_of(train_set=stream_of(shards), evaluate=fails_at_five(engine), headline=()))
    resumed = Engine(arguments(parts, checkpoint_steps=3, resume="auto", **fields))
    resumed.train(task_of(train_set=stream_of(shards)))
    rows = rows_of(parts)
    assert [row["loss"] for row in rows] == expected
    assert all("epoch" not in row for row in rows)
    other = Engine(arguments(tmp_path / "whole2", checkpoint_steps=3, **fields))
    other.train(task_of(train_set=stream_of(shards)))
    mixed = Engine(arguments(tmp_path / "whole2", checkpoint_steps=3, resume=True, **fields))
    with pytest.raises(ValueError, match=r"`shuffle_buffer` was 4 when .* and is 9 now"):
        mixed.train(task_of(train_set=PairStream([open_shards(shards)], shuffle_buffer=9, crop_scale=0.6)))
    changed = Engine(arguments(tmp_path / "whole2", checkpoint_steps=3, resume=True, **fields))
    with pytest.raises(ValueError, match=r"`data set` was 7 shards, train-000.tar the first .* and is 6 shards"):
        changed.train(task_of(train_set=stream_of(shards[:6])))


def fails_at_five(engine: Engine):
    engine.args.eval_steps = 5

    def evaluate(*_) -> dict[str, float]:
        raise RuntimeError("the power went")

    return evaluate


def test_a_stream_is_trained_on_by_steps(shards, tmp_path):
    with pytest.raises(ValueError, match="A stream has no end: say with `max_steps`"):
        Engine(arguments(tmp_path / "a")).train(task_of(train_set=stream_of(shards)))
    engine = Engine(arguments(tmp_path / "b", max_steps=2, metric_for_best_model="a"))
    with pytest.raises(ValueError, match="`metric_for_best_model` needs evaluations to choose from: say with"):
        engine.train(task_of(train_set=stream_of(shards)))
    seen = []
    task = task_of(train_set=stream_of(shards), evaluate=lambda *_: seen.append(engine.state.step) or {})
    engine = Engine(arguments(tmp_path / "c", max_steps=6, eval_steps=2))
    engine.train(task)
    assert seen == [2, 4]


def test_written_shards_hold_what_the_table_held(tmp_path, monkeypatch):
    folder = tmp_path / "pictures" / "train"
    folder.mkdir(parents=True)
    lines = []
    for number in range(12):
        kind = ("PNG", "BMP", "WEBP")[number % 3]
        (folder / f"{number}.{kind.lower()}").write_bytes(picture(number, kind if kind != "WEBP" else "PNG"))
        lines.append(json.dumps({"file_name": f"{number}.{kind.lower()}", "caption": f"number {number}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    script = load_example("write_shards")
    command = [
        "write_shards.py",
        "--dataset",
        str(folder.parent),
        "--output_dir",
        str(tmp_path / "out"),
        "--rows_per_shard",
        "4",
    ]
    monkeypatch.setattr("sys.argv", command)
    script.main()
    expected = load_pairs(str(folder.parent), seed=0)
    assert json.loads((tmp_path / "out" / "shards.json").read_text())["train"] == {"rows": 11, "shards": 3}
    for split in ("train", "test"):
        stream = PairStream([open_shards(shard_files(f"{tmp_path}/out/{split}-*.tar")["train"])], num_passes=1)
        assert sorted(numbers_of([list(stream)])) == sorted(
            int(each.split()[1]) for each in expected[split]["caption"]
        )
    with pytest.raises(ValueError, match="holds files already"):
        script.main()


def test_a_full_disk_leaves_the_last_checkpoint(shards, tmp_path, monkeypatch):
    engine = Engine(arguments(tmp_path, max_steps=4, checkpoint_steps=2))
    save, saved = engine.accelerator.save_state, []

    def save_state(folder: Path) -> None:
        save(folder)
        saved.append(folder)
        if len(saved) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine.accelerator, "save_state", save_state)
    with pytest.raises(
        OSError, match=r"of step 4 could not be written .*No space left.* step-00000002 is whole: make room"
    ):
        engine.train(task_of(train_set=stream_of(shards)))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    resumed = Engine(arguments(tmp_path, max_steps=4, resume=True))
    resumed.train(task_of(train_set=stream_of(shards)))
    assert resumed.state.step == 4


def test_resume_auto_starts_goes_on_and_leaves_what_is_finished(shards, tmp_path):
    def engine() -> Engine:
        return Engine(arguments(tmp_path, max_steps=2, checkpoint_steps=1, resume="auto"))

    first = engine()
    assert first.checkpoint is None
    first.train(task_of(train_set=stream_of(shards)))
    assert engine().checkpoint.name == "step-00000002"
    (tmp_path / ARGUMENTS_FILE).write_text("{}")  # which comes with the finished repository, when checkpoints go
    shutil.rmtree(first.checkpoints)
    with pytest.raises(SystemExit) as stop:
        engine()
    assert stop.value.code == 0


def test_relative_and_absolute_addresses_are_the_same_shards(shards, monkeypatch):
    monkeypatch.chdir(Path(shards[0]).parent)
    args = StreamArguments(streaming=True, eval_shards="train-*.tar")
    with pytest.raises(ValueError, match="`eval_shards` are trained on"):
        load_streams(args, "train-{000..003}.tar")


def test_metadata_beside_tar_files_is_no_shard(shards):
    folder = Path(shards[0]).parent
    pyarrow.parquet.write_table(pyarrow.table({"url": ["a"]}), folder / "train-000.parquet")
    assert shard_files(str(folder)) == {"train": shards}


def test_what_cannot_be_read_is_skipped_for_tokenizers_and_evaluations_too(shards, tmp_path):
    cut = open_shards([write_cut(Path(shards[6])), shards[0]])
    assert len(list(PairStream([cut]).captions(100))) == 5 + 3
    assert len(table_of(cut, 100, "skip")) == 5 + 3
    with pytest.raises(ShardError, match="unexpected end of data"):
        table_of(cut, 100)
    samples = {
        key: {"png": picture(1), "json": text} for key, text in (("a", b"{"), ("b", b"[1]"), ("c", b'{"title": "c"}'))
    }
    dirty = open_shards([str(write_tar(tmp_path / "dirty.tar", samples))], "image", "json.title")
    pairs = list(PairStream([dirty], num_passes=1, on_bad_row="skip"))
    assert [pair["caption"] for pair in pairs] == ["c"]


def test_a_half_deleted_checkpoint_does_not_look_whole(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    (folder / "step-00000001").mkdir(parents=True)
    monkeypatch.setattr(shutil, "rmtree", lambda path, **how: None)  # killed before anything went
    remove_folder(folder)
    assert checkpoint_to_resume(folder, "auto") is None


def test_the_snippet_of_the_documents_makes_one_pass(shards):
    text = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"<!-- snippet: pass -->\n```python\n(.*?)```", text, re.DOTALL)
    seen: list[str] = []
    code = snippet.replace("shards/train-*.tar", f"{Path(shards[0]).parent}/train-*.tar")
    exec(code + '    seen.append(pair["caption"])\n', {"seen": seen})
    assert sorted(seen) == sorted(f"number {number}" for number in range(42))
