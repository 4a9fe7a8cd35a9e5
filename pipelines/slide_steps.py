"""The step `tile` as plain functions: the command and the recipe runner both call these."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simtriplet.pipelines.batch import Outcome, tile_batch, write_summary
from simtriplet.pipelines.console import print_table, progress_bar, say
from simtriplet.wsi.errors import SettingsError, StoreError
from simtriplet.wsi.settings import to_toml
from simtriplet.wsi.slide import READERS
from simtriplet.wsi.store import STORE_SUFFIX
from simtriplet.wsi.survey import Room, estimate_batch, gigabytes, refuse_full_disk
from simtriplet.wsi.tiling import Existing, SlideJob, TileRequest

__all__ = ["make_folder", "tile_slides", "write_settings"]

TILE_COLUMNS = ("slide", "status", "tiles", "labelled", "mpp", "reader", "s", "MB", "reason")


def make_folder(path: Path) -> None:
    """Make an output folder.

    Raises:
        StoreError: if it cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".write-test.partial"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StoreError(f"output '{path}': cannot be written ({error.strerror}); choose another --out") from error


def write_settings(path: Path, settings: Any) -> None:
    """Write resolved settings as TOML beside a result, atomically."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(to_toml(settings), encoding="utf-8")
    partial.replace(path)


def tile_slides(
    jobs: Sequence[SlideJob],
    out: Path,
    request: TileRequest,
    *,
    existing: Existing,
    workers: int = 1,
    scheduler: str | None = None,
    quiet: bool = False,
) -> list[Outcome]:
    """Tile slides, print the summary, and write `tile.toml` and `tile-summary.csv` beside the stores."""
    _check_names(request)
    make_folder(out)
    one = len(jobs) == 1 and scheduler is None
    if not one:
        _tell_batch_room(jobs, out, request, existing)
    write_settings(out / "tile.toml", request)
    outcomes: list[Outcome] = []
    with progress_bar("tile", "tiles", quiet=quiet) as tick:
        total = 0

        def progress(slide_id: str, done: int, of: int) -> None:
            tick(total + done, total + of, f"{slide_id} ({len(outcomes) + 1}/{len(jobs)})")

        batch = tile_batch(
            jobs,
            out,
            request,
            existing=existing,
            workers=workers,
            scheduler=scheduler,
            progress=progress,
            tell_room=(lambda room: _say_room(room, 1, request)) if one else None,
        )
        for outcome in batch:
            outcomes.append(outcome)
            total += outcome.summary.n_tiles if outcome.summary is not None else 0
    write_summary(out / "tile-summary.csv", outcomes)
    if len(outcomes) > 1 or outcomes[0].summary is not None:  # the failure of a single slide is the command's own error
        print_table("tiling", TILE_COLUMNS, [_tile_row(outcome) for outcome in outcomes])
    return outcomes


def _check_names(request: TileRequest) -> None:
    """Refuse what would fail on every slide alike before anything is written."""
    import simtriplet.wsi.readers  # noqa: F401  (registers the readers; it imports slide libraries)

    if request.reader != "auto":
        READERS.get(request.reader)
    mask = request.tissue.mask_path
    if mask is not None and not mask.exists():
        raise SettingsError(f"tissue mask '{mask}': does not exist; pass a picture, annotations, or a folder of them")


def _tell_batch_room(jobs: Sequence[SlideJob], out: Path, request: TileRequest, existing: Existing) -> None:
    """Say how much room the stores will take, and refuse where there is less."""
    new = [job for job in jobs if existing == "replace" or not (out / f"{job.slide_id}{STORE_SUFFIX}").exists()]
    if not new:
        return
    room = estimate_batch(new, request)
    if room.chosen:
        _say_room(room, len(new), request)
        refuse_full_disk(out, room)


def _say_room(room: Room, n_slides: int, request: TileRequest) -> None:
    codec = "jpeg (native)" if request.grid == "native" else request.codec
    as_jpeg = "" if codec.startswith("jpeg") else f", {gigabytes(room.jpeg)} as jpeg"
    slides = "1 slide" if n_slides == 1 else f"{n_slides} slides"
    say(f"{slides} will take about {gigabytes(room.chosen)} as {codec}{as_jpeg}")


def _tile_row(outcome: Outcome) -> list[str]:
    summary = outcome.summary
    if summary is None:
        return [outcome.slide_id, "failed", "", "", "", "", "", "", outcome.reason]
    megabytes = f"{summary.n_bytes / 1e6:.1f}"
    numbers = [str(summary.n_tiles), str(summary.n_labelled), f"{summary.mpp:.4g}", summary.reader]
    return [summary.slide_id, summary.status, *numbers, f"{summary.seconds:.1f}", megabytes, ""]
