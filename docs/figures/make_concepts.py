"""Draw the pictures of docs/concepts.md from a synthetic slide: `python docs/figures/make_concepts.py`."""

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import shapely
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from simtriplet.evaluate.figure import make_figure, render_png
from simtriplet.pretrain.settings import load_settings
from simtriplet.pretrain.views import ViewMaker
from simtriplet.wsi import (
    SlideJob,
    SlideReader,
    SyntheticSlideSpec,
    TileRequest,
    TileStore,
    TilingSpec,
    draw_slide,
    index_store,
    open_slide,
    read_geojson,
    tile_slide,
)
from simtriplet.wsi.synthetic import write_ground_truth

HERE = Path(__file__).parent
TILE_PX, MPP = 128, 0.5
INK, BLUE, ORANGE = "#22303c", "#0072B2", "#D55E00"
BLACK = "#000000"

Pixels = npt.NDArray[np.uint8]


def main() -> None:
    """Draw a slide, tile and index it, and write the pictures beside this file."""
    with tempfile.TemporaryDirectory() as folder:
        spec = SyntheticSlideSpec(width_px=4000, height_px=3000, seed=3)
        slide = draw_slide(Path(folder) / "slide.svs", spec)
        outlines = Path(folder) / "slide.geojson"
        write_ground_truth(outlines, slide)
        request = TileRequest(TilingSpec(mpp=MPP, size_px=TILE_PX))
        tile_slide(SlideJob(slide.path, "slide"), Path(folder), request)
        store = TileStore(Path(folder) / "slide.tiles.zarr")
        index_store(store)
        with open_slide(slide.path) as reader:
            (HERE / "concept_levels.png").write_bytes(draw_levels(reader, spec.mpp))
        (HERE / "concept_tiles.png").write_bytes(draw_tiles(store))
        (HERE / "concept_triplet.png").write_bytes(draw_triplet(store, find_inner_tile(store, outlines)))


def draw_levels(reader: SlideReader, mpp: float) -> bytes:
    """Draw the same 64 um of a slide at each level, every pixel as it is stored."""
    downsamples = reader.info.level_downsamples
    centre = np.array([1950.0, 2050.0])
    figure = make_figure(860, 330)
    for place, downsample in enumerate(downsamples):
        side = round(64 / (mpp * downsample))
        x, y = np.rint(centre / downsample).astype(int)
        axes = figure.add_axes((0.02 + place / len(downsamples), 0.02, 0.96 / len(downsamples) - 0.02, 0.8))
        axes.imshow(reader.read(place, (int(x), int(y)), (side, side)), interpolation="nearest")
        axes.set_axis_off()
        title = f"level {place}: {mpp * downsample:g} um per pixel\n64 um are {side} px"
        axes.set_title(title, fontsize=11, color=INK)
    return render_png(figure, few_colours=True)


def show_thumbnail(axes: Axes, store: TileStore) -> float:
    """Show the thumbnail and return level-0 pixels per thumbnail pixel."""
    axes.imshow(store.thumbnail())
    axes.set_axis_off()
    return float(store.attributes["thumbnail"]["downsample"])


def draw_tiles(store: TileStore) -> bytes:
    """Draw the thumbnail, and the lattice of tiles that hold tissue on it."""
    figure = make_figure(860, 340)
    plain, tiled = (figure.add_axes((0.01 + 0.5 * place, 0.02, 0.48, 0.86)) for place in range(2))
    show_thumbnail(plain, store)
    plain.set_title("the slide", fontsize=11, color=INK)
    downsample = show_thumbnail(tiled, store)
    side = store.base_size_px / downsample
    for x, y in store.base_xy() / downsample:
        tiled.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=BLUE, linewidth=0.8))
    tiled.set_title(f"{len(store)} tiles of {TILE_PX} px at {MPP} um: at least half tissue", fontsize=11, color=INK)
    return render_png(figure, few_colours=True)


def find_inner_tile(store: TileStore, outlines: Path) -> int:
    """Return the tile deepest in one tissue whose neighbours are all in tissue of the same kind."""
    regions = [region.area for region in read_geojson(outlines)]
    degrees = store.neighbours().degrees
    depth = [
        max(region.boundary.distance(shapely.Point(xy)) for region in regions if region.contains(shapely.Point(xy)))
        if any(region.contains(shapely.Point(xy)) for region in regions)
        else 0.0
        for xy in store.centres()
    ]
    return int(np.argmax(np.where(degrees == degrees.max(), depth, 0)))


def draw_triplet(store: TileStore, anchor: int) -> bytes:
    """Draw a tile among its neighbours, and the three views that a step sees."""
    graph = store.neighbours()
    around = graph.indices[graph.indptr[anchor] : graph.indptr[anchor + 1]]
    drawn = int(around[len(around) // 2])
    figure = make_figure(860, 400)
    field = figure.add_axes((0.01, 0.02, 0.42, 0.86))
    draw_field(field, store, anchor, around, drawn)
    field.set_title("a tile (orange) and its neighbours", fontsize=11, color=INK)
    for place, (view, title) in enumerate(zip(make_views(store, anchor, drawn), VIEW_TITLES, strict=True)):
        axes = figure.add_axes((0.46 + 0.18 * place, 0.28, 0.17, 0.42))
        axes.imshow(view)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(color=BLUE if place == 2 else ORANGE, linewidth=3)
        axes.set_title(title, fontsize=11, color=INK)
    figure.text(0.73, 0.12, "all three must get alike features", ha="center", fontsize=11, color=INK)
    return render_png(figure, few_colours=True)


VIEW_TITLES = ("view 1 of the tile", "view 2 of the tile", "view of a neighbour")


def draw_field(axes: Axes, store: TileStore, anchor: int, around: npt.NDArray[np.int32], drawn: int) -> None:
    """Put the tiles in their places and join the anchor with its neighbours."""
    xy = store.base_xy() / store.base_size_px
    shown = [anchor, *around.tolist()]
    for tile, pixels in zip(shown, store.images.read(np.array(shown)), strict=True):
        x, y = xy[tile]
        axes.imshow(pixels, extent=(x, x + 1, y + 1, y))
    for tile, colour in ((drawn, BLUE), (anchor, ORANGE)):
        axes.add_patch(Rectangle(tuple(xy[tile]), 1, 1, fill=False, edgecolor=colour, linewidth=4, zorder=3))
    for tile in around:
        ends = np.stack([xy[anchor], xy[tile]]) + 0.5
        axes.plot(*ends.T, color=BLACK, linewidth=1.6, marker="o", markersize=5, zorder=4)
    x, y = xy[anchor]
    axes.set(xlim=(x - 1.05, x + 2.05), ylim=(y + 2.05, y - 1.05), aspect="equal")
    axes.set_axis_off()


def make_views(store: TileStore, anchor: int, neighbour: int) -> Pixels:
    """Return (3, s, s, 3) uint8, the views that the preset `pathology` makes."""
    settings = load_settings(preset="pathology", overrides=["views.mean=[0, 0, 0]", "views.std=[1, 1, 1]"])
    tiles = torch.from_numpy(store.images.read(np.array([anchor, anchor, neighbour])))
    views = ViewMaker(settings.views, image_size_px=TILE_PX)(tiles, torch.Generator().manual_seed(4))
    return np.asarray((views.clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).numpy())


if __name__ == "__main__":
    main()
