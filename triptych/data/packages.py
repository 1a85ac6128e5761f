"""Pictures that packages of npm and Debian bring: fetched by the clients of those registries, once, and kept beside `datasets`' cache."""

import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import datasets
from transformers.utils import logging


logger = logging.get_logger(__name__)


def current_umask() -> int:
    """What new files are not allowed; temporary folders are for their owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    return umask


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
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            content = staging / "content"
            content.mkdir()
            self._call(self.command, staging)
            (archive,) = (path for path in staging.iterdir() if path.is_file())
            if self.client == "npm":
                with tarfile.open(archive) as tar:
                    tar.extractall(content, filter="data")
            else:
                self._call(["dpkg-deb", "-x", str(archive), str(content)], staging)
            content.chmod(0o777 & ~current_umask())
            content.rename(target)
        except OSError:
            if not target.exists():  # another process was faster
                raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
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


__all__ = ["Package", "current_umask"]
