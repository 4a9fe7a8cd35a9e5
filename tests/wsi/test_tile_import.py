"""Coordinates of CLAM and TRIDENT, in files written as the two write them, become stores of the slide's very pixels."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from simtriplet.wsi.annotation import NamedRegion
from simtriplet.wsi.check import check_store
from simtriplet.wsi.coordinate_lattice import find_lattice
from simtriplet.wsi.errors import AnnotationError, MissingDependencyError, ResolutionError, StoreExistsError
from simtriplet.wsi.h5_coordinates import read_coordinates, read_h5_features
from simtriplet.wsi.neighbour_index import index_store
from simtriplet.wsi.neighbours import GridRule
from simtriplet.wsi.store import TileStore
from simtriplet.wsi.tile_import import ImportRequest, import_tiles
from simtriplet.wsi.tile_request import SlideJob

h5py = pytest.importorskip("h5py", reason="the extra interop is not installed")

Pixels = npt.NDArray[np.uint8]
SlideWriter = Callable[..., Path]
WIDTH, HEIGHT = 1024, 768


@pytest.fixture
def picture_levels(tissue_picture: Callable[..., Pixels]) -> list[Pixels]:
    """Three levels with downsamples 1, 2 and 4."""
    levels = [tissue_picture(WIDTH, HEIGHT)]
    for _ in range(2):
        top = levels[-1].astype(np.float64)
        blocks = top.reshape(top.shape[0] // 2, 2, top.shape[1] // 2, 2, 3)
        levels.append(np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8))
    return levels


@pytest.fixture
def slide(tmp_path: Path, write_slide: SlideWriter, picture_levels: list[Pixels]) -> Path:
    """A slide of 0.25 um per pixel, without loss."""
    return write_slide(tmp_path / "case 7.tif", picture_levels, mpp=0.25)


def write_h5(path: Path, assets: Mapping[str, Any], attributes: Mapping[str, Any]) -> Path:
    """Write datasets as both programs do: one row a chunk, growing, the attributes on `coords`."""
    with h5py.File(path, "w") as file:
        for name, values in assets.items():
            if values is None:  # a group stands where the dataset should
                continue
            array = np.asarray(values)
            shape = (None, *array.shape[1:])
            file.create_dataset(name, data=array, maxshape=shape, chunks=(1, *array.shape[1:]))
        for name, value in attributes.items():
            file["coords"].attrs[name] = value
    return path


def write_clam(path: Path, coords: Any, *, size_px: int, level: int, **more: Any) -> Path:
    sizes = [(WIDTH >> k, HEIGHT >> k) for k in range(3)]
    attributes = {
        "patch_size": size_px,
        "patch_level": level,
        "downsample": (float(2**level), float(2**level)),
        "downsampled_level_dim": sizes[level],
        "level_dim": sizes[level],
        "name": "case 7",
        "save_path": "/somewhere/patches",
        **more,
    }
    return write_h5(path, {"coords": np.asarray(coords)}, {k: v for k, v in attributes.items() if v is not None})


def write_trident(path: Path, coords: Any, *, size_px: int, power: int, base_power: int = 40, **more: Any) -> Path:
    attributes = {
        "patch_size": size_px,
        "patch_size_level0": size_px * base_power // power,
        "level0_magnification": base_power,
        "target_magnification": power,
        "overlap": 0,
        "name": "case 7",
        "savetodir": "/somewhere/job",
        "level0_width": WIDTH,
        "level0_height": HEIGHT,
        **more,
    }
    return write_h5(path, {"coords": np.asarray(coords)}, {k: v for k, v in attributes.items() if v is not None})


def cut(level: Pixels, x: int, y: int, side: int) -> Pixels:
    """Return a window of a level, white beyond its border."""
    window = np.full((side, side, 3), 255, np.uint8)
    inside = level[y : y + side, x : x + side]
    window[: inside.shape[0], : inside.shape[1]] = inside
    return window


def imported(slide: Path, file: Path, out: Path, **options: Any) -> TileStore:
    import_tiles(SlideJob(slide, "case 7"), read_coordinates(file), out, **options)
    return TileStore(out / "case 7.tiles.zarr")


def test_clams_tiles_are_the_pixels_of_its_level(slide: Path, picture_levels: list[Pixels], tmp_path: Path) -> None:
    """Columns first as CLAM walks, off the origin, the last column beyond the border."""
    coords = [(x, y) for x in range(38, WIDTH, 128) for y in range(14, 14 + 4 * 128, 128)]
    file = write_clam(tmp_path / "case 7.h5", coords, size_px=64, level=1)
    store = imported(slide, file, tmp_path / "out")
    assert sorted(map(tuple, store.base_xy().tolist())) == sorted(coords)
    assert (store.mpp, store.size_px, store.base_size_px, store.stride_px) == (0.5, 64, 128, 64)
    for tile, (x, y) in zip(store.images.read(np.arange(len(store))), store.base_xy().tolist(), strict=True):
        assert np.array_equal(tile, cut(picture_levels[1], x // 2, y // 2, 64))
    cells = np.column_stack([store.numbers("col"), store.numbers("row")])
    assert np.array_equal(store.base_xy(), cells * 128 + [38, 14])
    assert store.attributes["tiling"]["coordinates"] == {"writer": "clam", "file": "case 7.h5"}
    assert check_store(store.path) == []


def test_tiles_that_were_shrunk_after_reading_are_shrunk_here(
    slide: Path, picture_levels: list[Pixels], tmp_path: Path
) -> None:
    """`custom_downsample` of CLAM's relatives: 128 pixels of level 1 become 64, those of level 2."""
    coords = [(x, y) for x in range(0, 768, 256) for y in range(0, 512, 256)]
    file = write_clam(tmp_path / "case 7.h5", coords, size_px=128, level=1, custom_downsample=2)
    store = imported(slide, file, tmp_path / "out")
    assert (store.mpp, store.size_px, store.base_size_px, store.stride_px) == (1.0, 64, 256, 64)
    for tile, (x, y) in zip(store.images.read(np.arange(len(store))), store.base_xy().tolist(), strict=True):
        level_1 = cut(picture_levels[1], x // 2, y // 2, 128).astype(float)
        averaged = level_1.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
        assert np.abs(tile - averaged).max() <= 1


def test_the_store_is_like_any_other(slide: Path, tmp_path: Path) -> None:
    """Indexed by the lattice, labelled from annotations, without tissue regions, told from the same request."""
    import shapely

    coords = [(x, y) for y in range(0, 512, 128) for x in range(0, 768, 128)]
    coordinates = read_coordinates(write_clam(tmp_path / "case 7.h5", coords, size_px=128, level=0))
    job = SlideJob(slide, "case 7", "p1", regions=(NamedRegion("tumour", shapely.box(0, 0, 256, 256)),))
    import_tiles(job, coordinates, tmp_path)
    store = TileStore(tmp_path / "case 7.tiles.zarr")
    assert index_store(store, GridRule(4)).n_pairs == 3 * 6 + 4 * 5
    labels = store.labels()
    assert labels is not None
    tumour = (store.base_xy() < 256).all(axis=1)
    assert labels.names().tolist() == ["tumour" if inside else None for inside in tumour]
    assert store.tissue_rings() == []
    assert set(store.numbers("tissue_id")) == {-1}
    assert set(store.numbers("tissue_fraction")) == {1.0}
    assert store.thumbnail().shape[:2] == (24, 32)
    assert {"sharpness", "pen", "fold"} <= set(store.columns())
    assert store.patient_id == "p1"
    assert import_tiles(job, coordinates, tmp_path, existing="skip").status == "skipped"
    with pytest.raises(StoreExistsError, match="exists already"):
        import_tiles(job, coordinates, tmp_path)
    fewer = read_coordinates(write_clam(tmp_path / "case 7.h5", coords[1:], size_px=128, level=0))
    with pytest.raises(StoreExistsError, match="with other settings"):
        import_tiles(job, fewer, tmp_path, existing="skip")
    assert import_tiles(job, fewer, tmp_path, existing="replace").n_tiles == 23


def test_tridents_tiles_are_averaged_to_its_magnification(
    slide: Path, picture_levels: list[Pixels], tmp_path: Path
) -> None:
    """40x to 20x is level 1; to 10x level 2; both at the file's exact places."""
    for power, level in ((20, 1), (10, 2)):
        side = 64 * 40 // power
        coords = [(x, y) for x in range(0, WIDTH, side) for y in range(0, HEIGHT, side)]
        file = write_trident(tmp_path / f"{power}_patches.h5", coords, size_px=64, power=power)
        store = imported(slide, file, tmp_path / str(power))
        assert (store.mpp, store.base_size_px) == (0.25 * 40 / power, side)
        tiles = store.images.read(np.arange(len(store)))
        for tile, (x, y) in zip(tiles, store.base_xy().tolist(), strict=True):
            assert np.array_equal(tile, cut(picture_levels[level], x >> level, y >> level, 64))
        assert sorted(map(tuple, store.base_xy().tolist())) == sorted(coords)


def test_a_magnification_between_levels_is_resampled(slide: Path, picture_levels: list[Pixels], tmp_path: Path) -> None:
    """40x to 13.33x: three level-0 pixels a tile pixel, read from level 1 in steps of 1.5."""
    file = write_trident(
        tmp_path / "a.h5", [(0, 0), (192, 0)], size_px=64, power=40, patch_size_level0=192, target_magnification=13
    )
    store = imported(slide, file, tmp_path / "out")
    assert (store.mpp, store.base_size_px, store.attributes["tiling"]["scale"]) == (0.75, 192, 1.5)
    tile = store.images.read([0])[0].astype(float)
    window = picture_levels[1][:96, :96].astype(float)
    assert tile.mean() == pytest.approx(window.mean(), abs=0.6)
    # 3 level pixels are 2 tile pixels, so that blocks of those have equal means
    blocks = window.reshape(32, 3, 32, 3, 3).mean(axis=(1, 3))
    assert np.abs(tile.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3)) - blocks).max() <= 1


def test_overlap_and_files_without_a_level_0_side(slide: Path, tmp_path: Path) -> None:
    coords = [(x, y) for x in range(0, 640, 64) for y in range(0, 640, 64)]
    file = write_trident(tmp_path / "a.h5", coords, size_px=64, power=20, overlap=32, patch_size_level0=None)
    store = imported(slide, file, tmp_path / "out")
    assert (store.base_size_px, store.stride_px, store.size_px) == (128, 32, 64)
    # neighbours do not share pixels: two cells away in each direction
    assert index_store(store, GridRule(4)).n_pairs == 2 * 10 * 8


@pytest.mark.parametrize("overlap", [16, 32, 40])
def test_tridents_first_step_is_longer_and_breaks_no_lattice(slide: Path, tmp_path: Path, overlap: int) -> None:
    """Its columns lie at 0, P, 2P - O, 3P - 2O, ...: P 128, O twice `overlap`, on level 0."""
    side, shared = 128, 2 * overlap
    places = [0, *range(side, 700, side - shared)]
    coords = [(x, y) for x in places for y in places]
    file = write_trident(tmp_path / "a.h5", coords, size_px=64, power=20, overlap=overlap)
    store = imported(slide, file, tmp_path / "out")
    n = len(places)
    columns = {x: col for col, x in enumerate(places)}
    assert np.array_equal(store.column("col"), [columns[x] for x, _ in store.base_xy().tolist()])
    assert np.array_equal(store.column("row"), [columns[y] for _, y in store.base_xy().tolist()])
    cells = -(-side // (side - shared))  # to the next tile that shares no pixels
    assert index_store(store, GridRule(4)).n_pairs == 2 * n * (n - cells)


def trident_places(size_px: int, power: int, overlap: int, *, base_power: int = 40, n: int = 9) -> list[int]:
    """Return columns as TRIDENT's WSIPatcher computes them: both lengths rounded, each by itself."""
    downsample = (10 / power) / (10 / base_power)
    side, shared = round(size_px * downsample), round(overlap * downsample)
    return [col * side - shared * max(0, col - 1) for col in range(n)]


@pytest.mark.parametrize(
    ("size_px", "power", "overlap"),
    [
        (256, 20, 64),  # nothing is rounded
        (100, 30, 80),  # tiles of 133 px share 107, which their side of 133 makes 106
        (256, 15, 32),  # tiles of 683 px, of which the file says 682
        (256, 15, 100),  # both: 683 and 682, 267 and 266
        (200, 15, 191),  # 533 px in steps of 24
    ],
)
def test_tridents_own_rounding_breaks_no_lattice(size_px: int, power: int, overlap: int, tmp_path: Path) -> None:
    places = trident_places(size_px, power, overlap)
    coords = [(x, y) for x in places for y in places if (x + y) % 5]
    given = read_coordinates(write_trident(tmp_path / "a.h5", coords, size_px=size_px, power=power, overlap=overlap))
    lattice = find_lattice(given.base_xy, given.base_size, base_overlap=given.base_overlap)
    assert lattice.n_parts == 1
    assert lattice.pitch == places[2] - places[1]
    cells = [(places.index(x), places.index(y)) for x, y in given.base_xy.tolist()]
    assert np.array_equal(np.column_stack([lattice.col, lattice.row]), cells)


@pytest.mark.parametrize("overlap", [1, 64, 128, 248, 255])
def test_overlap_makes_no_lattice_of_places_on_none(overlap: int) -> None:
    """Not of places by chance, nor of a lattice of which a tile is a pixel off: they are what they are without it."""
    chance = np.unique(np.random.default_rng(overlap).integers(0, 100_000, (200, 2)) // 2 * 2, axis=0)
    columns = trident_places(256, 40, overlap + 1)
    moved = np.array([(x, y) for x in columns for y in columns])
    moved[40] += 1
    for places in (chance, chance[:3], chance * (0, 1), moved):
        found, expected = find_lattice(places, 256, base_overlap=overlap), find_lattice(places, 256)
        assert found.pitch == expected.pitch
        assert np.array_equal(found.row, expected.row)
        assert np.array_equal(found.col, expected.col)


def test_every_contour_of_clam_has_a_lattice_of_its_own(slide: Path, tmp_path: Path) -> None:
    """Two contours whose tiles lie side by side but not in line: adjacency stays within each."""
    first = [(x, y) for x in (0, 128, 256) for y in (0, 128)]
    second = [(x, y) for x in (427, 555) for y in (31, 159, 287)]
    coords = [*first, *second, first[0]]  # named twice, where contours overlap
    store = imported(slide, write_clam(tmp_path / "a.h5", coords, size_px=128, level=0), tmp_path / "out")
    assert len(store) == 12
    index_store(store, GridRule(8))
    graph = store.neighbours()
    anchors = np.repeat(np.arange(12), graph.degrees)
    apart = np.abs(store.base_xy()[anchors] - store.base_xy()[graph.indices])
    assert set(map(tuple, apart.tolist())) == {(128, 0), (0, 128), (128, 128)}
    assert graph.n_pairs == 2 * (3 + 4 + 4)
    assert np.array_equal(np.sort(graph.distances_um), np.sort(np.hypot(*apart.T) * 0.25))


def test_places_on_no_lattice_have_no_adjacent_tiles() -> None:
    rng = np.random.default_rng(0)
    places = np.unique(rng.integers(0, 100_000, (200, 2)), axis=0)
    lattice = find_lattice(places, 256)
    cells = np.column_stack([lattice.row, lattice.col])
    assert len(np.unique(cells, axis=0)) == len(places)
    apart = np.abs(cells[:, None] - cells[None]).max(axis=2) + 10 * np.eye(len(places))
    near = np.argwhere(apart <= 1)
    assert len(near) == 0
    # two tiles in a row by chance, far apart or nearly on one another, are no lattice
    for step in (50_000, 3):
        chance = find_lattice(np.array([[0, 0], [step, 0]]), 256)
        assert (chance.pitch, chance.n_parts) == (256, 2)
    one = find_lattice(np.array([[37, 12]]), 256)
    assert (one.row.tolist(), one.col.tolist(), one.pitch) == ([0], [0], 256)


def test_a_lattice_with_holes_is_found() -> None:
    row, col = (axis.ravel() for axis in np.mgrid[0:40, 0:50])
    kept = np.random.default_rng(1).random(2000) < 0.3
    places = np.column_stack([col, row])[kept] * 300 + [17, 5]
    lattice = find_lattice(places, 256)
    assert (lattice.pitch, lattice.n_parts) == (300, 1)
    assert np.array_equal(np.column_stack([lattice.col, lattice.row]), (places - places.min(axis=0)) // 300)


def test_real_slides_give_what_openslide_gives(shared_data: Path, tmp_path: Path) -> None:
    """Tiles of a scanner's slide as CLAM reads them, off the lattice of its JPEG tiles."""
    import openslide

    path = shared_data / "slides" / "CMU-1-Small-Region.svs"
    coords = [(x, y) for x in range(33, 1900, 300) for y in range(51, 2600, 300)]
    attributes = {"patch_size": 256, "patch_level": 0, "level_dim": (2220, 2967), "name": path.stem}
    file = write_h5(tmp_path / "a.h5", {"coords": coords}, attributes)
    import_tiles(SlideJob(path, "cmu"), read_coordinates(file), tmp_path)
    store = TileStore(tmp_path / "cmu.tiles.zarr")
    with openslide.OpenSlide(path) as theirs:
        for tile, xy in zip(store.images.read(np.arange(len(store))), store.base_xy().tolist(), strict=True):
            expected = np.asarray(theirs.read_region(tuple(xy), 0, (256, 256)).convert("RGB"))
            assert np.array_equal(tile, expected)
    assert (store.mpp, store.stride_px) == (pytest.approx(0.499), 300)


def test_features_follow_their_tiles(slide: Path, tmp_path: Path) -> None:
    """CLAM's feature files have coordinates without attributes, TRIDENT's have both."""
    coords = np.array([(x, y) for x in range(0, 768, 128) for y in range(0, 512, 128)])
    features = np.random.default_rng(0).normal(size=(len(coords), 7)).astype(np.float32)
    store = imported(slide, write_clam(tmp_path / "a.h5", coords, size_px=128, level=0), tmp_path / "out")
    shuffled = np.random.default_rng(1).permutation(len(coords))
    file = write_h5(
        tmp_path / "f.h5", {"features": features[shuffled], "coords": coords[shuffled].astype(np.int32)}, {}
    )
    found = read_h5_features(file, store.base_xy())
    expected = {tuple(xy): row for xy, row in zip(coords.tolist(), features, strict=True)}
    assert np.array_equal(found, [expected[tuple(xy)] for xy in store.base_xy().tolist()])
    with pytest.raises(AnnotationError, match="nothing says how large its tiles are"):
        read_coordinates(file)
    write_h5(file, {"features": features[:-1], "coords": coords[:-1]}, {})
    with pytest.raises(AnnotationError, match="has no features of the tile at x 640, y 384"):
        read_h5_features(file, store.base_xy())
    write_h5(file, {"features": np.full_like(features, np.nan), "coords": coords}, {})
    with pytest.raises(AnnotationError, match="no finite number"):
        read_h5_features(file, store.base_xy())
    write_h5(file, {"features": features[:3], "coords": coords}, {})
    with pytest.raises(AnnotationError, match=r"features of shape \(3, 7\) for 24 coords"):
        read_h5_features(file, store.base_xy())


def test_coordinates_of_another_slide_are_refused(slide: Path, tmp_path: Path) -> None:
    job = SlideJob(slide, "case 7")
    cases = {
        r"are of level 1 of 300 x 200 px.*levels of 1024 x 768, 512 x 384": write_clam(
            tmp_path / "a.h5", [(0, 0)], size_px=64, level=1, level_dim=(300, 200)
        ),
        r"a tile begins at x 1024, y 0, outside the 1024 x 768 px": write_clam(
            tmp_path / "b.h5", [(0, 0), (1024, 0)], size_px=64, level=0
        ),
        r"are of a slide of 2000 x 768 px": write_trident(
            tmp_path / "c.h5", [(0, 0)], size_px=64, power=20, level0_width=2000
        ),
        r"are of level 7,": write_clam(tmp_path / "d.h5", [(0, 0)], size_px=64, level=0, patch_level=7, level_dim=None),
    }
    for message, file in cases.items():
        with pytest.raises(AnnotationError, match=message):
            import_tiles(job, read_coordinates(file), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_resolution_must_be_known(tmp_path: Path, write_slide: SlideWriter, picture_levels: list[Pixels]) -> None:
    silent = write_slide(tmp_path / "silent.tif", picture_levels, mpp=None)
    coordinates = read_coordinates(write_clam(tmp_path / "a.h5", [(0, 0), (64, 0)], size_px=64, level=0))
    with pytest.raises(ResolutionError, match="pass --slide-mpp"):
        import_tiles(SlideJob(silent, "silent"), coordinates, tmp_path / "out")
    import_tiles(SlideJob(silent, "silent", slide_mpp=0.3), coordinates, tmp_path / "out", ImportRequest(codec="zstd"))
    assert TileStore(tmp_path / "out" / "silent.tiles.zarr").mpp == 0.3


@pytest.mark.parametrize(
    ("assets", "attributes", "message"),
    [
        ({"coords": np.zeros((0, 2))}, {}, "names no tiles"),
        ({"coords": np.array([])}, {}, "names no tiles; leave the slide out"),
        ({"coords": np.zeros((3, 3))}, {}, r"coords of shape \(3, 3\)"),
        ({"coords": np.array([[0.5, 1]])}, {}, "no whole numbers"),
        ({"coords": np.array([[np.nan, 1]])}, {}, "no whole numbers"),
        ({"coords": [[0, 0]], "imgs": np.zeros((1, 4, 4, 3))}, {}, "holds pictures"),
        ({"coords": [[0, 0]]}, {}, "no attribute patch_size"),
        ({"coords/0": [[0, 0]], "coords": None}, {"patch_size": 64, "patch_level": 0}, "cannot be read"),
        ({"coords": [[0, 0]]}, {"patch_size": 0, "patch_level": 0}, "patch_size 0: must lie in 1..8192"),
        ({"coords": [[0, 0]]}, {"patch_size": 64.5, "patch_level": 0}, "must be a whole number"),
        ({"coords": [[0, 0]]}, {"patch_size": np.nan, "patch_level": 0}, "must be a finite number"),
        ({"coords": [[0, 0]]}, {"patch_size": "big", "patch_level": 0}, "'big': must be a number"),
        ({"coords": [[0, 0]]}, {"patch_size": 64, "patch_level": -1}, "patch_level -1: must be at least 0"),
        ({"coords": [[0, 0]]}, {"patch_size": 64, "level0_magnification": "None"}, "does not say how large"),
        ({"coords": [[0, 0]]}, {"patch_size": 64, "patch_size_level0": -3}, "must be a positive number"),
    ],
)
def test_malformed_files_are_told_apart(
    assets: dict[str, Any], attributes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(AnnotationError, match=message):
        read_coordinates(write_h5(tmp_path / "a.h5", assets, attributes))


def test_damaged_files_never_crash(tmp_path: Path) -> None:
    """Bytes changed or cut anywhere: read or refused, nothing else."""
    coords = [(x, y) for x in range(0, 768, 128) for y in range(0, 512, 128)]
    whole = write_clam(tmp_path / "whole.h5", coords, size_px=128, level=0).read_bytes()
    rng = np.random.default_rng(0)
    file, refused = tmp_path / "a.h5", 0
    for turn in range(300):
        data = bytearray(whole)
        if turn % 3 == 0:
            data = data[: int(rng.integers(0, len(data)))]
        else:
            for place in rng.integers(0, len(data), 1 + turn % 8):
                data[place] = int(rng.integers(0, 256))
        file.write_bytes(data)
        try:
            read_coordinates(file)
        except AnnotationError:
            refused += 1
    assert refused >= 100
    with pytest.raises(AnnotationError, match=r"none.h5': cannot be read \("):
        read_coordinates(tmp_path / "none.h5")


def test_h5py_is_named_where_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(
        MissingDependencyError, match=r"coordinates 'a.h5': needs the package h5py.*pip install 'simtriplet\[interop\]'"
    ):
        read_coordinates(tmp_path / "a.h5")


def test_a_file_that_claims_more_than_it_holds_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        coords = file.create_dataset("coords", shape=(1 << 22, 2), dtype="i8", chunks=(1 << 16, 2))
        coords.attrs["patch_size"], coords.attrs["patch_level"] = 256, 0
    assert path.stat().st_size < 5000
    with pytest.raises(AnnotationError, match=r"claims 67108864 bytes for '/coords' and holds 0"):
        read_coordinates(path)
    with h5py.File(path, "w") as file:
        file["coords"] = np.array([[0, 1]])
        file.create_dataset("features", shape=(1, 1 << 28), dtype="f4", chunks=(1, 1 << 20))
    with pytest.raises(AnnotationError, match=r"claims 1073741824 bytes for '/features' and holds 0"):
        read_h5_features(path, np.array([[0, 1]]))


@pytest.mark.parametrize("how", ["link", "storage", "virtual"])
def test_no_other_file_is_read(tmp_path: Path, how: str) -> None:
    """HDF5 may name other files to take values from, wherever they lie."""
    other, path = tmp_path / "private" / "other.h5", tmp_path / "a.h5"
    other.parent.mkdir()
    write_clam(other, [[0, 0], [8, 8]], size_px=8, level=0)
    with h5py.File(path, "w") as file:
        if how == "link":
            file["coords"] = h5py.ExternalLink(str(other), "/coords")
        elif how == "storage":
            file.create_dataset("coords", shape=(4, 2), dtype="u1", external=[(str(other), 0, 8)])
        else:
            layout = h5py.VirtualLayout(shape=(2, 2), dtype="i8")
            layout[...] = h5py.VirtualSource(str(other), "coords", shape=(2, 2))
            file.create_virtual_dataset("coords", layout)
        if how != "link":
            file["coords"].attrs["patch_size"], file["coords"].attrs["patch_level"] = 8, 0
    with pytest.raises(AnnotationError, match="its dataset 'coords' lies in another file; copy both into one"):
        read_coordinates(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.h5")
    with pytest.raises(AnnotationError, match=r"a\.h5': is no file; check the path"):
        read_coordinates(tmp_path / "a.h5")
