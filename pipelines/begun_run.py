"""The slides of a run that has begun: it goes on with those, though others have come since, or their files have gone."""

import contextlib
import logging
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from simtriplet.pipelines.stop_signals import STOP
from simtriplet.pipelines.tile_summary import Outcome
from simtriplet.wsi.errors import StoreError
from simtriplet.wsi.store import STORE_SUFFIX, TileStore
from simtriplet.wsi.tile_request import SlideJob, TileRequest
from simtriplet.wsi.tiling_record import was_asked_alike

__all__ = ["has_begun", "slides_of_run", "stores_to_train_on", "stores_without_slides", "with_stores_of_run"]

log = logging.getLogger(__name__)


def stores_without_slides(
    jobs: Sequence[SlideJob], outcomes: Sequence[Outcome], folder: Path, request: TileRequest
) -> list[Path]:
    """Return the finished stores of slides whose files are gone: moved to an archive, mostly, when they were tiled."""
    failed = {outcome.slide_id for outcome in outcomes if outcome.summary is None}
    found = {}
    for job in jobs:
        path = folder / f"{job.slide_id}{STORE_SUFFIX}"
        if job.slide_id in failed and not os.path.lexists(job.path) and os.path.exists(path):
            with contextlib.suppress(StoreError):  # a damaged one is no help
                if was_asked_alike(TileStore(path).attributes, request):
                    found[job.slide_id] = path
    if found:
        log.warning("%s not there any more: used as tiled before", _named(list(found)))
    return list(found.values())


def has_begun(run: Path) -> bool:
    """Tell whether there is a checkpoint to go on from, without waiting for torch."""
    return os.path.lexists(run / "checkpoints" / "last.pt")


def slides_of_run(run: Path) -> frozenset[str]:
    """Return the ids of the slides that the run in a folder was begun with; none where it has no checkpoint.

    Raises:
        CheckpointError: if its checkpoint is damaged.
    """
    if not has_begun(run):
        return frozenset()
    with STOP.while_importing():
        from simtriplet.pretrain.run_folder import RunFolder
    return frozenset(RunFolder(run).begun_with())


def with_stores_of_run(stores: Sequence[TileStore], begun: Collection[str], folder: Path) -> list[TileStore]:
    """Return the stores and those of a run that are not among them, as their slides are not in the recipe any more.

    Raises:
        StoreError: if one of those is gone too, or damaged.
    """
    gone = sorted(set(begun) - {store.slide_id for store in stores})
    back = []
    for slide_id in gone:
        path = folder / f"{slide_id}{STORE_SUFFIX}"
        if not os.path.exists(path):
            raise StoreError(
                f"slide {slide_id!r}: the training began with it, and now there is neither the slide nor its store; bring one "
                "back, or train anew with --set out=FOLDER"
            )
        back.append(TileStore(path))
    if gone:
        log.warning(
            "%s not to be had any more, but the training began with it: used as tiled before; to do without, train anew with "
            "--set out=FOLDER",
            _named(gone),
        )
    return sorted([*stores, *back], key=lambda store: store.slide_id)


def stores_to_train_on(
    stores: Sequence[TileStore], begun: Collection[str], excluded: Collection[str]
) -> list[TileStore]:
    """Return the stores that a run was begun with, and those of patients who are left out anyway; all where none has begun."""
    if not begun:
        return list(stores)
    late = sorted(
        store.slide_id for store in stores if store.slide_id not in begun and store.patient_id not in excluded
    )
    if late:
        log.warning(
            "%s new since the training began: embedded and evaluated, not trained on; to train on all, train anew with "
            "--set out=FOLDER",
            _named(late),
        )
    return [store for store in stores if store.slide_id not in late]


def _named(slides: Sequence[str]) -> str:
    return f"slide {slides[0]!r} is" if len(slides) == 1 else f"{len(slides)} slides, {slides[0]!r} for instance, are"
