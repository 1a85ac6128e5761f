"""`make test-common`: transformers' own common tests on our classes, and a table of what came out.

The source distribution of the installed transformers is fetched once, through pip, into the environment. Arguments go to pytest;
`--write` puts the table into docs/reliability.md.
"""

import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest


def fetch() -> bool:
    """Whether the source distribution is there, or could be brought there."""
    wanted = f"transformers-{version('transformers')}"
    folder = Path(sys.prefix) / "transformers-source"
    if (folder / wanted).exists():
        return True
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as new:
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", new, wanted.replace("-", "==", 1)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            print(f"The common tests are left out: pip finds no source distribution of {wanted}: {reason}")
            return False
        (archive,) = Path(new).glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(new, filter="data")
        (Path(new) / wanted).rename(folder / wanted)
    return True


if __name__ == "__main__":
    sys.exit(pytest.main([str(Path(__file__).parent), *sys.argv[1:]]) if fetch() else 0)
