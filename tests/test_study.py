"""Studies: what runs when, what is compared, and the study of GRR-CoCa with a training that takes no time."""

import importlib.util
import json
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock, Timeout
from scipy import stats

from triptych.evaluation import comparisons
from triptych.evaluation.captioner import summarize_pairs
from triptych.evaluation.comparisons import (
    METRICS,
    Difference,
    average,
    compare,
    comparison_table,
    holm,
    latex,
    mean_table,
    sums_by_group,
)
from triptych.modeling.configuration_grr_coca import GrrCocaConfig
from triptych.training import grr_coca_study
from triptych.training.grr_coca_study import GrrCocaStudy, StudyArguments
from triptych.training.study import Run, Study, command_line, script_trainer


ROOT = Path(__file__).parents[1]
# A training that writes what it was told, waits if it should, and goes on from a checkpoint.
SCRIPT = """
import json, pathlib, signal, sys, time
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder = pathlib.Path(arguments["--output_dir"])
if arguments.get("--fail"):
    sys.exit("no such thing as " + arguments["--fail"])
checkpoint = folder / "checkpoints" / "step-1"
def stop(*_):
    checkpoint.mkdir(parents=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
(folder / "started").touch()
if arguments.get("--wait") and not checkpoint.exists():
    time.sleep(60)
(folder / "eval_results.json").write_text(json.dumps({"words": sys.argv[1:]}))
"""


@pytest.fixture
def script(tmp_path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def test_arguments_become_words():
    arguments = {"preset": "tiny", "rate": 1e-3, "log": True, "left_out": False, "absent": None, "overrides": {"a": 1}}
    assert command_line(arguments) == ["--preset", "tiny", "--rate", "0.001", "--log", "--overrides", '{"a": 1}']


def test_finished_runs_are_not_repeated_and_others_start_from_them(tmp_path):
    trained = []

    def train(run: Run, folder: Path, stopping: threading.Event) -> None:
        trained.append((run.name, run.arguments))
        (folder / "eval_results.json").write_text(json.dumps({"loss": len(trained)}))

    study = Study(tmp_path, train)
    first = Run("pretraining", "a", 0)
    second = Run("fine-tuning", "a", 0, {"model_name_or_path": "{study}/pretraining/a/seed-0"})
    study.finish([first])
    (study.folder_of(first) / "config.json").touch()
    study.finish([first, second])
    assert trained == [
        ("pretraining/a/seed-0", {}),
        ("fine-tuning/a/seed-0", {"model_name_or_path": f"{tmp_path}/pretraining/a/seed-0"}),
    ]
    assert study.results(second) == {"loss": 2}


def test_a_run_with_other_arguments_is_refused_before_anything_is_trained(tmp_path):
    def train(run: Run, folder: Path, stopping: threading.Event) -> None:
        (folder / "eval_results.json").write_text("{}")

    study = Study(tmp_path, train)
    study.finish([Run("pretraining", "a", 0, {"rate": 0.1, "rows": 5})])
    with pytest.raises(ValueError, match=r"rate was 0\.1 and is 0\.2 now, rows was 5 and is None now"):
        study.finish([Run("pretraining", "b", 0), Run("pretraining", "a", 0, {"rate": 0.2})])
    assert not (tmp_path / "pretraining" / "b").exists()


def test_a_failing_run_is_named_and_stops_those_beside_it_which_go_on_later(tmp_path, script):
    study = Study(tmp_path / "study", script_trainer(script, 1), num_parallel=2)
    waiting, failing = Run("part", "waiting", 0, {"wait": "yes"}), Run("part", "failing", 0, {"fail": "luck"})
    never = [Run("part", f"never-{number}", 0) for number in range(3)]
    with pytest.raises(RuntimeError, match=r"(?s)part/failing/seed-0 ended with code 1.*no such thing as luck"):
        study.finish([waiting, failing, *never])
    assert not study.is_finished(waiting)
    assert not any(study.folder_of(run).exists() for run in never)
    if not (study.folder_of(waiting) / "checkpoints").exists():  # it was stopped before it could listen
        (study.folder_of(waiting) / "checkpoints" / "step-1").mkdir(parents=True)
    study.finish([waiting])
    assert study.results(waiting)["words"][-1] == "--resume"


def test_what_a_run_starts_from_must_be_there(tmp_path, script):
    study = Study(tmp_path, script_trainer(script, 1))
    study.finish([first := Run("pretraining", "a", 0)])
    second = Run("fine-tuning", "a", 0, {"model_name_or_path": "{study}/pretraining/a/seed-0"})
    with pytest.raises(
        FileNotFoundError, match=r"fine-tuning/a/seed-0 starts from .*pretraining/a/seed-0, where no model is"
    ):
        study.finish([second])  # numbers of another machine, without the model
    (study.folder_of(first) / "config.json").touch()
    study.finish([second])


def test_runs_of_other_versions_are_looked_at_but_not_gone_on_with(tmp_path, script):
    runs = [Run("part", name, 0) for name in "ab"]
    Study(tmp_path, script_trainer(script, 1), versions={"drawings": "1"}).finish(runs[:1])
    later = Study(tmp_path, script_trainer(script, 1), versions={"drawings": "2"})
    later.finish(runs[:1])
    with pytest.raises(ValueError, match="holds a run with other versions: drawings was '1' and is '2' now"):
        later.finish(runs)


def test_two_processes_do_not_work_on_one_study(tmp_path, script):
    with FileLock(tmp_path / ".lock"), pytest.raises(Timeout):
        Study(tmp_path, script_trainer(script, 1)).finish([Run("part", "a", 0)])


def test_a_study_that_is_stopped_leaves_nothing_running(tmp_path, script):
    program = f"""
import signal, sys, pathlib
from triptych.training.study import Run, Study, script_trainer
signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
Study(pathlib.Path({str(tmp_path / "study")!r}), script_trainer(pathlib.Path({str(script)!r}), 1)).finish([Run("part", "a", 0, {{"wait": "y"}})])
"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    started = tmp_path / "study" / "part" / "a" / "seed-0" / "started"
    while not started.exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert (started.parent / "checkpoints" / "step-1").exists()
    assert not (started.parent / "eval_results.json").exists()


def samples_of(rng: np.random.Generator, num_pairs: int, factor: float = 1.0) -> dict[str, list]:
    """Numbers of pairs, as a run logs them; the last batch of the contrastive loss was a partial one."""
    samples = {
        "contrastive_loss": (factor * rng.gamma(2.0, size=num_pairs)).tolist(),
        "caption_loss": (factor * rng.gamma(9.0, size=num_pairs)).tolist(),
        "num_tokens": rng.integers(3, 9, num_pairs).tolist(),
        "text_to_image_rank": rng.integers(0, 3, num_pairs).tolist(),
        "image_to_text_rank": rng.integers(0, 3, num_pairs).tolist(),
        "caption_exact_match": rng.integers(0, 2, num_pairs).tolist(),
        "caption_word_f1": rng.random(num_pairs).tolist(),
    }
    samples["contrastive_loss"][-1] = None
    return samples


def results_of(samples: dict[str, list]) -> dict[str, float]:
    scores = {name: np.array(values, dtype=float) for name, values in samples.items()}
    return summarize_pairs(scores, GrrCocaConfig(), 64)


def test_metrics_of_sums_are_those_of_evaluations():
    samples = samples_of(np.random.default_rng(0), 50)
    table = sums_by_group(samples, [f"group {number // 4}" for number in range(50)])
    expected = results_of(samples)
    assert len(table) == 13
    for name, metric in METRICS.items():
        assert metric.value(table.sum()) == pytest.approx(expected[name]), name
    with pytest.raises(ValueError, match="`samples` hold 50 pairs, `groups` 49"):
        sums_by_group(samples, ["one"] * 49)


def test_differences_are_paired_by_seed():
    rng = np.random.default_rng(1)
    groups = [str(number) for number in range(60)]
    first, second = ([samples_of(rng, 60) for _ in range(4)] for _ in range(2))
    tables = [[sums_by_group(samples, groups) for samples in each] for each in (first, second)]
    found = compare(*tables)
    for name in METRICS:
        values = [np.array([results_of(samples)[name] for samples in each]) for each in (first, second)]
        np.testing.assert_allclose(found[name].by_seed, values[0] / values[1] - 1)
        assert found[name].p_value == pytest.approx(stats.ttest_rel(values[0] / values[1], np.ones(4)).pvalue)
    same = compare(tables[0], tables[0])
    assert all(each.mean == 0 and each.interval == (0, 0) for each in same.values())
    with pytest.raises(ValueError, match="nothing to pair"):
        compare(tables[0], tables[1][:2])
    with pytest.raises(ValueError, match="different groups"):
        compare(tables[0], [each.rename(index={"0": "other"}) for each in tables[1]])


def test_intervals_of_one_seed_are_those_of_the_pairs():
    # With one seed what is left is an ordinary paired bootstrap over groups: scipy's.
    rng = np.random.default_rng(2)
    groups = [str(number) for number in range(80)]
    first, second = samples_of(rng, 80), samples_of(rng, 80)
    found = compare([sums_by_group(first, groups)], [sums_by_group(second, groups)])["caption_word_f1"]
    own, other = np.array(first["caption_word_f1"]), np.array(second["caption_word_f1"])

    def difference(own: np.ndarray, other: np.ndarray, axis: int) -> np.ndarray:
        return own.mean(axis=axis) / other.mean(axis=axis) - 1

    options = {"paired": True, "method": "percentile", "vectorized": True, "rng": rng}
    expected = stats.bootstrap((own, other), difference, **options).confidence_interval
    assert found.interval == pytest.approx((expected.low, expected.high), abs=0.02)
    assert np.isnan(found.p_value)


@pytest.mark.parametrize("num_seeds", [3, 5])
def test_intervals_know_both_sources_of_chance(num_seeds, monkeypatch):
    # Seeds with effects of their own, on 60 groups with effects of theirs: 95 % intervals hold the truth at least about as often as
    # they say, also those of three seeds; those over pairs alone do not.
    monkeypatch.setattr(comparisons, "NUM_RESAMPLES", 400)
    rng, inside, inside_of_pairs = np.random.default_rng(3), 0, 0
    for _ in range(100):
        tables: list[list[pd.DataFrame]] = [[], []]
        hard = rng.gamma(9.0, size=60)
        for _ in range(num_seeds):
            for each, factor in zip(tables, (0.9, 1.0), strict=True):
                run = factor * np.exp(0.05 * rng.standard_normal())
                samples = samples_of(rng, 60) | {"caption_word_f1": (run * hard * rng.uniform(0.8, 1.2, 60)).tolist()}
                each.append(sums_by_group(samples, [str(number) for number in range(60)]))
        found = compare(*tables)["caption_word_f1"]
        one = compare(tables[0][:1], tables[1][:1])["caption_word_f1"]
        inside += found.interval[0] <= -0.1 <= found.interval[1]
        inside_of_pairs += one.interval[0] <= -0.1 <= one.interval[1]
    assert inside >= 89
    assert inside_of_pairs < inside - 20


def test_tables_say_what_was_found():
    rng = np.random.default_rng(4)
    groups = [str(number) for number in range(40)]
    better, worse = ([sums_by_group(samples_of(rng, 40, factor), groups) for _ in range(6)] for factor in (0.5, 1.0))
    found = compare(better, worse)
    table = comparison_table(average([found, found])).set_index("metric")
    assert table.loc["contrastive loss ↓", "better in"] == "6 of 6 seeds"
    shown = table.loc["contrastive loss ↓", "difference (95 % interval)"]
    assert shown.startswith(f"{found['contrastive_loss'].mean:+.2%} (")
    nothing = Difference(np.array([0.1, np.inf]), np.array([0.1, np.nan]))  # a recall of 0 in some seed
    assert (nothing.text(1), np.isnan(nothing.p_value)) == ("-", True)
    assert (
        table.loc["contrastive loss ↓", "p, Wilcoxon"]
        == f"{stats.wilcoxon(found['contrastive_loss'].by_seed).pvalue:.3f}"
    )
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.01, float("nan"), 0.03]) == pytest.approx([0.02, float("nan"), 0.03], nan_ok=True)
    assert r"50\%" in latex(pd.DataFrame({"a": ["50% ↓"]}))
    means = mean_table({"a": [{"x": 1.0}, {"x": 2.0}], "b": [{"x": 3.0}]}, {"X": "x"})
    assert means["X"].tolist() == ["1.500 ± 0.707", "3.000"]


@pytest.fixture
def grr_coca_script(monkeypatch):
    """examples/study_grr_coca.py, on few pairs, with trainings that draw their numbers; and the names of what was trained."""
    spec = importlib.util.spec_from_file_location("study_grr_coca", ROOT / "examples" / "study_grr_coca.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    rows = {"train": {"caption": ["a cat", "two dogs"] * 20}}
    rows |= {split: {"group": [str(number // 2) for number in range(30)]} for split in ("test", "new_style")}
    trained: dict[str, Run] = {}

    def train(run: Run, folder: Path, stopping: threading.Event) -> None:
        trained[run.name] = run
        rng = np.random.default_rng(len(trained))
        rate = run.arguments["learning_rate"]
        factor = 0.9 if "grr" in run.variant else 1.0
        factor *= (
            1.0 + abs(np.log(rate / (1e-3 if "grr" in run.variant else 5e-4)))
            if run.part.startswith("learning")
            else 1.0
        )
        samples = samples_of(rng, 30, factor)
        results = results_of(samples)
        for split in filter(None, map(run.arguments.get, ("validation_split", "also_evaluate"))):
            more = samples_of(rng, 30, factor)
            samples |= {f"{split}_{name}": values for name, values in more.items()}
            results |= {f"{split}_{name}": value for name, value in results_of(more).items()}
        if run.arguments.get("log_samples"):
            (folder / "eval_samples.json").write_text(json.dumps(samples))
        rows = [
            {"step": step, "epoch": step / 2, **{f"eval_{name}": value for name, value in results.items()}}
            for step in (1, 2)
        ]
        (folder / "training_log.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (folder / "eval_results.json").write_text(json.dumps(results))
        (folder / "config.json").touch()

    monkeypatch.setattr(comparisons, "NUM_RESAMPLES", 100)
    monkeypatch.setattr(grr_coca_study, "load_picture_set", lambda name: rows)
    monkeypatch.setattr(grr_coca_study, "script_trainer", lambda *_: train)
    return script, trained


def test_the_study_of_grr_coca_trains_everything_once(grr_coca_script, tmp_path, monkeypatch, capsys):
    script, trained = grr_coca_script
    archive, there = tmp_path / "runs.tar.xz", tmp_path / "there"
    options = ["--seeds", "0", "1", "2", "--num_other_seeds", "2", "--archive", str(archive)]
    monkeypatch.setattr(sys, "argv", ["study", "--output_dir", str(tmp_path), *options])
    script.main()
    printed = capsys.readouterr().out
    count = len(trained)
    pretrained = {name: run for name, run in trained.items() if name.startswith("pretraining/")}
    assert len(pretrained) == 2 * 3 + 3 * 2
    rates = {run.variant: run.arguments["learning_rate"] for run in pretrained.values()}
    assert rates["baseline-coca-tiny-iso"] == 5e-4  # what its own validation runs found best
    for name, run in trained.items():
        is_grid = name.startswith("learning-rates/")
        assert (run.arguments.get("eval_split") == "validation") == is_grid, name
        assert run.arguments["metric_for_best_model"] == ("coca_loss" if is_grid else "validation_coca_loss")
        assert run.arguments["num_epochs"] * run.arguments["eval_epochs"] > 0
    assert trained["pretraining-0.001/baseline-coca-tiny-iso/seed-0"].arguments["learning_rate"] == 1e-3
    tuned = next(
        run for name, run in trained.items() if re.fullmatch("game-icons/.*/coca-tiny/seed-1", name)
    ).arguments
    assert tuned["model_name_or_path"] == f"{tmp_path}/pretraining/coca-tiny/seed-1"
    assert trained["pairs-3000/grr-coca-tiny-iso/seed-0"].arguments["max_train_rows"] == 3000
    for heading in (
        "GRR-CoCa, equal parameters",
        "Which change does it?",
        "The gap by the number of pairs",
        "At equal learning rates",
        "-27.25%",
    ):
        assert heading in printed
    assert printed.count("data:image") == 0
    assert (tmp_path / "report.html").read_text().count("data:image/png") == 6
    assert (tmp_path / "tables.md").read_text().strip() in printed
    with tarfile.open(archive) as tar:
        tar.extractall(there, filter="data")
    monkeypatch.setattr(sys, "argv", [str(there) if word == str(tmp_path) else word for word in sys.argv])
    monkeypatch.setattr(grr_coca_study, "load_picture_set", None)  # neither trainings nor data sets
    script.main()
    assert len(trained) == count
    assert (there / "tables.md").read_text() == (tmp_path / "tables.md").read_text()


@pytest.mark.parametrize("size", ["tiny", "base", "large"])
def test_all_changes_of_the_encoder_make_grr_coca(size, tmp_path):
    study = GrrCocaStudy(tmp_path, StudyArguments(size=size), Path("pretrain.py"))
    encoders = study.encoders()
    assert len(encoders) == 12
    for name, expected in (("geglu+rmsnorm+rope_1d", study.grr), ("original", study.baseline)):
        config = GrrCocaConfig.from_preset(study.baseline, **encoders[name]["config_overrides"])
        assert config.to_dict() == GrrCocaConfig.from_preset(expected).to_dict()


def test_a_changed_learning_rate_grid_is_not_mixed_with_finished_runs(grr_coca_script, tmp_path, monkeypatch):
    script, _ = grr_coca_script
    arguments = [
        "study",
        "--output_dir",
        str(tmp_path),
        "--seeds",
        "0",
        "1",
        "--num_other_seeds",
        "2",
        "--parts",
        "sizes",
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    script.main()
    monkeypatch.setattr(sys, "argv", [*arguments, "--num_epochs", "2"])
    with pytest.raises(ValueError, match=r"num_epochs was 3\.0 and is 2\.0 now"):
        script.main()
