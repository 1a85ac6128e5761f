"""Files that are there as a whole or not at all."""

from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a text under another name first, so that a stop leaves what was there before; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}")
    staging.write_text(text, encoding="utf-8")
    staging.replace(path)


__all__ = ["write_whole"]
