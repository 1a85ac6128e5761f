"""`triptych evaluate`: the layouts of public benchmarks, what is counted, and what happens after a stop."""

import io
import json
import re
import shlex
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from huggingface_hub import ModelCard
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from transformers import AutoModel, AutoProcessor, CLIPConfig, CLIPModel
from typer.testing import CliRunner

from tests.conftest import (
    load_example,
    tiny_config,
    tiny_mammut,
    tiny_mammut_processor,
    tiny_model,
    tiny_processor,
    tiny_vw_lmm,
)
from triptych.cli import app
from triptych.tasks.classification import TEMPLATES, Classification, read_templates
from triptych.tasks.encoders import Encoder
from triptych.tasks.runs import run_task


CLASSES = ("red heart", "apple", "blue sky", "old house", "cat", "small dog")


def picture(number: int) -> Image.Image:
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8))


def image_folder(folder: Path, per_class: int = 3) -> Path:
    for label, name in enumerate(CLASSES):
        place = folder / "test" / name.replace(" ", "_")
        place.mkdir(parents=True)
        for number in range(per_class):
            picture(10 * label + number).save(place / f"{number}.png")
    return folder


def clip_benchmark_folder(folder: Path, per_class: int = 3) -> Path:
    """As `clip_benchmark_export_wds` writes it."""
    (folder / "test").mkdir(parents=True)
    (folder / "classnames.txt").write_text("\n".join(CLASSES))
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\na drawing of the {c}.\n")
    (folder / "test" / "nshards.txt").write_text("2")
    for shard in range(2):
        with tarfile.open(folder / "test" / f"{shard}.tar", "w") as tar:
            for index in range(shard, len(CLASSES) * per_class, 2):
                stored = io.BytesIO()
                picture(index).save(stored, "PNG")
                for ending, content in (("png", stored.getvalue()), ("cls", str(index % len(CLASSES)).encode())):
                    info = tarfile.TarInfo(f"s{index:04d}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    processor = tiny_processor(tiny_config(text_config={"max_position_embeddings": 40}))
    text_config = {"max_position_embeddings": 40, "vocab_size": len(processor.tokenizer)}
    tiny_model(text_config=text_config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def encoder_of(folder: Path) -> Encoder:
    return Encoder(AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder))


def by_hand(folder: Path, pictures: list[Image.Image], names: list[str], templates: list[str]) -> np.ndarray:
    """Scores of all classes, as CLIP's paper describes them, out of the model alone."""
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    with torch.no_grad():
        classes = []
        for name in names:
            inputs = processor(text=[each.format(name) for each in templates], return_tensors="pt")
            vectors = model.get_text_features(**inputs).pooler_output
            mean = (vectors / vectors.norm(dim=-1, keepdim=True)).mean(0)
            classes.append(mean / mean.norm())
        images = model.get_image_features(processor(images=pictures, return_tensors="pt")["pixel_values"])
    return (images.pooler_output / images.pooler_output.norm(dim=-1, keepdim=True) @ torch.stack(classes).T).numpy()


def test_the_eighty_templates_are_those_of_imagenet():
    assert len(set(TEMPLATES["imagenet"])) == 80
    assert {"itap of my {}.", "a {} in a video game.", "the origami {}.", "a photo of the hard to see {}."} < {
        *TEMPLATES["imagenet"]
    }


@pytest.mark.parametrize("layout", [image_folder, clip_benchmark_folder])
def test_classification_counts_what_scikit_learn_counts(tmp_path, checkpoint, layout):
    source = layout(tmp_path / "data")
    task = Classification(str(source))
    results = run_task(task, encoder_of(checkpoint), {}, tmp_path / "out", Accelerator(cpu=True), batch_size=4)
    rows = [task.rows[index] for index in range(len(task.rows))]
    labels = [row["label"] for row in rows]
    assert sorted(labels) == sorted(list(range(6)) * 3)
    templates = ["a photo of a {}."] + (["a drawing of the {}."] if layout is clip_benchmark_folder else [])
    scores = by_hand(checkpoint, [row["image"] for row in rows], task.class_names, templates)
    found = results["metrics"]
    assert found["top1"] == pytest.approx(top_k_accuracy_score(labels, scores, k=1))
    assert found["top5"] == pytest.approx(top_k_accuracy_score(labels, scores, k=5))
    assert found["mean_per_class_recall"] == pytest.approx(balanced_accuracy_score(labels, scores.argmax(1)))
    names = CLASSES if layout is clip_benchmark_folder else sorted(CLASSES)
    assert [each["name"] for each in found["classes"]] == list(names)
    own = [scores[np.array(labels) == label].argmax(1) == label for label in range(6)]
    assert [each["accuracy"] for each in found["classes"]] == pytest.approx([each.mean() for each in own])
    lines = (tmp_path / "out" / "samples.jsonl").read_text().splitlines()[1:]
    assert [json.loads(line)["prediction"] for line in lines] == scores.argmax(1).tolist()


def test_a_stopped_evaluation_goes_on_where_it_was(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr("triptych.tasks.runs._BATCHES_PER_CHUNK", 1)
    task, encoder = Classification(str(image_folder(tmp_path / "data"))), encoder_of(checkpoint)
    run = lambda folder, **facts: run_task(task, encoder, facts, tmp_path / folder, Accelerator(cpu=True), 4)  # noqa: E731
    expected = run("whole")
    predict, calls = task.predict, []

    def fails_at_the_third(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predict(*args)

    task.predict = fails_at_the_third
    with pytest.raises(KeyboardInterrupt):
        run("stopped")
    path = tmp_path / "stopped" / "samples.jsonl"
    assert len(path.read_text().splitlines()) == 1 + 8
    with path.open("a") as file:
        file.write('{"label": 3, "predic')  # killed while it wrote
    calls.clear()
    task.predict = lambda *args: calls.append(1) or predict(*args)
    assert run("stopped") == expected
    assert len(calls) == 3  # of the five batches
    assert path.read_text() == (tmp_path / "whole" / "samples.jsonl").read_text()
    with pytest.raises(ValueError, match=r"`output` .* holds an evaluation with `model` None, now it is 'another'"):
        run("stopped", model="another")


def test_families_of_this_package_and_of_transformers_encode(tmp_path):
    processor = tiny_mammut_processor(max_length=12)
    config = CLIPConfig(
        text_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": len(processor.tokenizer)},
        vision_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )  # fmt: skip
    mammut = tiny_mammut(text_config={"vocab_size": len(processor.tokenizer)}).model
    for model in (mammut, CLIPModel(config).eval()):
        encoder = Encoder(model, processor)
        images, texts = encoder.images([picture(0), picture(1)]), encoder.texts(["an apple", "a red heart " * 60])
        assert images.shape[1] == texts.shape[1]
        for vectors in (images, texts):
            torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2))
        one = encoder.texts(["an apple"])
        torch.testing.assert_close(one[0], texts[0], atol=1e-5, rtol=0)  # whatever is beside it
    with pytest.raises(ValueError, match="A vw_lmm has no space that images and texts share"):
        Encoder(tiny_vw_lmm(), processor)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "val"}, "`split` 'val' is not in"),
        ({"templates": "nowhere"}, "`templates` must be one of plain, imagenet, or a file; there is no 'nowhere'"),
        ({"class_names": Path("nowhere.txt")}, "`class_names` nowhere.txt cannot be read"),
        ({"label_column": "kind"}, "`label_column` 'kind' is not a column"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        Classification(str(image_folder(tmp_path / "data")), **options)


def test_files_that_do_not_fit_are_said(tmp_path):
    source, file = str(image_folder(tmp_path / "data")), tmp_path / "lines.txt"
    file.write_text("a photo\n")
    with pytest.raises(ValueError, match=r"holds 'a photo'; expected one \{\} for the name of a class"):
        read_templates(str(file))
    with pytest.raises(ValueError, match="`class_names` holds 1 names, the data have 6 classes"):
        Classification(source, class_names=file)
    file.write_text("\n")
    with pytest.raises(ValueError, match=r"`class_names` .* is empty"):
        Classification(source, class_names=file)
    file.write_text("cat\n\ndog\n")
    with pytest.raises(ValueError, match=r"`class_names` .* has a blank line 2"):
        Classification(source, class_names=file)
    benchmark = clip_benchmark_folder(tmp_path / "benchmark")
    (benchmark / "classnames.txt").write_text("cat\n")
    with pytest.raises(ValueError, match=r"`cls` of row 1 is .*; expected the number of one of 1 classes, from 0"):
        Classification(str(benchmark))


def command_of_the_page(name: str) -> list[str]:
    page = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    _, *arguments = shlex.split(re.search(rf"<!-- command: {name} -->\n```bash\n(.*?)```", page, re.DOTALL).group(1))
    return arguments


def test_the_command_of_the_page_evaluates(tmp_path, checkpoint):
    here = {
        "outputs/demo": checkpoint, "data/pictures": image_folder(tmp_path / "data"),
        "outputs/evaluation": tmp_path / "out",
    }  # fmt: skip
    arguments = [str(here.get(word, word)) for word in command_of_the_page("classification")]
    found = CliRunner().invoke(app, [*arguments, "--limit", "5", "--json"])
    assert found.exit_code == 0, found.output
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert json.loads(found.stdout) == results
    assert results["num_samples"] == 5
    assert results["model"] == str(checkpoint)


def evaluated(folder: Path, name: str, ranks: list[int]) -> Path:
    """An evaluation of twelve pictures in six classes, as `run_task` leaves it."""

    class Known:
        name = "classification"
        rows = range(12)

        def predict(self, model, rows):
            return [{"label": row % 6, "prediction": (row + ranks[row]) % 6, "rank": ranks[row]} for row in rows]

        def score(self, samples):
            return Classification.score(self, samples)

        class_names = CLASSES

    facts = {"model": f"somewhere/{name}", "dataset": "data/six", "split": "test"}
    run_task(Known(), None, facts, folder / name, Accelerator(cpu=True))
    return folder / name


def test_evaluations_are_compared_sample_by_sample(tmp_path):
    good = evaluated(tmp_path, "good", [0] * 9 + [1, 1, 5])
    bad = evaluated(tmp_path, "bad", [0] * 3 + [1] * 9)
    found = CliRunner().invoke(app, ["report", str(bad), str(good), "-o", str(tmp_path / "report")])
    assert found.exit_code == 0, found.output
    assert "## classification: data/six, test" in found.stdout
    rows = {line.split("|")[1].strip(): line.split("|") for line in found.stdout.splitlines() if line.startswith("| ")}
    assert rows["bad"][2].startswith(" 0.2500 (0.0000 to 0.5")
    low, high = map(float, re.search(r"\+0\.5000 \((\S+) to (\S+)\)", found.stdout).groups())
    # Paired: six of twelve pictures are right in the one alone, so the standard error is sqrt(0.25 / 12).
    assert low == pytest.approx(0.5 - 1.96 * (0.25 / 12) ** 0.5, abs=0.09)
    assert high == pytest.approx(0.5 + 1.96 * (0.25 / 12) ** 0.5, abs=0.09)
    assert {"report.html", "tables.md", "tables.tex", "0-classification.png"} <= {
        path.name for path in (tmp_path / "report").iterdir()
    }
    (tmp_path / "good" / "values.json").write_text(json.dumps({"top1": [1.0] * 11, "top5": [1.0] * 11}))
    found = CliRunner().invoke(app, ["report", str(bad), str(good), "-o", str(tmp_path / "other")])
    assert found.exit_code == 2
    assert "has 11 values of `top1`" in found.output
    assert not (tmp_path / "other").exists()
    found = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert "holds no finished evaluation" in found.output


def test_numbers_go_into_the_card_and_to_the_hubs_leaderboards(tmp_path, checkpoint):
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    source = str(image_folder(tmp_path / "data"))
    command = [
        "evaluate",
        str(folder),
        "--task",
        "classification",
        "--dataset",
        source,
        "-o",
        str(tmp_path / "out"),
        "--card",
    ]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 2
    assert "is no folder with a card" in " ".join(found.output.split())
    ModelCard("---\nlicense: mit\n---\n\n# A model\n").save(folder / "README.md")
    for _ in range(2):  # the second replaces the numbers of the first
        found = CliRunner().invoke(app, [*command, "--dataset-id", "owner/six"])
        assert found.exit_code == 0, found.output
    top1 = json.loads((tmp_path / "out" / "results.json").read_text())["metrics"]["top1"]
    card = ModelCard.load(folder / "README.md")
    listed = [each for each in card.data.eval_results if each.metric_type == "top1"]
    assert [(each.dataset_type, each.metric_value) for each in listed] == [("owner/six", top1)]
    assert card.data.license == "mit"
    (path,) = (folder / ".eval_results").glob("*.yaml")
    entries = yaml.safe_load(path.read_text())
    assert {"id": "owner/six", "task_id": "top1"} in [each["dataset"] for each in entries]
    assert next(each["value"] for each in entries if each["dataset"]["task_id"] == "top1") == top1
    found = CliRunner().invoke(app, [*command, "--dataset-id", "six"])
    assert "`dataset_id` must be 'owner/name', got 'six'" in " ".join(found.output.split())


def test_benchmarks_of_a_training_have_a_curve_in_its_report():
    losses = {"caption_loss": 2.0, "contrastive_loss": 3.0, "eval_caption_loss": 2.0, "eval_contrastive_loss": 3.0}
    log = [{"step": step, **losses, "eval_text_to_image_recall@1": 0.1} for step in (1, 2)]
    figure = Figure()
    load_example("report").plot_curve(log, figure.subplots())
    assert len(figure.axes) == 1
    figure = Figure()
    log = [{**row, "eval_icons_top1": 0.5 * row["step"], "eval_icons_mean_per_class_recall": 0.5} for row in log]
    load_example("report").plot_curve(log, figure.subplots())
    (line,) = figure.axes[1].lines
    assert (line.get_label(), list(line.get_ydata())) == ("icons_top1", [0.5, 1.0])
