"""What the fuzzers share: a folder in memory, and a script in a process of its own, which forks children that may die."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Attempt = Callable[..., dict[str, Any]]
_MEMORY = Path("/dev/shm")


@pytest.fixture
def quick_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where the machine has one: thousands of files are written into it."""
    if not (_MEMORY.is_dir() and os.access(_MEMORY, os.W_OK)):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=_MEMORY) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def run_attempts() -> Attempt:
    """Run a script of this folder that ends by printing its report (contained.Report) as JSON."""

    def run(script: str, *arguments: object) -> dict[str, Any]:
        command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, arguments)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=7200)
        assert ended.returncode == 0, ended.stderr
        report: dict[str, Any] = json.loads(ended.stdout)
        return report

    return run
