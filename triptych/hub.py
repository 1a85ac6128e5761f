"""A finished Hub repository: weights, code, processor, generation config, model card. Written, and published, whole or not at all."""

import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import torch
import transformers
from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    EvalResult,
    HfApi,
    ModelCard,
    ModelCardData,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedModel, ProcessorMixin
from transformers.dynamic_module_utils import get_relative_imports
from yaml import YAMLError


if TYPE_CHECKING:
    from peft import PeftModel


# Names that `save_pretrained` gives to the weights of a whole model.
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


def write_model_card(folder: Path, template: str = "template.md", **fields: Any) -> None:
    """Fill a card template of `model_cards/` and write it as the folder's README.

    Args:
        folder: Of the repository.
        template: "template.md" for models, "adapter_template.md" for adapters, or one of a training run in "runs/".
        fields: What the template asks for: `name`, `license`, `metrics`, and so on; see the template. Numbers among the
            `metrics` also become the card's `model-index`, which the Hub lists.
    """
    metadata = ModelCardData(
        model_name=fields["name"],
        license=fields.get("license"),
        library_name=fields.get("library_name", "transformers"),
        base_model=fields.get("base_model"),
        pipeline_tag=fields.get("pipeline_tag", "image-to-text"),
        tags=["triptych", *fields.get("tags", ("image-captioning", "image-text-retrieval"))],
        language=fields.get("language"),
        datasets=fields.get("dataset_ids"),
        eval_results=[
            EvalResult(
                task_type=fields.get("pipeline_tag", "image-to-text"),
                dataset_type=(fields.get("dataset_ids") or ["generated"])[0],
                dataset_name=fields["evaluation_data"],
                metric_type=name,
                metric_value=value,
            )
            for name, value in fields.get("metrics", {}).items()
            if "num_" not in name and not name.endswith("_size")
        ]
        or None,
    )
    fields = portable(fields)
    cards = jinja2.PackageLoader("triptych.model_cards", ".")
    environment = jinja2.Environment(
        loader=cards, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    content = environment.get_template(template).render(card_data=metadata.to_yaml(), **fields)
    ModelCard(content).save(folder / "README.md")


def to_json(content: Any, indent: int | None = None) -> str:
    """JSON that every reader accepts: numbers that are none (NaN, infinities) become null."""
    content = tree_map_only(float, lambda number: number if math.isfinite(number) else None, content)
    return json.dumps(content, indent=indent, allow_nan=False)


_ABSOLUTE = re.compile(r"(?<![\w:/.\\])(?:/[^\s/\"'=:,;]+){2,}|\b[A-Za-z]:\\\S+")


def portable(content: Any) -> Any:
    """Content to publish, with the last part of every path of this machine in place of the whole.

    Args:
        content: Text, or lists and dictionaries of it; anything else stays as it is.
    """
    return tree_map_only(str, _portable_text, content)


def _portable_text(text: str) -> str:
    name, sign, value = text.partition("=")
    if name.startswith("--") and sign:  # an argument of a command, whose path may hold spaces
        return f"{name}={_portable_text(value)}"
    if os.path.isabs(text) and "\n" not in text:
        return _last_part(text)
    return _ABSOLUTE.sub(lambda found: _last_part(found[0]), text)


def _last_part(path: str) -> str:
    parts = path.replace("\\", "/").rstrip("/").split("/")
    # "and/or" and addresses are no paths
    is_here = path[0] != "/" or (len(parts) > 2 and Path("/", parts[1]).exists())
    return parts[-1] if is_here else path


@contextmanager
def staged(folder: Path, last: str) -> Iterator[Path]:
    """A temporary folder beside the target, whose files replace those of the target at the end.

    The file `last`, without which nobody loads the folder, goes first and comes last. Between the two go the weights of an
    earlier model, too: stored in other shards, they could be loaded in place of the new ones.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`folder` must be a folder to write to, but {folder} is a file.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield staging
        folder.mkdir(exist_ok=True)
        (folder / last).unlink(missing_ok=True)
        written = sorted(staging.iterdir(), key=lambda path: path.name == last)
        for path in folder.iterdir():
            if _WEIGHTS.fullmatch(path.name) and path.name not in {new.name for new in written}:
                path.unlink()
        umask = os.umask(0)
        os.umask(umask)
        for path in written:
            if path.is_dir():
                shutil.rmtree(folder / path.name, ignore_errors=True)
            else:
                path.chmod(0o666 & ~umask)  # safetensors writes for its owner alone
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write_files(folder: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        content = portable(content)
        text = content if isinstance(content, str) else to_json(content, indent=2) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


def save_repository(
    folder: str | os.PathLike,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    card: dict[str, Any],
    extra_files: dict[str, Any] | None = None,
) -> Path:
    """Write a complete Hub repository that loads on a machine without triptych (`trust_remote_code=True`).

    Everything is written to a temporary folder beside the target first. `config.json`, without which nothing loads,
    arrives last; other files of an existing target folder are kept, but not the weights of an earlier model.

    Args:
        folder (`str` or `PathLike`): Target.
        model (`PreTrainedModel`): With a generation config if it generates.
        processor (`ProcessorMixin`): Of the model.
        card (`dict`): Fields of the model card; see [`write_model_card`].
        extra_files (`dict`, *optional*): File name to content: text as it is, anything else as JSON; without paths of this machine.

    Returns:
        `Path`: The folder.

    Raises:
        ValueError: If `folder` is an existing file, or no Auto class loads the model.
    """
    folder = Path(folder)
    with staged(folder, last="config.json") as staging:
        model.save_pretrained(staging)
        processor.save_pretrained(staging)
        if "auto_map" not in json.loads((staging / "config.json").read_text(encoding="utf-8")):
            raise ValueError(
                f"`model` is a {type(model).__module__}.{type(model).__name__}, which is registered with no Auto class, so "
                "nobody could load it. Merge adapters first, or write them with `save_adapter`."
            )
        _write_files(staging, extra_files or {})
        facts = {"model_type": model.config.model_type, "num_parameters": model.num_parameters()}
        write_model_card(staging, **{**facts, **card})
    return folder


def save_adapter(
    folder: str | os.PathLike,
    model: "PeftModel",
    base_model: str,
    card: dict[str, Any],
    extra_files: dict[str, Any] | None = None,
) -> Path:
    """Write a PEFT adapter as a Hub repository: its weights and a card of its own. Whole or not at all.

    Args:
        folder (`str` or `PathLike`): Target.
        model (`PeftModel`): The base with its adapter.
        base_model (`str`): Where others find the base: its name on the Hub, or a folder if the adapter stays here.
        card (`dict`): Fields of `model_cards/adapter_template.md`.
        extra_files (`dict`, *optional*): As in [`save_repository`].

    Raises:
        ValueError: If `folder` is an existing file, or holds a model, or the model has several adapters.
    """
    folder = Path(folder)
    if (folder / "config.json").exists():
        raise ValueError(f"`folder` {folder} holds a model; give the adapter a folder of its own.")
    if len(model.peft_config) > 1:
        names = ", ".join(sorted(model.peft_config))
        raise ValueError(
            f"`model` has {len(model.peft_config)} adapters ({names}); a repository holds one. Delete the others."
        )
    with staged(folder, last="adapter_config.json") as staging:
        for adapter in model.peft_config.values():
            adapter.base_model_name_or_path = base_model
        model.save_pretrained(str(staging))
        for named in [path for path in staging.iterdir() if (path / "adapter_config.json").is_file()]:
            for path in named.iterdir():  # PEFT puts an adapter with a name of its own into a folder of that name
                path.rename(staging / path.name)
            named.rmdir()
        _write_files(staging, extra_files or {})
        on_hub = None if Path(base_model).exists() else base_model
        facts = {
            "library_name": "peft",
            "base": base_model,
            "base_model": on_hub,
            "num_trained": model.get_nb_trainable_parameters()[0],
        }
        write_model_card(staging, **{"template": "adapter_template.md", **card, **facts})
    return folder


def files_to_publish(folder: str | os.PathLike) -> list[Path]:
    """The files of a repository: those that lie directly in the folder, pickles excepted, and `.eval_results`. All else below stays at home.

    Raises:
        ValueError: If the folder is no complete repository of a model (configuration, weights, code, a card with a licence) or
            of an adapter (configuration that names a base on the Hub, weights, such a card).
    """
    folder = Path(folder)
    files = sorted(
        path
        for path in folder.glob("*")
        if path.is_file() and not path.name.startswith(".") and path.suffix not in (".bin", ".pt", ".pth")
    )
    files += sorted(folder.glob(".eval_results/*.yaml"))
    names = {path.name for path in files}
    if "adapter_config.json" in names:
        _check_base(folder)
    elif "config.json" in names:
        _check_code(folder, files)
    else:
        raise ValueError(f"{folder} is no repository: there is no config.json. Write one with `save_repository`.")
    if not any(name.endswith(".safetensors") for name in names):
        raise ValueError(f"{folder} holds no weights (*.safetensors).")
    if "README.md" not in names:
        raise ValueError(f"{folder} has no model card (README.md).")
    try:
        card = ModelCard.load(folder / "README.md")
    except (YAMLError, ValueError) as error:
        raise ValueError(f"The metadata of {folder / 'README.md'} cannot be read: {error}") from error
    if card.data.license is None:
        raise ValueError(
            f"{folder / 'README.md'} names no `license`. It must be one that the training data allow, such as cc-by-sa-4.0."
        )
    return files


def _check_base(folder: Path) -> None:
    base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    if not base or Path(base).exists():
        raise ValueError(
            f"{folder / 'adapter_config.json'} says that its base is {base!r}, which nobody else has. Publish the base, and write "
            "the adapter with `save_adapter(..., base_model=its name on the Hub)`."
        )


def _check_code(folder: Path, files: list[Path]) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = {path.name for path in files}
    if "processor_config.json" not in names:
        raise ValueError(f"{folder} has no processor (processor_config.json). Save it with `save_repository`.")
    processor = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    references = [*config.get("auto_map", {}).values(), *processor.get("auto_map", {}).values()]
    references += [task["impl"] for task in config.get("custom_pipelines", {}).values()]
    modules = {reference.rpartition("--")[2].partition(".")[0] for reference in references}
    modules |= {module for path in files if path.suffix == ".py" for module in get_relative_imports(path)}
    lost = {f"{module}.py" for module in modules} - names
    if not references or lost:
        raise ValueError(
            f"{folder} lacks code that its config.json leads to ({', '.join(sorted(lost)) or 'it names none'}): nobody could "
            "load it. Save it again with `save_repository`."
        )
    for index in (path for path in files if path.name.endswith(".index.json")):
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if shards - names:
            raise ValueError(f"{folder} lacks weights that {index.name} names: {', '.join(sorted(shards - names))}.")


def publish(
    folder_or_model: str | os.PathLike | PreTrainedModel,
    repo_id: str,
    *,
    processor: ProcessorMixin | None = None,
    card: dict[str, Any] | None = None,
    private: bool = False,
    revision: str = "main",
    create_pr: bool = False,
    commit_message: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
) -> CommitInfo | None:
    """Publish a repository on the Hub: everything in one commit, or nothing.

    Large files go first and are kept by the Hub under their hash, so a second call after a broken transfer sends only what is
    missing. The commit names the revision it was made for: somebody else's in between makes it fail instead of disappear.
    Weights that an earlier version of a model had in other shards are deleted by the same commit. In the card, `repo = "..."`
    becomes `repo_id`, so that its snippets run as they are.

    Args:
        folder_or_model (`str`, `PathLike` or `PreTrainedModel`):
            What [`save_repository`] or [`save_adapter`] wrote, see [`files_to_publish`]; or a model, which is written first.
        repo_id (`str`): "owner/name". Created if it does not exist.
        processor, card: Of a model, as in [`save_repository`].
        private (`bool`): Create it as a private one. Default: what the account says, usually public.
        revision (`str`): Branch to commit to; created if it does not exist.
        create_pr (`bool`): Open a pull request instead.
        commit_message (`str`, *optional*): First line of the commit.
        token (`str`, *optional*): Access token. Default: the one that `hf auth login` stored.
        dry_run (`bool`): Only check what would be published.

    Returns:
        `CommitInfo`: `commit_url`, `oid`, and `pr_url` of a pull request; `None` after a dry run.

    Raises:
        ValueError: If the folder is incomplete, a model comes without processor or card, `repo_id` is malformed, or `private` is
            asked of a repository that is public already.
        RuntimeError: If the Hub refuses, or the transfer breaks; the message says what to do.
    """
    if repo_id.count("/") != 1:
        raise ValueError(f"`repo_id` must be 'owner/name', got {repo_id!r}.")
    if hasattr(folder_or_model, "peft_config"):
        raise ValueError("`folder_or_model` is a PeftModel: write it with `save_adapter`, and publish that folder.")
    with tempfile.TemporaryDirectory() as temporary:
        if isinstance(folder_or_model, PreTrainedModel):
            if processor is None or card is None:
                raise ValueError("A model needs its `processor` and the fields of its `card` to be published.")
            folder_or_model = save_repository(temporary, folder_or_model, processor, card)
        files = files_to_publish(folder_or_model)
        if dry_run:
            return None
        message = commit_message or f"Upload {repo_id.rpartition('/')[2]} with triptych"
        return _upload(HfApi(token=token), files, repo_id, private, revision, create_pr, message)


def _upload(
    api: HfApi, files: list[Path], repo_id: str, private: bool, revision: str, create_pr: bool, message: str
) -> CommitInfo:
    by_name = {
        path.name if path.parent.name != ".eval_results" else f".eval_results/{path.name}": path for path in files
    }
    card = by_name.pop("README.md").read_text(encoding="utf-8")
    card = re.sub(r'^repo = ".*?"', f'repo = "{repo_id}"', card, flags=re.MULTILINE)
    try:
        api.create_repo(repo_id, private=private or None, exist_ok=True)  # None: as the account's settings say
        if revision != "main":
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        before = api.model_info(repo_id, revision=revision)
        if private and not before.private:
            raise ValueError(
                f"`private` was asked, but {repo_id} exists and is public. Change that in its settings first."
            )
        there = {sibling.rfilename for sibling in before.siblings or ()}
        stale = sorted(filter(_WEIGHTS.fullmatch, there - by_name.keys())) if "config.json" in by_name else []
        return api.create_commit(
            repo_id,
            [CommitOperationAdd("README.md", card.encode())]
            + [CommitOperationAdd(name, str(path)) for name, path in by_name.items()]
            + [CommitOperationDelete(name) for name in stale],
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
            parent_commit=before.sha,
        )
    except HFValidationError as error:
        raise ValueError(f"`repo_id` must be 'owner/name', got {repo_id!r}: {error}") from error
    except OfflineModeIsEnabled as error:
        raise RuntimeError(f"{repo_id} was not published: HF_HUB_OFFLINE is set.") from error
    except (HTTPError, ConnectionError, TimeoutError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) else error  # uploads of large files wrap it
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        advice = "the connection broke. Run the same again; what the Hub has is not sent twice."
        if status is not None:
            busy = "the Hub is busy or out of order. Run the same again later; what it has is not sent twice."
            advice = busy if status == 429 or status >= 500 else _ADVICE.get(status, "the Hub refused it.")
        raise RuntimeError(f"{repo_id} was not published: {advice} ({cause or error})") from error


_ADVICE = {
    401: "the Hub does not know the token. Log in with `hf auth login`, or pass `token`.",
    403: "the token may not write there. It needs the role 'write', and you the right to this namespace.",
    404: "there is no such repository for this token.",
    409: "somebody else committed at the same moment. Look at it, and run the same again.",
    412: "somebody else committed since this upload began. Look at it, and run the same again.",
    413: "it is larger than the quota of this account allows. Free space, or publish to an organisation with more.",
}


def describe_machine() -> str:
    """One line on what a number was measured with, for model cards."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    return f"{device}, torch {torch.__version__}, transformers {transformers.__version__}"


__all__ = [
    "describe_machine", "files_to_publish", "portable", "publish", "save_adapter", "save_repository", "staged",
    "write_model_card",
]  # fmt: skip
