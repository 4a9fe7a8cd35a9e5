"""The command `import`: coordinates and features of CLAM and TRIDENT become stores."""

from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from simtriplet.evaluate.feature_array import check_feature_name
from simtriplet.pipelines.batch import SLIDE_TIMEOUT_S
from simtriplet.pipelines.console import print_table, progress_bar, say
from simtriplet.pipelines.import_steps import FeatureSource, Imported, ImportPair, import_slides
from simtriplet.pipelines.manifest import collect_jobs
from simtriplet.pipelines.options import AnyPath, existing_option, quiet, slide_timeout_option, tile_options
from simtriplet.pipelines.slide_steps import make_folder
from simtriplet.wsi.errors import AnnotationError, SettingsError, SimTripletError, StoreError
from simtriplet.wsi.h5_coordinates import TileCoordinates, read_coordinates
from simtriplet.wsi.reach import entries, leads_to_folder
from simtriplet.wsi.tile_import import ImportRequest
from simtriplet.wsi.tile_request import LabelSpec, SlideJob

__all__ = ["import_"]

_COLUMNS = ("slide", "status", "tiles", "labelled", "mpp", "from", "features", "s", "reason")


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
@slide_timeout_option(SLIDE_TIMEOUT_S)
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
    pairs, unmatched = _pair(
        coordinates, **{key: options[key] for key in ("slide", "slides", "recursive", "slide_mpp", "annotations")}
    )
    make_folder(out)
    rows = [_failed_row(name, str(error)) for name, error in [*unread, *unmatched]]
    rows += _import_all(pairs, out, request, options)
    reasons = [row[-1] for row in rows if row[1] == "failed"]
    if reasons and len(paths) == 1:
        raise StoreError(reasons[0])
    print_table("import", _COLUMNS, rows)
    if reasons:
        raise StoreError(f"{len(reasons)} of {len(paths)} slides failed; the table says why")
    say(f"stores are in {out}; next: simtriplet index {out}")


def _import_all(
    pairs: Sequence[ImportPair], out: Path, request: ImportRequest, options: dict[str, Any]
) -> list[list[str]]:
    """Import every slide, show how far it is, and return a row of the table for each."""
    name = options["features"]
    rows = []
    done, total = 0, sum(len(pair.coordinates.base_xy) for pair in pairs)
    with progress_bar("import", "tiles", quiet=quiet()) as tick:
        imports = import_slides(
            pairs,
            out,
            request,
            existing=options["existing"],
            features=None if name is None else FeatureSource(name, options["feature_files"]),
            slide_timeout_s=options["slide_timeout"] or None,
            progress=lambda _, now: tick(done + now, total),
        )
        with closing(imports):
            for pair, imported in imports:
                rows.append(_row(pair, imported, name or ""))
                done += len(pair.coordinates.base_xy)
    return rows


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


def _failed_row(name: str, reason: str) -> list[str]:
    return [name, "failed", *[""] * (len(_COLUMNS) - 3), reason]


def _row(pair: ImportPair, imported: Imported, features: str) -> list[str]:
    summary = imported.summary
    if summary is None:
        return _failed_row(pair.job.slide_id, imported.reason)
    counts = [str(summary.n_tiles), str(summary.n_labelled), f"{summary.mpp:.4g}"]
    of_file = [pair.coordinates.writer, features]
    return [summary.slide_id, summary.status, *counts, *of_file, f"{summary.seconds:.1f}", ""]


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
) -> tuple[list[ImportPair], list[tuple[str, SimTripletError]]]:
    """Find the slide of every file.

    Returns:
        Files with their slides, and the name and the error of each file without one.

    Raises:
        SettingsError: if there is no slide for any file, or two files are of one.
    """
    if (slide is None) == (slides is None):
        raise SettingsError("slides: pass --slide with one file, or --slides with a folder or manifest")
    source = slide if slide is not None else slides
    assert source is not None
    jobs = collect_jobs([source], annotations=annotations, slide_mpp=slide_mpp, recursive=recursive)
    if slide is not None and len(jobs) != 1:
        raise SettingsError(f"--slide '{slide}': holds {len(jobs)} slides; pass it as --slides")
    pairs, unmatched = [], []
    for given in coordinates:
        try:
            pairs.append(ImportPair(given, jobs[0] if slide is not None else _job_of(given, jobs, source)))
        except SettingsError as error:
            unmatched.append((given.path.stem, error))
    if not pairs:
        raise unmatched[0][1]
    files: dict[str, Path] = {}
    for pair in pairs:
        first = files.setdefault(pair.job.slide_id, pair.coordinates.path)
        if first is not pair.coordinates.path:
            raise SettingsError(
                f"slide id {pair.job.slide_id!r}: both '{first}' and '{pair.coordinates.path}' are of it; pass one of them"
            )
    return pairs, list(unmatched)


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
