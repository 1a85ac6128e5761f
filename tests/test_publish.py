"""Publishing, end to end against a Hub on the loopback interface, with the real client."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.conftest import WITHOUT_TRIPTYCH, tiny_model, tiny_processor
from tests.loopback_hub import TOKEN, LoopbackHub
from tests.test_hub import CARD
from triptych import hub
from triptych.cli import app


@pytest.fixture
def server():
    with LoopbackHub().running() as running:
        yield running


@pytest.fixture
def repo(tmp_path) -> Path:
    folder = hub.save_repository(tmp_path / "grr-coca-openmoji", tiny_model(), tiny_processor(), CARD)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "optimizer.pt").write_bytes(b"not to be published")
    return folder


@pytest.fixture
def push(server, monkeypatch):
    """`hub.publish` against the server: the client reads the endpoint when an API object is made."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def call(folder: Path, repo_id: str = "someone/openmoji", token: str = TOKEN, **options):
        monkeypatch.setattr(hub, "HfApi", lambda token: HfApi(endpoint=server.url, token=token))
        return hub.publish(folder, repo_id, token=token, **options)

    from huggingface_hub import HfApi

    return call


def published(server: LoopbackHub, revision: str = "main") -> dict[str, bytes]:
    repository = server.repositories["someone/openmoji"]
    return {path: server.objects[oid] for path, oid in repository.commits[repository.branches[revision]].items()}


USER = (
    WITHOUT_TRIPTYCH
    + """
from transformers import pipeline
pipe = pipeline("image-to-text", model="someone/openmoji", trust_remote_code=True)
print(pipe("picture.png", max_new_tokens=4)[0]["generated_text"])
"""
)


def test_a_published_model_captions_a_picture_for_somebody_without_triptych(server, push, repo, tmp_path):
    commit = push(repo)
    files = published(server)
    assert commit.oid == server.repositories["someone/openmoji"].branches["main"]
    local = {path.name: path.read_bytes() for path in repo.iterdir() if path.is_file()}
    card = local.pop("README.md").replace(b'repo = "tiny"', b'repo = "someone/openmoji"')
    assert files["README.md"] == card  # whose snippets now name the repository
    assert {name: files[name] for name in local} == local
    assert files.keys() - local.keys() == {".gitattributes", "README.md"}
    assert server.uploads  # the weights went through LFS

    Image.new("RGB", (20, 20), "red").save(tmp_path / "picture.png")
    cache = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1"}
    texts = []
    for offline in ("0", "1"):
        result = subprocess.run(
            [sys.executable, "-c", USER], cwd=tmp_path, env={**os.environ, **cache, "HF_HUB_OFFLINE": offline},
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        texts.append(result.stdout)
    inputs = tiny_processor()(images=Image.new("RGB", (20, 20), "red"), return_tensors="pt")
    with torch.no_grad():
        ids = tiny_model().generate(**inputs, max_new_tokens=4)
    expected = tiny_processor().batch_decode(ids, skip_special_tokens=True)[0].strip()
    assert [text.strip("\n") for text in texts] == [expected, expected]


def test_branches_pull_requests_and_private_repositories(server, push, repo):
    push(repo, private=True)
    assert server.repositories["someone/openmoji"].private
    server.repositories["someone/openmoji"].private = False
    with pytest.raises(ValueError, match="exists and is public"):
        push(repo, private=True)
    before = published(server)
    (repo / "notes.md").write_text("new")
    push(repo, revision="next")
    assert published(server, "next")["notes.md"] == b"new"
    commit = push(repo, create_pr=True)
    assert commit.pr_url.endswith("/discussions/1")
    assert published(server) == before


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (("POST .*/commit/", 413), "larger than the quota"),
        (("POST .*/commit/", 412), "somebody else committed since"),
        (("POST .*/preupload/", 403), "the token may not write there"),
        (("PUT /lfs/", 400), "was not published"),
        (("POST .*/commit/", 0), "the connection broke"),
        (("POST .*/commit/", 500), "busy or out of order"),
    ],
)
def test_failures_leave_no_half_published_revision(server, push, repo, failure, message):
    push(repo)
    before = published(server)
    hub.save_repository(repo, tiny_model(seed=1), tiny_processor(), CARD)
    server.failures.append(failure)
    with pytest.raises(RuntimeError, match=message):
        push(repo)
    assert published(server) == before
    sent = len(server.uploads)
    push(repo)  # goes on: large files that arrived before are not sent twice
    assert published(server)["model.safetensors"] == (repo / "model.safetensors").read_bytes()
    assert len(server.uploads) - sent == (1 if failure[0] == "PUT /lfs/" or "preupload" in failure[0] else 0)


def test_what_an_earlier_version_had_does_not_stay(server, push, repo):
    push(repo)
    (repo / "model.safetensors").unlink()
    tiny_model().save_pretrained(repo, max_shard_size="100KB")
    push(repo)
    server.repositories["someone/openmoji"].commits[server.repositories["someone/openmoji"].branches["main"]][
        "handler.py"
    ] = server.store(b"somebody's own")
    shards = {name for name in published(server) if ".safetensors" in name}
    assert len(shards) > 2
    assert "model.safetensors" not in shards
    hub.save_repository(repo, tiny_model(), tiny_processor(), CARD)
    push(repo)
    assert {name for name in published(server) if ".safetensors" in name} == {"model.safetensors"}
    assert {".gitattributes", "handler.py"} <= published(server).keys()


def test_results_of_evaluations_are_published_where_the_hub_looks_for_them(server, push, repo):
    (repo / ".eval_results").mkdir()
    (repo / ".eval_results" / "owner--six.yaml").write_text("- value: 0.5\n")
    (repo / ".eval_results" / "notes.txt").write_text("mine")
    push(repo)
    assert published(server)[".eval_results/owner--six.yaml"] == b"- value: 0.5\n"
    assert not any("notes" in name for name in published(server))


def test_a_model_is_written_and_published_at_once(server, push):
    push(tiny_model(), processor=tiny_processor(), card=CARD)
    assert published(server).keys() >= {"model.safetensors", "modeling_grr_coca.py", "README.md", "tokenizer.json"}
    with pytest.raises(ValueError, match="needs its `processor` and the fields of its `card`"):
        push(tiny_model())


def test_a_refused_token_a_malformed_name_and_offline_mode(server, push, repo, monkeypatch):
    with pytest.raises(RuntimeError, match="the Hub does not know the token"):
        push(repo, token="hf_wrong")
    assert not server.repositories
    for name in ("someone/a/b", "nobody", "someone/..."):
        with pytest.raises(ValueError, match="`repo_id` must be 'owner/name'"):
            push(repo, name)
    assert not server.repositories
    assert push(repo, dry_run=True) is None
    assert not server.repositories
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RuntimeError, match="HF_HUB_OFFLINE is set"):
        push(repo)


def test_a_commit_in_between_is_a_conflict(server, push, repo, monkeypatch):
    push(repo)
    repository = server.repositories["someone/openmoji"]
    real = hub.CommitOperationAdd

    def meanwhile(*args):
        repository.commit("main", dict(repository.commits[repository.branches["main"]]))
        return real(*args)

    monkeypatch.setattr(hub, "CommitOperationAdd", meanwhile)
    (repo / "notes.md").write_text("new")
    with pytest.raises(RuntimeError, match="somebody else committed since this upload began"):
        push(repo)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "is no repository"),
        ("layers.py", r"\(layers\.py\)"),
        ("modeling_grr_coca.py", "lacks code that its config.json leads to"),
        ("model.safetensors", "holds no weights"),
        ("processing_grr_coca.py", "lacks code that its config.json leads to"),
        ("processor_config.json", "has no processor"),
        ("README.md", "has no model card"),
    ],
)
def test_incomplete_folders_are_refused_before_anything_is_sent(repo, name, message):
    (repo / name).unlink()
    with pytest.raises(ValueError, match=message):
        hub.files_to_publish(repo)


def test_a_missing_shard_and_a_broken_card_are_refused(repo):
    (repo / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    with pytest.raises(ValueError, match=r"lacks weights that model\.safetensors\.index\.json names"):
        hub.files_to_publish(repo)
    (repo / "model.safetensors.index.json").unlink()
    (repo / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(ValueError, match=r"README\.md cannot be read"):
        hub.files_to_publish(repo)


def test_a_card_without_a_licence_is_refused(tmp_path):
    folder = hub.save_repository(tmp_path / "a", tiny_model(), tiny_processor(), {**CARD, "license": None})
    with pytest.raises(ValueError, match="names no `license`"):
        hub.files_to_publish(folder)


def test_the_command_lists_checks_and_publishes(server, repo, monkeypatch):
    outcome = CliRunner().invoke(app, ["push", str(repo), "someone/openmoji", "--dry-run"])
    assert outcome.exit_code == 0, outcome.output
    assert "model.safetensors" in outcome.output
    assert "optimizer.pt" not in outcome.output
    assert not server.repositories
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    environment["HF_HUB_OFFLINE"] = "0"
    command = [sys.executable, "-m", "triptych.cli", "push", str(repo), "someone/openmoji"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert f"{server.url}/someone/openmoji/commit/" in result.stdout
    assert "arning" not in result.stderr  # of other libraries
    assert "_pytree" not in result.stderr
    result = subprocess.run(
        command, env={**environment, "HF_TOKEN": "hf_wrong"}, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 2
    assert "does not know the token" in result.stderr
    assert json.loads(published(server)["config.json"])["model_type"] == "grr_coca"
