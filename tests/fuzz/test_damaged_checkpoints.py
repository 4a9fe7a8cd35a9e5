"""Damaged and foreign checkpoints, encoders and heads are refused or read right; no pickle in them is ever run.

What cannot be told: a change in a file of weights of torch's older form, which has no checksums; such files are of others.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from simtriplet.pretrain.checkpoint import read_checkpoint, write_checkpoint
from simtriplet.wsi.errors import CheckpointError
from simtriplet.wsi.store import TileStore


def test_damaged_files_of_a_run_are_refused_or_read_right(
    store_factory: Callable[..., TileStore],
    tmp_path: Path,
    quick_folder: Path,
    run_attempts: Callable[..., dict[str, Any]],
    n_mutants: int,
) -> None:
    store_factory("a", size_px=16, folder=tmp_path / "stores")
    report = run_attempts("checkpoint_attempts.py", tmp_path / "stores", quick_folder, 0, n_mutants)
    assert report["failures"] == []
    counts = report["counts"]
    assert counts["read"] + counts["refused"] == n_mutants
    assert min(counts["read"], counts["refused"]) > n_mutants // 50
    assert report["max_seconds"] < 5
    assert report["peak_bytes"] < 2 << 30


def test_every_flipped_byte_of_a_tensor_is_told(tmp_path: Path) -> None:
    file = tmp_path / "last.pt"
    weights = torch.arange(64, dtype=torch.float32)
    write_checkpoint(file, {"model": {"w": weights}})
    data = file.read_bytes()
    start = data.index(weights.numpy().tobytes())
    for place in range(start, start + 256, 5):
        file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_checkpoint(file)
    file.write_bytes(data)
    assert torch.equal(read_checkpoint(file)["model"]["w"], weights)


def test_an_entry_that_calls_itself_a_folder_is_not_read(tmp_path: Path) -> None:
    """torch gives what its memory held before for such an entry, without an error."""
    file = tmp_path / "last.pt"
    write_checkpoint(file, {"model": {"w": torch.arange(64, dtype=torch.float32)}})
    data = bytearray(file.read_bytes())
    entry = data.rindex(b"/data/0")
    start = data.rindex(b"PK\x01\x02", 0, entry)
    data[start + 38] |= 0x10  # the external attributes
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint(file)


def test_a_format_that_is_a_tensor_is_another_format(tmp_path: Path) -> None:
    torch.save({"format": torch.zeros(3)}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="is of another format"):
        read_checkpoint(tmp_path / "last.pt")
