"""Captions and embeddings of whole collections: the same as one by one, and on with what is missing."""

import json
import shutil
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.conftest import tiny_model, tiny_processor, vw_lmm_pair
from tests.test_streams import picture, write_cut, write_tar
from triptych import bulk, pipeline
from triptych.bulk import BulkTask, Job, Worker, jobs_of, run_bulk
from triptych.cli import app


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    processor = tiny_processor()
    model = tiny_model(text_config={"vocab_size": len(processor.tokenizer)})
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    """Three tar files of five pictures of unlike sizes; the second one holds a file that is none."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(3):
        samples = {
            f"{number:03d}": {"png": picture(20 * number, side=16 + number), "txt": b"a text"}
            for number in range(5 * shard, 5 * shard + 5)
        }
        if shard == 1:
            samples["bad"] = {"png": b"no picture", "txt": b"a text"}
        write_tar(folder / f"{shard:05d}.tar", samples)
    return f"{folder}/*.tar"


def rows_of(folder: Path) -> dict:
    table = pyarrow.parquet.read_table(folder).to_pydict()
    (column,) = set(table) - {"key"}
    assert len(set(table["key"])) == len(table["key"])
    return dict(zip(table["key"], table[column], strict=True))


def expected_of(repository: str, kind: str) -> dict:
    worker = Worker(BulkTask("caption", repository), "")
    model, processor = worker.model, worker.processor
    found = {}
    for number in range(15):
        image = Image.new("RGB", (16 + number, 20 + number), (20 * number % 256, 20 * number // 256, 200))
        if kind == "caption":
            pipe = pipeline("image-to-text", model, processor=processor)
            options = {"num_beams": 2, "do_sample": False}
            found[f"{number:03d}"] = pipe(image, max_new_tokens=5, generate_kwargs=options)[0]["generated_text"]
        else:
            inputs = processor(images=image, return_tensors="pt")
            with torch.no_grad():
                found[f"{number:03d}"] = torch.nn.functional.normalize(
                    model.get_image_features(**inputs).pooler_output
                )[0]
    return found


def finish(task: BulkTask, shards: str, output: Path, **how) -> list[dict]:
    return [numbers for _, numbers in run_bulk(task, jobs_of(shards, lambda folder: [], Path()), output, **how)]


CAPTIONS = {"prompt": "", "max_new_tokens": 5, "num_beams": 2}


def test_a_collection_gets_the_captions_and_vectors_of_its_pictures(repository, shards, tmp_path):
    numbers = finish(BulkTask("embed", repository, 2), shards, tmp_path / "vectors")
    assert numbers == [{"pictures": 5, "corrupt": 0}, {"pictures": 5, "corrupt": 1}, {"pictures": 5, "corrupt": 0}]
    found, expected = rows_of(tmp_path / "vectors"), expected_of(repository, "embed")
    assert found.keys() == expected.keys()
    for key, vector in found.items():
        torch.testing.assert_close(torch.tensor(vector), expected[key], atol=1e-5, rtol=1e-4)
    finish(BulkTask("caption", repository, 3, CAPTIONS), shards, tmp_path / "captions")
    assert rows_of(tmp_path / "captions") == expected_of(repository, "caption")


def test_finished_shards_are_left_and_the_others_done(repository, shards, tmp_path, monkeypatch):
    task = BulkTask("embed", repository, 4)
    half = run_bulk(task, jobs_of(shards, lambda folder: [], Path()), tmp_path)
    assert next(half)[0] == 1
    half.close()
    first = tmp_path / "00000.parquet"
    stamp = first.stat().st_mtime_ns
    assert [path.name for path in tmp_path.glob("*.parquet")] == ["00000.parquet"]
    done = [count for count, _ in run_bulk(task, jobs_of(shards, lambda folder: [], Path()), tmp_path)]
    assert done == [2, 3]
    assert first.stat().st_mtime_ns == stamp
    monkeypatch.setattr(bulk, "Worker", None)  # a finished collection needs no model
    assert finish(task, shards, tmp_path) == []
    with pytest.raises(ValueError, match="holds results with `kind` 'embed', now it is 'caption'"):
        finish(BulkTask("caption", repository), shards, tmp_path)
    others = [Job("00000", ("elsewhere/00000.tar",), True)]
    with pytest.raises(ValueError, match=r"00000.parquet is of other files than elsewhere/00000.tar"):
        list(run_bulk(task, others, tmp_path))
    (tmp_path / "_run.json").unlink()
    with pytest.raises(ValueError, match="holds parquet files of something else"):
        finish(task, shards, tmp_path)


def test_the_command_reads_folders_and_says_what_it_cannot(repository, shards, tmp_path):
    pictures = tmp_path / "pictures"
    (pictures / "below").mkdir(parents=True)
    for number in range(3):
        (pictures / "below" / f"{number}.png").write_bytes(picture(number))
    (pictures / "bad.jpg").write_bytes(b"no picture")
    runner, out = CliRunner(), tmp_path / "out"
    command = ["embed", str(pictures), "--model", repository, "--output", str(out), "--json"]
    result = runner.invoke(app, command)
    found = json.loads(result.stdout)
    assert found == {"output": str(out), "parts": 1, "parts_done_before": 0, "pictures": 3, "corrupt": 1}
    assert {Path(key).name for key in rows_of(out)} == {"0.png", "1.png", "2.png"}
    assert json.loads(runner.invoke(app, command).stdout)["parts_done_before"] == 1
    result = runner.invoke(
        app, ["caption", shards, "--model", repository, "--output", str(tmp_path / "c"), "--max-new-tokens", "4"]
    )
    assert "15 pictures in 3 parts, 1 could not be read; 0 parts were done before" in result.stdout
    for words, message in (
        (["embed", str(tmp_path / "none-*.tar"), "--model", repository, "--output", str(out)], "No shard matches"),
        (
            ["caption", "a", "b", "--model", repository, "--output", str(out)],
            "With `--output` there is one source, got 2",
        ),
        (["caption", "a.png", "--model", repository, "--engine", "ray"], "`--engine` is for collections"),
    ):
        result = runner.invoke(app, words)
        assert result.exit_code == 2
        assert message in result.stderr


def test_jobs_are_called_as_their_shards_are_and_apart(tmp_path):
    for name in ("a/0.tar", "b/0.tar", "b/1.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_tar(tmp_path / name, {})
    assert [job.name for job in jobs_of(f"{tmp_path}/*/*.tar", None, Path())] == ["a-0", "b-0", "b-1"]
    assert [job.name for job in jobs_of(f"{tmp_path}/b/*.tar", None, Path())] == ["0", "1"]
    assert [job.name for job in jobs_of(f"{tmp_path}/b/1.tar", None, Path())] == ["1"]


def test_without_ray_its_engine_says_what_to_install(repository, shards, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r'`engine` "ray" needs Ray: pip install "triptych\[ray\]"'):
        finish(BulkTask("embed", repository), shards, tmp_path, engine="ray")


def test_a_cluster_of_two_workers_finds_what_one_finds(repository, shards, tmp_path):
    ray = pytest.importorskip("ray")
    finish(BulkTask("embed", repository, 2), shards, tmp_path / "one")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        numbers = finish(BulkTask("embed", repository, 2), shards, tmp_path / "two", engine="ray", num_workers=2)
    finally:
        ray.shutdown()
    assert sorted(each["corrupt"] for each in numbers) == [0, 0, 1]
    assert rows_of(tmp_path / "two") == rows_of(tmp_path / "one")


def test_several_processes_share_the_jobs(repository, shards, tmp_path):
    finish(BulkTask("embed", repository, 2), shards, tmp_path / "one")
    numbers = finish(BulkTask("embed", repository, 2), shards, tmp_path / "two", num_workers=2)
    assert len(numbers) == 3
    assert rows_of(tmp_path / "two") == rows_of(tmp_path / "one")


def test_a_folder_of_pictures_stays_one_when_results_lie_in_it(tmp_path):
    (tmp_path / "a.png").write_bytes(picture(1))
    output = tmp_path / "vectors"
    output.mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"key": ["a"]}), output / "pictures-00000.parquet")
    (job,) = jobs_of(str(tmp_path), lambda folder: sorted(folder.glob("*.png")), output)
    assert (job.name, job.is_shard) == ("pictures-00000", False)


def test_no_two_jobs_have_one_name(tmp_path):
    for name in ("a/b.tar", "a-b.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_tar(tmp_path / name, {})
    names = [job.name for job in jobs_of(str(tmp_path), None, tmp_path / "out")]
    assert len(set(names)) == 2


def test_a_shard_that_was_cut_does_not_stop_the_others(repository, shards, tmp_path):
    files = sorted(Path(shards).parent.glob("*.tar"))
    write_cut(Path(shutil.copy(files[0], tmp_path / "00000.tar")))
    (tmp_path / "00000.tar").unlink()
    write_tar(tmp_path / "00001.tar", {"x": {"png": picture(1), "txt": b"a"}})
    numbers = finish(BulkTask("embed", repository), f"{tmp_path}/*.tar", tmp_path / "out")
    assert [each["corrupt"] for each in numbers] == [1, 0]
    assert numbers[1]["pictures"] == 1


def test_a_model_without_a_joint_space_embeds_nothing(tmp_path, shards):
    model, processor = vw_lmm_pair()
    model.save_pretrained(tmp_path / "chat")
    processor.save_pretrained(tmp_path / "chat")
    with pytest.raises(ValueError, match="is a vw_lmm; embeddings need a grr_coca or mammut"):
        finish(BulkTask("embed", str(tmp_path / "chat")), shards, tmp_path / "out")
