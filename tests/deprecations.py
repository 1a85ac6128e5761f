"""The next rename, seen early: what transformers calls deprecated must not be done by a file of this package.

Deprecations come as Python warnings and as lines of a log. Both are traced to the nearest file outside of transformers: if that
is ours, an error is raised on the spot; if it is a test, which may try an old name on purpose, or another library, nothing happens.
"""

import logging
import sys
import warnings
from pathlib import Path

from transformers.utils import logging as transformers_logging


ROOT = Path(__file__).parents[1]
OUR_FOLDERS = ("modeling", "processing", "triptych", "examples", "benchmarks")
TRANSPARENT = ("transformers", "torch", "huggingface_hub")  # calls go through these
# transformers' assisted decoding gives these to the `generate` of any assistant, which hands them back to transformers.
FORWARDED = ("Passing `generation_config` together with generation-related arguments",)


class DeprecationFromOurFile(AssertionError):
    """A file of this package does what transformers calls deprecated."""


def _our_file_behind_it() -> str | None:
    """The file that transformers was called from, if it belongs to the package or to the code of a checkpoint."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if "site-packages" in path.parts:
            if path.parts[path.parts.index("site-packages") + 1] not in TRANSPARENT:
                return None
        elif "transformers_modules" in path.parts:
            return path.name
        elif path.is_relative_to(ROOT) and path != Path(__file__):
            relative = path.relative_to(ROOT)
            return str(relative) if relative.parts[0] in OUR_FOLDERS else None
        frame = frame.f_back
    return None


def _refuse(message: str) -> None:
    if (file := _our_file_behind_it()) is not None:
        raise DeprecationFromOurFile(f"{file}: {message}")


class _Log(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if ("deprecated" in message or "will be removed" in message) and not message.startswith(FORWARDED):
            _refuse(message)


def watch() -> None:
    """From now on, raise where a file of ours is behind a deprecation of transformers. Its log is shown no more."""
    transformers_logging.disable_default_handler()
    transformers_logging.set_verbosity_warning()
    transformers_logging.add_handler(_Log())
    show = warnings._showwarnmsg

    def show_or_refuse(message: warnings.WarningMessage) -> None:
        is_deprecation = issubclass(message.category, (FutureWarning, DeprecationWarning))
        if is_deprecation and "transformers" in Path(sys._getframe(1).f_code.co_filename).parts:
            _refuse(str(message.message))
        show(message)

    warnings._showwarnmsg = show_or_refuse
