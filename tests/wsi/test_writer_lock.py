"""Two runs never write one store at a time, and what a dead run left stands in nobody's way."""

from pathlib import Path

import numpy as np
import pytest

from simtriplet.wsi.codec import make_codec
from simtriplet.wsi.errors import StoreError
from simtriplet.wsi.store_writer import StoreWriter


def _writer(folder: Path) -> StoreWriter:
    return StoreWriter(folder / "a.tiles.zarr", size_px=16, codec=make_codec("none"))


def test_a_second_run_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    with _writer(tmp_path) as first:
        first.write_tiles(np.zeros((3, 16, 16, 3), np.uint8))
        before = sorted(path.name for path in first.partial.rglob("*"))
        with pytest.raises(StoreError, match="another run is writing it"):
            _writer(tmp_path)
        assert sorted(path.name for path in first.partial.rglob("*")) == before
    with _writer(tmp_path) as again:
        assert again.partial.exists()


def test_what_a_killed_run_left_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / "a.tiles.zarr.partial"
    left.mkdir()
    (left / "junk").write_text("half a shard")
    with _writer(tmp_path) as writer:
        assert list(writer.partial.iterdir()) == []
