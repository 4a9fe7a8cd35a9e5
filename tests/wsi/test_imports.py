"""What may be absent: a machine that trains has numpy and zarr, and no slide library."""

import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest

import simtriplet.wsi
from simtriplet.wsi.store import TileStore

StoreFactory = Callable[..., TileStore]
SLIDE_LIBRARIES = (
    "openslide",
    "tiffslide",
    "tifffile",
    "shapely",
    "cv2",
    "imagecodecs",
    "torch",
    "scipy",
    "dask",
    "click",
)


def run_without(blocked: tuple[str, ...], code: str, *arguments: str) -> str:
    """Run a program for which importing any of the named packages fails."""
    head = f"import sys\nsys.modules.update(dict.fromkeys({blocked!r}))\n"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", head + textwrap.dedent(code), *arguments],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_stores_are_read_without_any_slide_library(store_factory: StoreFactory, codec: str) -> None:
    store = store_factory(codec=codec)
    printed = run_without(
        SLIDE_LIBRARIES,
        """
        import simtriplet.wsi.store
        store = simtriplet.wsi.store.TileStore(sys.argv[1])
        tiles = store.images.read(range(len(store)))
        graph = store.neighbours()
        print(tiles.shape, int(tiles.astype(int).sum()), graph.n_pairs, store.labels().categories, store.base_xy().max())
        """,
        str(store.path),
    )
    total = int(store.images.read(range(24)).astype(int).sum())
    assert printed.strip() == f"(24, 32, 32, 3) {total} {store.neighbours().n_pairs} ('dots', 'stripes') 160"


def test_the_default_index_and_the_check_need_none_either(store_factory: StoreFactory) -> None:
    store = store_factory(index=False)
    printed = run_without(
        SLIDE_LIBRARIES,
        """
        from simtriplet.wsi import TileStore, check_store, index_store
        print(index_store(TileStore(sys.argv[1])).n_pairs, check_store(TileStore(sys.argv[1]).path))
        """,
        str(store.path),
    )
    assert printed.strip() == "68 []"


def test_jpeg_tiles_name_the_package_they_need(store_factory: StoreFactory) -> None:
    printed = run_without(
        ("imagecodecs",),
        """
        from simtriplet.wsi import SimTripletError, TileStore
        try:
            TileStore(sys.argv[1]).images.read([0])
        except SimTripletError as error:
            print(error)
        """,
        str(store_factory(codec="jpeg").path),
    )
    assert printed.strip() == "codec 'jpeg': needs the package imagecodecs; pip install imagecodecs"


def test_reading_a_store_loads_no_slide_library(store_factory: StoreFactory) -> None:
    printed = run_without(
        (),
        f"""
        import simtriplet.wsi
        simtriplet.wsi.TileStore(sys.argv[1]).images.read([0])
        print(sorted(name for name in {SLIDE_LIBRARIES!r} if name in sys.modules))
        """,
        str(store_factory().path),
    )
    assert printed.strip() == "[]"


def test_every_public_name_is_found() -> None:
    for name in simtriplet.wsi.__all__:
        assert getattr(simtriplet.wsi, name).__name__ == name
    assert dir(simtriplet.wsi) == sorted(simtriplet.wsi.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        simtriplet.wsi.nothing  # noqa: B018
