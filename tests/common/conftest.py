"""Overrides name their precedent, and a run ends with a table of what became of every class."""

import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from tests.common.upstream import SOURCE


DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
COLUMNS = ("passed", "overridden", "not applicable", "failed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write", action="store_true", help="put the table of common tests into docs/reliability.md")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "overridden: another model of transformers has the same override")
    theirs = tomllib.loads((SOURCE / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    for line in theirs["markers"]:
        config.addinivalue_line("markers", line)


def _verdicts(stats: dict[str, list]) -> dict[tuple[str, str], str]:
    """What became of every test, by its class and name. Where a part of it failed, it failed."""
    found = {}
    for kind in ("passed", "skipped", "failed", "error", "subtests failed"):
        for report in stats.get(kind, []):
            if report.nodeid.count("::") != 2:
                continue  # a file that could not be collected, which pytest reports
            _, test_class, name = report.nodeid.split("::")
            verdict = {"passed": "passed", "skipped": "not applicable"}.get(kind, "failed")
            if "overridden" in report.keywords and verdict != "failed":
                verdict = "overridden"
            found[test_class.removesuffix("Test"), name] = verdict
    return found


def pytest_terminal_summary(terminalreporter, exitstatus, config: pytest.Config) -> None:
    counts: dict[str, Counter] = {}
    for (test_class, _), verdict in sorted(_verdicts(terminalreporter.stats).items()):
        counts.setdefault(test_class, Counter())[verdict] += 1
    rows = [["class", *COLUMNS], ["---"] * (len(COLUMNS) + 1)]
    rows += [[f"`{name}`", *(str(found[column]) for column in COLUMNS)] for name, found in counts.items()]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    terminalreporter.write_line(f"\n{table}")
    if config.getoption("--write"):
        document = DOCUMENT.read_text(encoding="utf-8")
        pattern = r"(<!-- common tests: begin -->\n).*?(<!-- common tests: end -->)"
        changed, count = re.subn(pattern, lambda match: f"{match[1]}{table}\n{match[2]}", document, flags=re.DOTALL)
        assert count == 1, f"{DOCUMENT} has no place for the table"
        DOCUMENT.write_text(changed, encoding="utf-8")
