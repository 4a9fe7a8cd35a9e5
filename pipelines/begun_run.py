"""The slides of a run that has begun: it goes on with those, though others have come since, or their files have gone."""

import contextlib
import logging
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from simtriplet.pipelines.stop_signals import STOP
from simtriplet.pipelines.tile_summary import Outcome
from simtriplet.pretrain.settings import PretrainSettings
from simtriplet.wsi.annotation_file import find_annotation
from simtriplet.wsi.errors import SimTripletError, StoreError
from simtriplet.wsi.reach import leads_to_folder
from simtriplet.wsi.slide_annotation import with_regions
from simtriplet.wsi.store import STORE_SUFFIX, TileStore
from simtriplet.wsi.tile_request import SlideJob, TileRequest
from simtriplet.wsi.tiling_record import request_digest

__all__ = ["Asked", "has_begun", "needs_no_training", "slides_of_run", "stores_to_train_on"]

log = logging.getLogger(__name__)

_ANEW = "train anew with --set out=FOLDER"


class Asked(NamedTuple):
    """What a recipe asks of its slides.

    Attributes:
        jobs: the slides that it names, there or not.
        request: how they are tiled.
        folder: of the stores.
        annotations: folder of the slides' annotations, or None.
        slide_mpp: micrometres per level-0 pixel of slides that say nothing else.
    """

    jobs: Sequence[SlideJob]
    request: TileRequest
    folder: Path
    annotations: Path | None = None
    slide_mpp: float | None = None

    def store_of(self, slide_id: str) -> Path:
        """Return where the store of a slide is, or would be."""
        return self.folder / f"{slide_id}{STORE_SUFFIX}"

    def stores_without_slides(self, outcomes: Sequence[Outcome]) -> list[Path]:
        """Return the finished stores of slides whose files are gone: moved to an archive, mostly, when they were tiled."""
        failed = {outcome.slide_id for outcome in outcomes if outcome.summary is None}
        lost = [job for job in self.jobs if job.slide_id in failed and not os.path.lexists(job.path)]
        found = [job.slide_id for job in lost if self._is_made_so(job)]
        if found:
            log.warning("%s not there any more: used as tiled before", _named(found))
        return [self.store_of(slide_id) for slide_id in found]

    def stores_of_run(self, begun: Collection[str], *, refused: Collection[str]) -> list[TileStore]:
        """Return the stores of slides that a run was begun with and that could not be tiled now, or are not named any more.

        Args:
            begun: ids of these slides.
            refused: of those whose store is there and was made from another file or otherwise.

        Raises:
            StoreError: if there is no such store, or it is not what would be made.
        """
        known = {job.slide_id: job for job in self.jobs}
        for slide_id in sorted(begun):
            what = f"slide {slide_id!r}: the training began with it, and "
            if slide_id in refused:
                raise StoreError(
                    f"{what}now its file, patient, label, annotations or settings are others than those of its store; "
                    f"set them back, or {_ANEW}"
                )
            if not os.path.exists(self.store_of(slide_id)):
                raise StoreError(f"{what}now there is neither the slide nor its store; bring one back, or {_ANEW}")
            if not self._is_made_so(known.get(slide_id) or self._job_of_store(slide_id)):
                raise StoreError(
                    f"{what}its store was made with other settings, labels or patients than now, while the slide is not to be had; "
                    f"set them back, or {_ANEW}"
                )
        if begun:
            log.warning(
                "%s not to be had any more, but the training began with it: used as tiled before; to do without, %s",
                _named(sorted(begun)),
                _ANEW,
            )
        return [TileStore(self.store_of(slide_id)) for slide_id in sorted(begun)]

    def _is_made_so(self, job: SlideJob) -> bool:
        """Tell whether a slide's store is what tiling the file of before would give, by what it says of that file."""
        with contextlib.suppress(SimTripletError, KeyError):  # no store, a damaged one, or no such annotation or mask
            store = TileStore(self.store_of(job.slide_id)).attributes
            digest = request_digest(self.request, with_regions(job), store["slide"]["fingerprint"])
            return bool(store["tiling"]["request"] == digest)
        return False

    def _job_of_store(self, slide_id: str) -> SlideJob:
        """Return the job of a slide that is not named any more: patient and label are not asked to be others either."""
        slide = TileStore(self.store_of(slide_id)).attributes["slide"]
        given = slide["mpp"] if slide.get("mpp_source") == "option" else None
        annotation = None
        if self.annotations is not None and leads_to_folder(self.annotations):
            annotation = find_annotation(self.annotations, slide_id)
        return SlideJob(
            path=Path(slide_id),
            slide_id=slide_id,
            patient_id=slide.get("patient_id"),
            label=slide.get("label"),
            slide_mpp=given if self.slide_mpp is None else self.slide_mpp,
            annotation=annotation,
        )


def has_begun(run: Path) -> bool:
    """Tell whether there is a checkpoint to go on from, without waiting for torch."""
    return os.path.lexists(run / "checkpoints" / "last.pt")


def slides_of_run(run: Path) -> frozenset[str]:
    """Return the ids of the slides that the run in a folder was begun with; none where it has no checkpoint and no encoder.

    Raises:
        CheckpointError: if its checkpoint, or its encoder without one, is damaged.
    """
    if not has_begun(run) and not os.path.lexists(run / "encoder.safetensors"):
        return frozenset()
    with STOP.while_importing():
        from simtriplet.pretrain.encoder import load_encoder
        from simtriplet.pretrain.run_folder import RunFolder
    return frozenset(RunFolder(run).begun_with() if has_begun(run) else load_encoder(run).info.slides)


def needs_no_training(run: Path, settings: PretrainSettings) -> bool:
    """Tell whether a run has the encoder of these settings and no checkpoint any more: those were removed for the room.

    Raises:
        TrainingError: if the encoder is of other settings.
        CheckpointError: if it is damaged.
    """
    if not os.path.lexists(run / "encoder.safetensors") or any((run / "checkpoints").glob("*.pt")):
        return False
    with STOP.while_importing():
        from simtriplet.pretrain.run_folder import RunFolder
    RunFolder(run).check_settings(settings)
    log.warning("run '%s': has no checkpoints any more; its encoder is used as it is", run.name)
    return True


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
            "%s new since the training began: embedded and evaluated, not trained on; to train on all, %s",
            _named(late),
            _ANEW,
        )
    return [store for store in stores if store.slide_id not in late]


def _named(slides: Sequence[str]) -> str:
    return f"slide {slides[0]!r} is" if len(slides) == 1 else f"{len(slides)} slides, {slides[0]!r} for instance, are"
