"""Clip art that Debian packages bring: Open Clip Art's drawings with titles and keywords, Tux Paint's stamps with sentences."""

import gzip
import html
import re
from collections import Counter
from collections.abc import Iterator
from xml.etree import ElementTree

from triptych.data.drawings import Drawing, concept_of
from triptych.data.packages import Package


OPEN_CLIP_ART = Package("apt-get", "openclipart-svg")
STAMPS = Package("apt-get", "tuxpaint-stamps-default")
_DC = "{http://purl.org/dc/elements/1.1/}"
_WORKS = ("{http://web.resource.org/cc/}Work", "{http://creativecommons.org/ns#}Work")
_LIST_ITEM = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"
# Keywords that say nothing about what is drawn
_EMPTY_KEYWORD = re.compile(
    "hash|icon|theme|clip ?art|svg|unsorted|special|design|external ?source|map ?sym|file ?system"
)


def _words_of(title: str) -> str:
    """A title as words in lower case: no underscores, hyphens, authors, numbers that tell variants apart, or ends of file names."""
    title = html.unescape(title)
    title = re.sub(r"(?i)^clipart by .+? - |\.svg.*$", "", title.strip())
    title = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", title)  # "VehiculesManutention"
    words = re.sub(r"[\s_\-]+", " ", title).strip().lower()
    return re.sub(r"( ?\d+)+$|( bw)$", "", words).strip()


def _describe(svg: bytes) -> tuple[str, list[str]]:
    """Title and keywords in the metadata of an SVG; empty if there is none, or it cannot be read."""
    try:
        tree = ElementTree.fromstring(svg)
    except ElementTree.ParseError:
        return "", []
    work = next((found for name in _WORKS for found in tree.iter(name)), None)
    if work is None:
        return "", []
    return work.findtext(_DC + "title") or "", [_words_of(item.text or "") for item in work.iter(_LIST_ITEM)]


def read_open_clip_art(most_shared: int = 10) -> list[Drawing]:
    """Drawings of Open Clip Art 0.18, in the public domain. The caption is the title, and up to three keywords that it does not hold.

    A title that more than `most_shared` drawings have is that of a collection: the file's name stands for it, if it has no numbers in it
    ("star 49pt16step") and is not that of a desktop's icon ("kcmmidi"). A caption that still more of them share names nothing either.
    """
    root = OPEN_CLIP_ART.fetch() / "usr" / "share" / "openclipart" / "svg"
    found = []
    for path in sorted(root.rglob("*.svg*")):
        if path.is_symlink() or path.name.startswith("."):
            continue
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        title, keywords = _describe(content)
        found.append((path, content.decode("utf-8", errors="replace"), _words_of(title), keywords))
    shared = Counter(title for _, _, title, _ in found)
    drawings = []
    for path, svg, title, keywords in found:
        is_own = len(title) > 1 and shared[title] <= most_shared
        name = title if is_own else _words_of(path.name.split(".")[0])
        is_empty = not is_own and (re.search(r"\d", name) or "icons" in path.parts)
        if len(name) < 2 or len(name) > 80 or is_empty:
            continue
        more = dict.fromkeys(word for word in keywords if len(word) <= 24 and not _EMPTY_KEYWORD.search(word))
        added = [word for word in more if word and word not in name][:3]
        caption = f"{name}: {', '.join(added)}" if added else name
        drawings.append(Drawing(f"openclipart/{path.relative_to(root)}", caption, svg, "openclipart"))
    captions = Counter(drawing.caption for drawing in drawings)
    return [drawing for drawing in drawings if captions[drawing.caption] <= most_shared]


def read_stamps() -> list[Drawing]:
    """Tux Paint's stamps, photographs and drawings, each with a sentence; the English one, of up to forty languages."""
    root = STAMPS.fetch() / "usr" / "share" / "tuxpaint" / "stamps"
    drawings = []
    for path in sorted(root.rglob("*.txt")):
        sentence = path.read_text(encoding="utf-8", errors="replace").splitlines()[0].strip()
        picture = next((file for file in (path.with_suffix(".svg"), path.with_suffix(".png")) if file.exists()), None)
        if picture is None or not sentence or "=" in sentence:
            continue
        is_svg = picture.suffix == ".svg"
        source = picture.read_text(encoding="utf-8", errors="replace") if is_svg else picture.read_bytes()
        drawings.append(Drawing(f"stamps/{picture.relative_to(root)}", sentence, source, "tuxpaint-stamps"))
    return drawings


def clip_art_keys(drawing: Drawing) -> Iterator[str]:
    """What clip art shares that must stay on one side of a split: the concept of its title."""
    yield concept_of(drawing.caption.split(":")[0])


__all__ = ["OPEN_CLIP_ART", "STAMPS", "clip_art_keys", "read_open_clip_art", "read_stamps"]
