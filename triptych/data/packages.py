"""Pictures that packages of npm and Debian bring: fetched by the clients of those registries, once, and kept beside `datasets`' cache."""

import shutil
import subprocess
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import datasets
from transformers.utils import logging


logger = logging.get_logger(__name__)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A new folder beside the target, which takes its place when all is written; if another process was faster, its folder stays."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")
    staging.mkdir()
    try:
        yield staging
        try:
            staging.rename(target)
        except OSError:
            if not target.exists():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@dataclass(frozen=True)
class Package:
    """A package of a registry.

    Args:
        client (`"npm"` or `"apt-get"`): Who fetches it.
        name (`str`): As the registry calls it.
        version (`str`, *optional*): Of npm, where every version stays. Debian has one per release.
    """

    client: str
    name: str
    version: str | None = None

    @property
    def folder(self) -> Path:
        """Where it lies once it is fetched; what is put there by hand counts."""
        name = self.name.removeprefix("@").replace("/", "-")
        parts = [self.client, name] if self.version is None else [self.client, name, self.version]
        return Path(datasets.config.HF_CACHE_HOME) / "triptych" / "packages" / "-".join(parts)

    @property
    def command(self) -> list[str]:
        """What fetches it into the current folder."""
        if self.client == "npm":
            return ["npm", "pack", "--silent", f"{self.name}@{self.version}"]
        return ["apt-get", "download", "--quiet", self.name]

    def fetch(self) -> Path:
        """The folder with its files, fetched if it is not there yet.

        Raises:
            OSError: If the client is missing or fails.
        """
        target = self.folder
        if target.exists():
            return target
        logger.warning(f"Fetching {self.name}: {' '.join(self.command)}")
        with whole_folder(target) as content:
            archives = content / ".archives"
            archives.mkdir()
            self._call(self.command, archives)
            for archive in archives.iterdir():
                if self.client == "npm":
                    with tarfile.open(archive) as tar:
                        tar.extractall(content, filter="data")
                else:
                    self._call(["dpkg-deb", "-x", str(archive), str(content)], archives)
            shutil.rmtree(archives)
        return target

    def _call(self, command: list[str], folder: Path) -> None:
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", "") or f"there is no {command[0]} on this machine"
            raise OSError(
                f"The pictures of the package {self.name} could not be fetched: `{' '.join(command)}`: {reason.strip()[-300:]} "
                f"Unpack the package into {self.folder} by hand, or choose another data set."
            ) from error


__all__ = ["Package", "whole_folder"]
