"""Sets of icons in Iconify's form, an `icons.json` per npm package `@iconify-json/NAME`: SVG bodies by name."""

import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from triptych.data.drawings import Drawing, concept_of, outline_of
from triptych.data.packages import Package
from triptych.data.unicode_names import caption_named, caption_of, sequence_of


VERSIONS = {
    "emojione": "1.2.3",
    "fluent-emoji": "1.2.7",
    "fluent-emoji-flat": "1.2.6",
    "fluent-emoji-high-contrast": "1.2.6",
    "fxemoji": "1.2.2",
    "game-icons": "1.2.4",
    "healthicons": "1.2.13",
    "noto": "1.2.9",
    "noto-v1": "1.2.5",
    "twemoji": "1.2.5",
}


def package_of(name: str) -> Package:
    """The npm package of a set."""
    return Package("npm", f"@iconify-json/{name}", VERSIONS[name])


def read_icons(
    name: str, caption: Callable[[str], str | None], background: str = "white", colour: str = "black"
) -> list[Drawing]:
    """The icons of a set that have a caption, in alphabetical order.

    Args:
        name (`str`): Of the set, e.g. `"noto"`.
        caption (`Callable`): From an icon's name to its caption, or `None` to leave it out.
        background, colour (`str`): Of pictures whose icons have no colour of their own.
    """
    data = json.loads((package_of(name).fetch() / "package" / "icons.json").read_text(encoding="utf-8"))
    drawings = []
    for icon_name, icon in sorted(data["icons"].items()):
        text = None if icon.get("hidden") else caption(icon_name)
        if text is None:
            continue
        left, top, width, height = (
            icon.get(key, data.get(key, default))
            for key, default in {"left": 0, "top": 0, "width": 16, "height": 16}.items()
        )
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{width}" height="{height}" viewBox="{left} {top} {width} {height}" color="{colour}">{icon["body"]}</svg>'
        )
        drawings.append(Drawing(f"{name}/{icon_name}.svg", text, svg, name, background))
    return drawings


@cache
def _codes(name: str) -> dict[str, str]:
    """Code points of the emoji that a set's icons are, the shortest ones, by name; empty where the set does not say."""
    path: Path = package_of(name).fetch() / "package" / "chars.json"
    names = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {icon: code for code, icon in sorted(names.items(), key=lambda item: (len(item[0]), item[0]), reverse=True)}


def read_emoji(name: str) -> list[Drawing]:
    """The emoji of a set, named as Unicode names them. An icon that Unicode does not name is left out.

    What an icon is, its set says by code points, or its name does, as CLDR, Unicode's characters or the sets with code points write it.
    """
    own = _codes(name)
    others = {icon: code for each in ("noto", "twemoji", "fluent-emoji-flat") for icon, code in _codes(each).items()}

    def caption(icon: str) -> str | None:
        found = caption_of(sequence_of(own[icon])) if icon in own else None
        return found or caption_named(icon, others)

    return read_icons(name, caption)


def _plain_name(name: str) -> str:
    """A name as words, without the number that tells variants apart: `"card-ace-2"` is "card ace"."""
    return re.sub(r"( \d+)+$", "", name.replace("-", " "))


def read_game_icons() -> list[Drawing]:
    """White pictograms on black of https://game-icons.net, named by their authors; the abstract ones show nothing that has a name."""
    return read_icons(
        "game-icons",
        lambda name: None if name.startswith("abstract-") else _plain_name(name),
        background="black",
        colour="white",
    )


def read_health_icons() -> list[Drawing]:
    """Pictograms of health care, filled, outlined and negative; all forms of one have its name."""
    return read_icons("healthicons", lambda name: _plain_name(re.sub(r"(-outline|-negative|-24px)+$", "", name)))


def icon_keys(drawing: Drawing) -> Iterator[str]:
    """What icons share that must stay on one side of a split: the concept, and the outline within a set."""
    yield concept_of(drawing.caption)
    yield f"{drawing.style} {outline_of(str(drawing.source))}"


__all__ = [
    "VERSIONS",
    "icon_keys",
    "package_of",
    "read_emoji",
    "read_game_icons",
    "read_health_icons",
    "read_icons",
]
