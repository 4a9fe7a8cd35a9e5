"""The commands on slides: info, tile."""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from simtriplet.pipelines.batch import SLIDE_TIMEOUT_S
from simtriplet.pipelines.console import print_table, say, tell_error
from simtriplet.pipelines.manifest import collect_jobs
from simtriplet.pipelines.options import AnyPath, existing_option, quiet, slide_timeout_option, tile_options
from simtriplet.pipelines.slide_files import find_slides, one_per_series
from simtriplet.pipelines.slide_steps import tile_slides
from simtriplet.wsi.errors import SettingsError, SimTripletError, StoreError
from simtriplet.wsi.geometry import TilingSpec
from simtriplet.wsi.quality import QualitySpec
from simtriplet.wsi.reach import leads_to_folder
from simtriplet.wsi.slide import open_slide
from simtriplet.wsi.tiling import LabelSpec, TileRequest
from simtriplet.wsi.tissue import TissueSpec

__all__ = ["info", "tile"]


@click.command()
@click.argument("slides", nargs=-1, required=True, type=AnyPath, metavar="SLIDE|FOLDER...")
@click.option("--reader", default="auto", show_default=True, help="auto, tiff, openslide or tiffslide.")
def info(slides: tuple[Path, ...], reader: str) -> None:
    """Say what SLIDEs are: size in pixels, levels, micrometres per pixel, scanner, and what reads them."""
    rows = []
    failures: list[SimTripletError] = []
    folders = {path: one_per_series(find_slides(path, recursive=False)) for path in slides if leads_to_folder(path)}
    for path in (file for given in slides for file in folders.get(given, [given])):
        try:
            with open_slide(path, reader=reader) as slide:
                about = slide.info
                levels = " ".join(f"{downsample:.4g}" for downsample in about.level_downsamples)
                mpp = (
                    "unknown (tell tile --slide-mpp)"
                    if about.mpp_x is None
                    else f"{about.mpp_x:.5g} x {about.mpp_y:.5g}"
                )
                power = "" if about.objective_power is None else f"{about.objective_power:g}x"
                rows.append(
                    [path.name, f"{about.width} x {about.height}", levels, mpp, power, about.vendor, slide.name]
                )
        except SimTripletError as error:
            failures.append(error)
    if rows:
        columns = ("slide", "width x height (px)", "levels (downsample)", "um per px", "objective", "vendor", "reader")
        print_table("slides", columns, rows)
    for failure in failures[:-1]:
        tell_error(str(failure), 1)
    if failures:
        raise failures[-1]


@click.command()
@click.argument("slides", nargs=-1, required=True, type=AnyPath, metavar="SLIDE|FOLDER|MANIFEST.csv...")
@click.option("--out", required=True, type=AnyPath, help="Folder for the stores, <slide_id>.tiles.zarr each.")
@click.option("--recursive", is_flag=True, help="Take the slides in the folders of a FOLDER too.")
@click.option("--mpp", default=0.5, show_default=True, help="Micrometres per tile pixel; 0.5 is about 20x.")
@click.option("--level", type=int, default=None, help="Take this pyramid level unresampled, instead of --mpp.")
@click.option("--size", default=224, show_default=True, help="Side of a tile, tile pixels.")
@click.option("--stride", type=int, default=None, help="Distance between tiles, tile pixels.  [default: the size]")
@click.option(
    "--overlap", type=int, default=None, help="Pixels that neighbours share, instead of --stride.  [default: 0]"
)
@click.option(
    "--grid",
    type=click.Choice(["mpp", "native"]),
    default="mpp",
    show_default=True,
    help="native copies the slide's own JPEG tiles of the level at --mpp (or --level), bit for bit.",
)
@click.option(
    "--context-mpp",
    type=float,
    multiple=True,
    help="Also store tiles around the same centre at this um per pixel; may repeat.",
)
@click.option("--min-tissue", default=0.5, show_default=True, help="Least share of a tile covered by tissue, 0..1.")
@click.option(
    "--tissue",
    default="otsu",
    show_default=True,
    help="Tissue detector: otsu, hsv, entropy, all; or mask:PATH, a PNG or annotations (or a folder of <slide_id> files).",
)
@click.option(
    "--min-region-um2",
    default=50_000.0,
    show_default=True,
    help="Smaller pieces of tissue are dropped, square micrometres.",
)
@click.option(
    "--max-hole-um2", default=50_000.0, show_default=True, help="Smaller holes are filled, square micrometres."
)
@click.option("--min-sharpness", type=float, default=None, help="Leave out blurred tiles: try 0.2.  [default: keep]")
@click.option(
    "--max-pen", type=float, default=None, help="Leave out tiles with a larger share of ink.  [default: keep]"
)
@click.option(
    "--max-fold", type=float, default=None, help="Leave out tiles with a larger share of folds.  [default: keep]"
)
@click.option("--min-saturation", type=float, default=None, help="Leave out paler tiles, 0..1.  [default: keep]")
@click.option("--slide-mpp", type=float, default=None, help="Micrometres per level-0 pixel; wins over the file's own.")
@click.option(
    "--mpp-tolerance",
    default=0.02,
    show_default=True,
    help="A level within this share of --mpp is taken unresampled; 0 always resamples.",
)
@click.option("--upsample", is_flag=True, help="Allow tiles finer than the slide.")
@click.option(
    "--edge",
    type=click.Choice(["inside", "pad"]),
    default="inside",
    show_default=True,
    help="Keep only whole tiles, or pad with white at the right and lower border.",
)
@tile_options
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes that work here.")
@click.option("--scheduler", default=None, metavar="ADDRESS", help="Use a running Dask scheduler, tcp://host:8786.")
@click.option(
    "--on-damage",
    type=click.Choice(["error", "skip"]),
    default="error",
    show_default=True,
    help="A region that cannot be decoded fails its slide, or its tiles are left out and listed in the store.",
)
@slide_timeout_option(SLIDE_TIMEOUT_S)
@click.option("--retry-failed", is_flag=True, help="Tile only what failed in the run before, by its tile-summary.csv.")
@existing_option("error")
def tile(slides: tuple[Path, ...], out: Path, **options: Any) -> None:
    """Cut the tissue of SLIDEs into tiles: one Zarr store a slide, with coordinates, labels and a thumbnail."""
    _refuse_idle_options(options["grid"])
    request = TileRequest(
        tiling=TilingSpec(
            mpp=options["mpp"],
            level=options["level"],
            size_px=options["size"],
            stride_px=_stride(options["size"], options["stride"], options["overlap"]),
            edge=options["edge"],
            mpp_tolerance=options["mpp_tolerance"],
            upsample=options["upsample"],
            min_tissue=options["min_tissue"],
            context_mpp=options["context_mpp"],
        ),
        tissue=TissueSpec(options["tissue"], options["min_region_um2"], options["max_hole_um2"]),
        quality=QualitySpec(
            **{name: options[name] for name in ("min_sharpness", "max_pen", "max_fold", "min_saturation")}
        ),
        labels=LabelSpec(options["min_label_cover"], options["background"]),
        grid=options["grid"],
        codec=options["codec"],
        jpeg_quality=options["jpeg_quality"],
        reader=options["reader"],
        on_damage=options["on_damage"],
    )
    jobs = collect_jobs(
        slides,
        annotations=options["annotations"],
        slide_mpp=options["slide_mpp"],
        recursive=options["recursive"],
    )
    outcomes = tile_slides(
        jobs,
        out,
        request,
        existing=options["existing"],
        workers=options["workers"],
        scheduler=options["scheduler"],
        slide_timeout_s=options["slide_timeout"] or None,
        retry_failed=options["retry_failed"],
        quiet=quiet(),
    )
    failed = [outcome for outcome in outcomes if outcome.summary is None]
    if failed and len(outcomes) == 1:
        raise StoreError(failed[0].reason)
    if failed:
        raise StoreError(
            f"{len(failed)} of {len(outcomes)} slides failed; see '{out / 'tile-summary.csv'}' for the reasons"
        )
    say(f"stores are in {out}; next: simtriplet index {out}")


def _refuse_idle_options(grid: str) -> None:
    """An option that would do nothing is a misunderstanding."""
    context = click.get_current_context()
    for name in ("size", "stride", "overlap", "upsample") if grid == "native" else ():
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name}: native tiles are as the slide has them; leave it out, or use --grid mpp")


def _stride(size_px: int, stride_px: int | None, overlap_px: int | None) -> int | None:
    if overlap_px is None:
        return stride_px
    if stride_px is not None:
        raise click.UsageError("--stride and --overlap say the same thing; pass one of them")
    if not 0 <= overlap_px < size_px:
        raise SettingsError(f"overlap {overlap_px}: must be at least 0 and below the size, {size_px}; correct it")
    return size_px - overlap_px
