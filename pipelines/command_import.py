"""The command `import`: coordinates and features of CLAM and TRIDENT become stores."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from simtriplet.evaluate.feature_array import check_feature_name, write_features
from simtriplet.pipelines.console import print_table, progress_bar, say
from simtriplet.pipelines.manifest import collect_jobs
from simtriplet.pipelines.options import AnyPath, existing_option, quiet, tile_options
from simtriplet.pipelines.slide_steps import make_folder
from simtriplet.wsi.errors import AnnotationError, SettingsError, SimTripletError, StoreError
from simtriplet.wsi.h5_coordinates import TileCoordinates, check_h5_features, read_coordinates, read_h5_features
from simtriplet.wsi.reach import entries, is_file, leads_to_folder
from simtriplet.wsi.store import STORE_SUFFIX, TileStore
from simtriplet.wsi.tile_import import ImportRequest, import_tiles
from simtriplet.wsi.tile_request import Existing, LabelSpec, SlideJob
from simtriplet.wsi.tiling import TilingSummary

__all__ = ["import_"]

_COLUMNS = ("slide", "status", "tiles", "labelled", "mpp", "from", "features", "s", "reason")


@dataclass(frozen=True, slots=True)
class _Pair:
    """A file of coordinates and the slide it is of."""

    coordinates: TileCoordinates
    job: SlideJob


@click.command("import")
@click.argument("files", nargs=-1, required=True, type=AnyPath, metavar="FILE.h5|FOLDER...")
@click.option("--slide", type=AnyPath, default=None, help="The slide of the one FILE.h5.")
@click.option(
    "--slides",
    type=AnyPath,
    default=None,
    help="Folder of slides or manifest CSV; found by the slide's name in the file, or by the file's own.",
)
@click.option("--out", required=True, type=AnyPath, help="Folder for the stores, <slide_id>.tiles.zarr each.")
@click.option("--recursive", is_flag=True, help="Look for slides in the folders of --slides too.")
@click.option("--features", default=None, metavar="NAME", help="Bring the files' features too, under this name.")
@click.option(
    "--feature-files",
    type=AnyPath,
    default=None,
    help="Folder of <slide_id>.h5 with the features.  [default: the FILEs themselves]",
)
@click.option("--slide-mpp", type=float, default=None, help="Micrometres per level-0 pixel; wins over the file's own.")
@tile_options
@existing_option("error")
def import_(files: tuple[Path, ...], out: Path, **options: Any) -> None:
    """Make stores of the tiles that CLAM or TRIDENT chose: exactly their places, read from the slides.

    FILEs are CLAM's patches/<slide>.h5 or TRIDENT's <slide>_patches.h5, or TRIDENT's features/<slide>.h5.
    """
    name = options["features"]
    if name is not None:
        check_feature_name(name)
    elif options["feature_files"] is not None:
        raise SettingsError("--feature-files: needs a name for the features; pass --features NAME")
    request = ImportRequest(
        codec=options["codec"],
        jpeg_quality=options["jpeg_quality"],
        reader=options["reader"],
        labels=LabelSpec(options["min_label_cover"], options["background"]),
    )
    paths = _h5_files(files)
    if options["slide"] is not None and len(paths) != 1:
        raise SettingsError(f"--slide: is one slide for {len(paths)} files; pass --slides with their folder")
    coordinates, unread = _read_all(paths)
    pairs = _pair(
        coordinates, **{key: options[key] for key in ("slide", "slides", "recursive", "slide_mpp", "annotations")}
    )
    make_folder(out)
    rows, failures = [_failed_row(name, error) for name, error in unread], [error for _, error in unread]
    with progress_bar("import", "tiles", quiet=quiet()) as tick:
        total = sum(len(pair.coordinates.base_xy) for pair in pairs)
        done = 0
        for pair in pairs:
            try:
                rows.append(
                    _import_one(pair, out, request, options, lambda now, _, before=done: tick(before + now, total))
                )
            except SimTripletError as error:
                failures.append(error)
                rows.append(_failed_row(pair.job.slide_id, error))
            done += len(pair.coordinates.base_xy)
    if failures and len(paths) == 1:
        raise failures[0]
    print_table("import", _COLUMNS, rows)
    if failures:
        raise StoreError(f"{len(failures)} of {len(paths)} slides failed; the table says why")
    say(f"stores are in {out}; next: simtriplet index {out}")


def _import_one(pair: _Pair, out: Path, request: ImportRequest, options: dict[str, Any], progress: Any) -> list[str]:
    existing: Existing = options["existing"]
    name, noted = options["features"], ""
    source = None if name is None else _feature_file(pair, options["feature_files"])
    if source is not None:  # before hours of reading tiles
        check_h5_features(source, pair.coordinates.base_xy)
    summary = import_tiles(pair.job, pair.coordinates, out, request, existing=existing, progress=progress)
    if source is not None:
        store = TileStore(out / f"{summary.slide_id}{STORE_SUFFIX}")
        noted = name
        if summary.status == "ok" or not _has_features(store, name):
            write_features(store, name, read_h5_features(source, store.base_xy()), {"imported_from": source.name})
    return _row(summary, pair.coordinates, noted)


def _has_features(store: TileStore, name: str) -> bool:
    """Tell whether a store has features of that name, whole and of its tiles."""
    try:
        store.features(name)
    except StoreError:
        return False
    return True


def _read_all(paths: Sequence[Path]) -> tuple[list[TileCoordinates], list[tuple[str, SimTripletError]]]:
    """Read every file; one that cannot be read, or that names no tiles, does not stop the others.

    Returns:
        What was read, and the name and the error of each of the others.

    Raises:
        AnnotationError: if none can be read.
    """
    found: list[TileCoordinates] = []
    failures: list[tuple[str, SimTripletError]] = []
    for path in paths:
        try:
            found.append(read_coordinates(path))
        except AnnotationError as error:
            failures.append((path.stem, error))
    if not found:
        raise failures[0][1]
    return found, failures


def _failed_row(name: str, error: SimTripletError) -> list[str]:
    return [name, "failed", *[""] * (len(_COLUMNS) - 3), str(error)]


def _row(summary: TilingSummary, coordinates: TileCoordinates, features: str) -> list[str]:
    counts = [str(summary.n_tiles), str(summary.n_labelled), f"{summary.mpp:.4g}"]
    return [summary.slide_id, summary.status, *counts, coordinates.writer, features, f"{summary.seconds:.1f}", ""]


def _h5_files(given: Iterable[Path]) -> list[Path]:
    found: list[Path] = []
    for path in given:
        inside = [one for one in entries(path) if one.suffix == ".h5"] if leads_to_folder(path) else [path]
        if not inside:
            raise AnnotationError(
                f"coordinates '{path}': the folder holds no .h5 files; pass CLAM's or TRIDENT's 'patches'"
            )
        found.extend(inside)
    return found


def _pair(
    coordinates: Sequence[TileCoordinates],
    *,
    slide: Path | None,
    slides: Path | None,
    recursive: bool,
    slide_mpp: float | None,
    annotations: Path | None,
) -> list[_Pair]:
    """Find the slide of every file.

    Raises:
        SettingsError: if a slide is missing, or two files are of one.
    """
    if (slide is None) == (slides is None):
        raise SettingsError("slides: pass --slide with one file, or --slides with a folder or manifest")
    source = slide if slide is not None else slides
    assert source is not None
    jobs = collect_jobs([source], annotations=annotations, slide_mpp=slide_mpp, recursive=recursive)
    if slide is not None and len(jobs) != 1:
        raise SettingsError(f"--slide '{slide}': holds {len(jobs)} slides; pass it as --slides")
    pairs = [_Pair(given, jobs[0] if slide is not None else _job_of(given, jobs, source)) for given in coordinates]
    files: dict[str, Path] = {}
    for pair in pairs:
        first = files.setdefault(pair.job.slide_id, pair.coordinates.path)
        if first is not pair.coordinates.path:
            raise SettingsError(
                f"slide id {pair.job.slide_id!r}: both '{first}' and '{pair.coordinates.path}' are of it; pass one of them"
            )
    return pairs


def _job_of(given: TileCoordinates, jobs: Sequence[SlideJob], source: Path) -> SlideJob:
    for name in (given.slide_name, given.path.stem.removesuffix("_patches"), given.path.stem):
        # the two programs know '.ome.tif' as one ending
        of_name = [job for job in jobs if name in (job.slide_id, job.path.name, job.path.name.partition(".ome.")[0])]
        if len(of_name) == 1:
            return of_name[0]
    raise SettingsError(
        f"coordinates '{given.path}': no slide in '{source}' is called {given.slide_name!r}; "
        "pass its folder, or a manifest with that slide_id"
    )


def _feature_file(pair: _Pair, folder: Path | None) -> Path:
    if folder is None:
        return pair.coordinates.path
    names = (pair.job.slide_id, pair.coordinates.slide_name, pair.coordinates.path.stem.removesuffix("_patches"))
    for name in names:
        if is_file(folder / f"{name}.h5"):
            return folder / f"{name}.h5"
    raise AnnotationError(f"features '{folder}': hold no '{pair.job.slide_id}.h5'; check the folder")
