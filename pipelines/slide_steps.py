"""The step `tile` as plain functions: the command and the recipe runner both call these."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from simtriplet.pipelines.batch import SLIDE_TIMEOUT_S, estimate_batch_room, tile_batch
from simtriplet.pipelines.console import Part, print_table, progress_bar, say
from simtriplet.pipelines.tile_summary import Outcome, begin_summary, read_summary, write_summary
from simtriplet.wsi.disk_room import why_not_written
from simtriplet.wsi.errors import SettingsError, StoreError, UnreachableError
from simtriplet.wsi.reach import exists
from simtriplet.wsi.settings import to_toml
from simtriplet.wsi.slide import READERS
from simtriplet.wsi.store import STORE_SUFFIX
from simtriplet.wsi.survey import Room, gigabytes, refuse_full_disk
from simtriplet.wsi.tiling import Existing, SlideJob, TileRequest
from simtriplet.wsi.tissue import TissueSpec
from simtriplet.wsi.whole_file import write_whole

__all__ = ["make_folder", "tile_slides", "write_settings"]

SUMMARY_NAME = "tile-summary.csv"
TILE_COLUMNS = ("slide", "status", "tiles", "labelled", "mpp", "reader", "s", "MB", "reason")


def make_folder(path: Path) -> None:
    """Make an output folder.

    Raises:
        StoreError: if it cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".write-test.partial"
        probe.unlink(missing_ok=True)  # a link would lead to somebody else's file
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may be trying too
    except (OSError, ValueError) as error:  # a ValueError where the name itself is impossible
        reason = getattr(error, "strerror", None) or error
        raise StoreError(f"output '{path}': cannot be written ({reason}); choose another --out") from error


def write_settings(path: Path, settings: Any) -> None:
    """Write resolved settings as TOML beside a result, atomically.

    Raises:
        StoreError: if the disk is full or fails.
    """
    data = to_toml(settings).encode()
    try:
        write_whole(path, data)
    except OSError as error:
        why = why_not_written(error, path.parent, needed=len(data))
        raise StoreError(f"output '{path}': cannot be written ({why}); free space, or choose another --out") from error


def tile_slides(
    jobs: Sequence[SlideJob],
    out: Path,
    request: TileRequest,
    *,
    existing: Existing,
    workers: int = 1,
    scheduler: str | None = None,
    slide_timeout_s: float | None = SLIDE_TIMEOUT_S,
    retry_failed: bool = False,
    quiet: bool = False,
) -> list[Outcome]:
    """Tile slides, print the summary, and write `tile.toml` and `tile-summary.csv` beside the stores.

    The summary file is written anew after each slide, so that a run that was killed has it too.

    Args:
        jobs: the slides.
        out: folder of the stores.
        request: what tiles to make.
        existing: what to do about finished stores.
        workers: processes on this machine.
        scheduler: address of a running Dask scheduler, instead.
        slide_timeout_s: a slide that takes longer has failed; None waits for ever.
        retry_failed: take only the slides that an earlier run's summary lists as failed.
        quiet: show no progress.

    Raises:
        SimTripletError: if nothing can be tiled at all; the failure of one slide is an outcome.
    """
    _check_names(request)
    if retry_failed:
        jobs = _failed_before(jobs, out / SUMMARY_NAME)
    if not jobs:
        return []
    make_folder(out)
    one = len(jobs) == 1 and scheduler is None
    if not one:
        _tell_batch_room(jobs, out, request, existing)
    told = out / "tile.toml"  # as a store does, it names the user's own masks without their folder
    asked = replace(request, tissue=TissueSpec(**request.tissue.describe()))
    if not told.exists():
        write_settings(told, asked)
    stay = _finished_before(jobs, out, existing)
    if not retry_failed:
        begin_summary(out / SUMMARY_NAME, [job.slide_id for job in jobs if job.slide_id not in stay])
    outcomes: list[Outcome] = []
    with progress_bar("tile", "tiles", quiet=quiet, parts="slides") as tick:
        done: dict[str, tuple[int, int]] = {}

        def progress(slide_id: str, n_done: int, n_tiles: int) -> None:
            done[slide_id] = n_done, n_tiles
            part = Part(slide_id, n_done, n_tiles, len(outcomes) + 1, len(jobs))
            n_done, n_tiles = (sum(numbers) for numbers in zip(*done.values(), strict=True))
            tick(n_done, n_tiles, f"{slide_id} ({part.number}/{part.of})", part=part)

        batch = tile_batch(
            jobs,
            out,
            request,
            existing=existing,
            workers=workers,
            scheduler=scheduler,
            slide_timeout_s=slide_timeout_s,
            progress=progress,
            tell_room=(lambda room: _say_room(room, 1, request)) if one else None,
        )
        with closing(batch):
            for outcome in batch:
                outcomes.append(outcome)
                if outcome.status == "ok" and sum(one.status == "ok" for one in outcomes) == 1:
                    write_settings(told, asked)
                n_tiles = outcome.summary.n_tiles if outcome.summary is not None else 0
                done[outcome.slide_id] = n_tiles, n_tiles
                news = [one for one in outcomes if one.summary is not None or one.slide_id not in stay]
                write_summary(out / SUMMARY_NAME, news)
    if len(outcomes) > 1 or outcomes[0].summary is not None:  # the failure of a single slide is the command's own error
        print_table("tiling", TILE_COLUMNS, [_tile_row(outcome) for outcome in outcomes])
    return outcomes


def _finished_before(jobs: Sequence[SlideJob], out: Path, existing: Existing) -> set[str]:
    """Return the slides whose stores are there and stay: that they may not be touched takes no line out of the summary."""
    try:
        rows = read_summary(out / SUMMARY_NAME)
    except SettingsError:  # none yet, or one that tells nothing any more
        return set()
    there = {job.slide_id for job in jobs if _has_store(out, job)}
    return (
        set() if existing == "replace" else {name for name in there & rows.keys() if rows[name]["status"] != "failed"}
    )


def _has_store(out: Path, job: SlideJob) -> bool:
    """Tell whether a slide has a store; one that is out of reach is one, and the slide's own turn tells why it is of no use."""
    try:
        return exists(out / f"{job.slide_id}{STORE_SUFFIX}")
    except UnreachableError:
        return True


def _failed_before(jobs: Sequence[SlideJob], summary: Path) -> list[SlideJob]:
    """Return the slides that failed in an earlier run."""
    rows = read_summary(summary)
    unknown = [job.slide_id for job in jobs if job.slide_id not in rows]
    if unknown:  # as after a kill: they did not fail, and were not tiled either
        raise SettingsError(
            f"summary '{summary}': lacks {len(unknown)} of the {len(jobs)} slides given, {unknown[0]!r} for instance; tile with "
            "--existing skip, which takes these and those that failed"
        )
    again = [job for job in jobs if rows[job.slide_id]["status"] == "failed"]
    count = f"{len(again)} of {len(jobs)} slides" if again else "none"
    say(f"{count} of the earlier run failed; " + ("tiling those again" if again else "nothing to do"))
    return again


def _check_names(request: TileRequest) -> None:
    """Refuse what would fail on every slide alike before anything is written."""
    import simtriplet.wsi.readers  # noqa: F401  (registers the readers; it imports slide libraries)

    if request.reader != "auto":
        READERS.get(request.reader)
    mask = request.tissue.mask_path
    if mask is not None and not exists(mask):
        raise SettingsError(f"tissue mask '{mask}': does not exist; pass a picture, annotations, or a folder of them")


def _tell_batch_room(jobs: Sequence[SlideJob], out: Path, request: TileRequest, existing: Existing) -> None:
    """Say how much room the stores will take, and refuse where there is less."""
    new = [job for job in jobs if existing == "replace" or not _has_store(out, job)]
    if not new:
        return
    room = estimate_batch_room(new, request)
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
