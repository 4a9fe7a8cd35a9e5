"""Damaged and hostile texts (annotations, labels, manifests, recipes, settings) are refused in one line or read right."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simtriplet.evaluate.label_file import read_label_file
from simtriplet.pipelines.manifest import read_manifest
from simtriplet.wsi.annotation_file import read_annotations
from simtriplet.wsi.errors import SimTripletError
from simtriplet.wsi.settings import read_toml

LONG_LINE = 100 << 20
READERS: dict[str, Callable[[Path], Any]] = {
    "a.geojson": read_annotations,
    "a.xml": read_annotations,
    "a.csv": read_annotations,
    "labels.csv": lambda path: read_label_file(path, label_column="label"),
    "manifest.csv": read_manifest,
    "recipe.toml": read_toml,
}


@pytest.mark.parametrize(("kind", "share"), [("geojson", 1), ("xml", 0.3), ("csv", 1), ("toml", 1), ("list", 0.1)])
def test_damaged_texts_are_refused_or_read(
    quick_folder: Path, run_attempts: Callable[..., dict[str, Any]], n_mutants: int, kind: str, share: float
) -> None:
    n_mutants = max(1, round(n_mutants * share))
    report = run_attempts("text_attempts.py", quick_folder, kind, 0, n_mutants)
    assert report["failures"] == []
    counts = report["counts"]
    assert counts["read"] + counts["refused"] == n_mutants
    assert min(counts["read"], counts["refused"]) > n_mutants // 30
    assert report["max_seconds"] < 8
    assert report["peak_bytes"] < 2 << 30


@pytest.mark.parametrize("start", ["", '{"type": "', "<ASAP_Annotations>", "path,slide_id,label\n", "a = "])
@pytest.mark.parametrize("name", sorted(READERS))
def test_a_line_of_100_mb_is_refused_soon(quick_folder: Path, name: str, start: str) -> None:
    path = quick_folder / name
    with path.open("wb") as file:
        file.write(start.encode())
        file.write(b"7" * LONG_LINE)
    begun = time.process_time()
    with pytest.raises(SimTripletError):
        READERS[name](path)
    assert time.process_time() - begun < 10


def test_nested_elements_take_no_more_time_than_a_long_file(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text("<Annotations>" + "<Annotation>" * 100_000 + "</Annotation>" * 100_000 + "</Annotations>")
    with pytest.raises(SimTripletError, match="nested deeper than 64 levels"):
        read_annotations(path)


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    import os

    for name, read in READERS.items():
        os.mkfifo(tmp_path / name)
        with pytest.raises(SimTripletError, match="it is no file"):
            read(tmp_path / name)
