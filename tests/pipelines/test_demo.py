"""The demo's own slides."""

from pathlib import Path

import pytest

from simtriplet.pipelines.demo import demo_recipe
from simtriplet.wsi.errors import StoreError
from simtriplet.wsi.folder_hold import FolderHold


def test_slides_are_not_drawn_anew_under_another_demo(tmp_path: Path) -> None:
    with FolderHold(tmp_path), pytest.raises(StoreError, match="another run is working there"):
        demo_recipe(tmp_path, seed=3)
    assert list(tmp_path.iterdir()) == []
