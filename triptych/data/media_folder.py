"""Pictures and clips of annotation files, which name them by more or less of their paths."""

from pathlib import Path


PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"})
CLIPS = frozenset({".mp4", ".avi", ".mkv", ".webm", ".mov"})


class MediaFolder:
    """Pictures or clips anywhere below a folder, by name.

    Args:
        folder (`Path`): To look through, when a name is asked for that is no path in it.
        endings (`frozenset[str]`): Of the files' names.
    """

    def __init__(self, folder: Path, endings: frozenset[str] = PICTURES):
        self.folder, self.endings = folder, endings
        self._files: dict[str, list[Path]] | None = None

    def _by_name(self) -> dict[str, list[Path]]:
        if self._files is None:
            self._files = {}
            for path in sorted(self.folder.rglob("*")):
                if path.suffix.lower() in self.endings:
                    for name in (path.name, path.stem):
                        self._files.setdefault(name, []).append(path)
        return self._files

    def find(self, *names: str) -> Path:
        """The file with the first of some names that there is, with or without its ending; a name may hold folders.

        Raises:
            ValueError: If there is none, or there are several of a name.
        """
        for name in names:
            if (self.folder / name).is_file():
                return self.folder / name
        for name in names:
            found = self._by_name().get(Path(name).name, [])
            if len(found) > 1:
                raise ValueError(
                    f"There are several {Path(name).name} below {self.folder}: {found[0]} and {found[1]}."
                )
            if found:
                return found[0]
        kind = "video" if self.endings == CLIPS else "picture"
        raise ValueError(f"There is no {kind} {' or '.join(names)} below {self.folder}.")


__all__ = ["CLIPS", "PICTURES", "MediaFolder"]
