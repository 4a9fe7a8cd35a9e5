"""Run the program as a user does: in a process of its own, most of them forked from one that has imported everything."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simtriplet.wsi.synthetic import SyntheticSlideSpec, draw_cohort

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def program(zygote: Any) -> Run:
    """Call `simtriplet ARGS...` in a process forked from a warm one; checks the exit status, and that there is no traceback."""

    def run(
        *arguments: object, status: int = 0, cwd: Path | None = None, timeout: float = 600
    ) -> "subprocess.CompletedProcess[str]":
        ended = zygote.wait(zygote.start(*arguments, cwd=cwd), timeout)
        done = subprocess.CompletedProcess(
            ["simtriplet", *map(str, arguments)], ended.status, ended.results, ended.said
        )
        return checked(done, status)

    return run


@pytest.fixture(scope="session")
def cold_program() -> Run:
    """Do the same as a user does, in a process of its own that imports everything anew."""

    def run(
        *arguments: object, status: int = 0, cwd: Path | None = None, timeout: float = 600
    ) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "simtriplet.pipelines", *map(str, arguments)]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=timeout, check=False)
        return checked(ended, status)

    return run


def checked(ended: "subprocess.CompletedProcess[str]", status: int) -> "subprocess.CompletedProcess[str]":
    """Return what ended as it should."""
    assert "Traceback" not in ended.stderr, ended.stderr
    assert ended.returncode == status, ended.stderr + ended.stdout
    return ended


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four patients' drawn slides with ground truth; returns the manifest."""
    spec = SyntheticSlideSpec(width_px=1536, height_px=1280, region_um=180.0, tissue_fraction=0.5, n_pieces=2)
    return draw_cohort(tmp_path_factory.mktemp("cohort"), n_patients=4, slides_per_patient=1, spec=spec, seed=11)


def error_line(ended: "subprocess.CompletedProcess[str]") -> str:
    """Return the one line that says what went wrong."""
    lines = [line for line in ended.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, ended.stderr
    return lines[0]


@pytest.fixture(scope="session")
def failure() -> Callable[["subprocess.CompletedProcess[str]"], str]:
    """The single `Error: ` line of a failed run."""
    return error_line
