"""Foreign checkpoints as files hold them: every tensor is read when it is asked for, so that memory holds one at a time."""

import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.constants import HF_HUB_OFFLINE
from huggingface_hub.errors import HFValidationError, HTTPError
from safetensors import SafetensorError, safe_open
from transformers.modeling_utils import str_to_torch_dtype


_OTHERS = (".json", ".model", "merges.txt")  # configurations and tokenizers
_PICKLES = (".bin", ".pt", ".pth")


class Source(Mapping[str, torch.Tensor]):
    """Tensors of a checkpoint by their name in it. What wraps them (`state_dict`, `module.`) is taken off.

    Args:
        location (`str`): A file, a folder, a name on the Hub, or a file there ("owner/name/run/epoch_3.pt"). Of a folder, safetensors are preferred to pickles, and a file
            with "open_clip" or "model" in its name to others.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.

    Raises:
        ValueError: If there are no weights, a revision of something that is no repository, several that no index joins, or a pickle holds more than tensors.
        OSError: If the Hub cannot be reached, or has no such repository.
    """

    def __init__(self, location: str, revision: str | None = None):
        self.location = location
        path = Path(location)
        if path.exists() and revision is not None:
            raise ValueError(f"`revision` {revision!r} is for names on the Hub, {location!r} is a file or folder.")
        if not path.exists():
            owner, name, *inside = location.split("/") if location.count("/") else (location, "")
            try:
                if inside:
                    path = Path(hf_hub_download(f"{owner}/{name}", "/".join(inside), revision=revision))
                else:
                    path = _download(location, revision)
            except HFValidationError as error:
                raise ValueError(f"{location!r} is neither a file, a folder, nor 'owner/name' on the Hub.") from error
            except HTTPError as error:
                raise OSError(
                    f"{location!r} is no file or folder here, and the Hub does not give it: {error}"
                ) from error
        self.folder = path if path.is_dir() else path.parent
        files = [path]
        if path.is_dir():
            names = [file.name for file in path.iterdir() if file.is_file()]
            files = [path / name for name in _weights_among(names, path.joinpath, location)]
        self._pickles: dict[Path, dict[str, torch.Tensor]] = {}
        # name -> file, its key there, the tensor on the meta device
        self._where: dict[str, tuple[Path, str, torch.Tensor]] = {}
        for file in files:
            for key, tensor in self._without_values(file).items():
                self._where[key.removeprefix("module.")] = (file, key, tensor)

    def __getitem__(self, name: str) -> torch.Tensor:
        file, key, _ = self._where[name]
        if file.suffix != ".safetensors":
            return self._unpickle(file)[key]
        with safe_open(file, framework="pt") as opened:
            return opened.get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def meta(self) -> dict[str, torch.Tensor]:
        """All tensors on the meta device: shapes and types, no values."""
        return {name: tensor for name, (_, _, tensor) in self._where.items()}

    def config_file(self) -> Path | None:
        """The JSON configuration beside the weights, if there is one: open_clip's, or `config.json`."""
        paths = [self.folder / name for name in ("open_clip_config.json", "config.json")]
        return next(filter(Path.is_file, paths), None)

    def overlay(self, other: "Source", prefix: str, other_prefix: str) -> None:
        """Take tensors from another checkpoint instead: those whose names begin with `other_prefix` there, and with `prefix` here.

        Raises:
            ValueError: If the other one has none.
        """
        found = {
            prefix + name.removeprefix(other_prefix): place
            for name, place in other._where.items()
            if name.startswith(other_prefix)
        }
        if not found:
            raise ValueError(f"{other.location} holds no tensor whose name begins with {other_prefix!r}.")
        self._where = {name: place for name, place in self._where.items() if not name.startswith(prefix)} | found

    def release(self) -> None:
        """Give the memory of what was read back."""
        self._pickles.clear()

    def _without_values(self, file: Path) -> dict[str, torch.Tensor]:
        """The tensors of a file on the meta device."""
        if file.suffix != ".safetensors":
            return {key: torch.empty_like(tensor, device="meta") for key, tensor in self._unpickle(file).items()}
        try:
            with safe_open(file, framework="pt") as opened:
                slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118  (not a dict)
                forms = {key: (part.get_shape(), str_to_torch_dtype[part.get_dtype()]) for key, part in slices.items()}
        except SafetensorError as error:
            raise ValueError(f"{file} cannot be read: {error}") from error
        return {key: torch.empty(shape, dtype=dtype, device="meta") for key, (shape, dtype) in forms.items()}

    def _unpickle(self, file: Path) -> dict[str, torch.Tensor]:
        # Mapped into memory, so pages are read when a tensor is, and given back when memory is short.
        if file not in self._pickles:
            content = _load_pickle(file)
            content = content.get("state_dict", content)
            if not all(isinstance(tensor, torch.Tensor) for tensor in content.values()):
                other = next(key for key, value in content.items() if not isinstance(value, torch.Tensor))
                raise ValueError(f"{file} must hold tensors, or a `state_dict` of them; {other!r} is something else.")
            self._pickles[file] = content
        return self._pickles[file]


def _load_pickle(file: Path) -> dict:
    try:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format before zip files cannot be mapped
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file} is damaged, or a pickle that holds more than weights, and loading that could run any code. If you trust its "
            "origin, load it yourself and save `state_dict()` as safetensors."
        ) from error
    except (EOFError, RuntimeError) as error:
        raise ValueError(f"{file} cannot be read: {error or 'it ends too soon'}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold tensors by name, or a `state_dict` of them, got {type(content).__name__}.")
    return content


def _download(repository: str, revision: str | None) -> Path:
    """The folder of a repository on the Hub with one checkpoint, and no other of the many that it may hold."""
    if HF_HUB_OFFLINE:
        return Path(snapshot_download(repository, revision=revision))
    names = [name for name in HfApi().list_repo_files(repository, revision=revision) if "/" not in name]
    fetch = partial(hf_hub_download, repository, revision=revision)
    weights = _weights_among(names, lambda name: Path(fetch(name)), repository)
    wanted = [*weights, *(name for name in names if name.endswith(_OTHERS))]
    return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))


def _weights_among(names: list[str], fetch: Callable[[str], Path], place: str) -> list[str]:
    """The files of a folder that hold the weights; `fetch` gives the path of one."""
    indices = sorted(name for name in names if name.endswith((".safetensors.index.json", ".bin.index.json")))
    for index in sorted(indices, key=lambda name: ".bin." in name):
        shards = sorted(set(json.loads(fetch(index).read_text(encoding="utf-8"))["weight_map"].values()))
        if strange := [name for name in shards if name not in names]:
            raise ValueError(f"{index} of {place} names {strange[0]!r}, which is no file of that folder.")
        return shards
    for suffixes in ((".safetensors",), _PICKLES):
        found = sorted(name for name in names if name.endswith(suffixes))
        usual = [name for name in found if "model" in Path(name).stem]
        if len(usual or found) == 1:
            return usual or found
        if found:
            listed = ", ".join(found)
            raise ValueError(f"{place} holds several weights that no index joins ({listed}): name one of the files.")
    raise ValueError(f"{place} holds no weights: no .safetensors, .bin or .pt.")


__all__ = ["Source"]
