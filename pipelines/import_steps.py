"""The step `import` as plain functions: each slide is read in a process that is watched, and none that fails stops the others."""

import logging
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from simtriplet.evaluate.feature_array import write_features
from simtriplet.pipelines.slide_worker import SlideWorker, SlowTell, Tell
from simtriplet.pipelines.worker_pool import Lost, WorkerPool
from simtriplet.wsi.errors import AnnotationError, SimTripletError, StoreError, StoreExistsError
from simtriplet.wsi.folder_hold import remove_leftover
from simtriplet.wsi.h5_coordinates import TileCoordinates, check_h5_features, read_h5_features
from simtriplet.wsi.reach import is_file
from simtriplet.wsi.store import PARTIAL_SUFFIX, STORE_SUFFIX, TileStore
from simtriplet.wsi.tile_import import ImportRequest, import_tiles
from simtriplet.wsi.tile_request import Existing, SlideJob
from simtriplet.wsi.tiling import TilingSummary

__all__ = ["FeatureSource", "ImportPair", "Imported", "import_slides"]

log = logging.getLogger(__name__)


class ImportPair(NamedTuple):
    """A file of coordinates and the slide it is of."""

    coordinates: TileCoordinates
    job: SlideJob


class FeatureSource(NamedTuple):
    """Features that come along.

    Attributes:
        name: that they get in the stores.
        folder: of `<slide_id>.h5`; None where they are in the files of coordinates.
    """

    name: str
    folder: Path | None


class Imported(NamedTuple):
    """What became of one slide.

    Attributes:
        summary: of its store; None where it failed.
        reason: of its failure, in one line.
    """

    summary: TilingSummary | None
    reason: str = ""


def import_slides(
    pairs: Sequence[ImportPair],
    out: Path,
    request: ImportRequest,
    *,
    existing: Existing,
    features: FeatureSource | None = None,
    slide_timeout_s: float | None = None,
    progress: Callable[[SlideJob, int], None] | None = None,
) -> Generator[tuple[ImportPair, Imported], None, None]:
    """Import slides one after the other and yield what became of each; close the iterator to stop the work.

    Args:
        pairs: the slides and where their tiles are.
        out: folder of the stores.
        request: what else shapes them.
        existing: what to do about finished stores.
        features: that come along, None for none.
        slide_timeout_s: a slide that takes longer has failed; None waits for ever.
        progress: called with (slide, tiles done).
    """

    def hear(job: SlideJob, news: tuple[int, int]) -> None:
        if progress is not None:
            progress(job, news[0])

    with WorkerPool(SlideWorker.forked) as pool:
        for pair in pairs:
            task = _Import(pair.coordinates, out, request, existing, features)
            ((_, result),) = pool.run(task, [pair.job], timeout_s=slide_timeout_s, hear=hear)
            if isinstance(result, Lost):
                remove_leftover(out / f"{pair.job.slide_id}{STORE_SUFFIX}{PARTIAL_SUFFIX}")
                result = Imported(None, result.reason)
            yield pair, result


@dataclass(frozen=True, slots=True)
class _Import:
    """The task of importing a slide; see `import_slides`."""

    coordinates: TileCoordinates
    out: Path
    request: ImportRequest
    existing: Existing
    features: FeatureSource | None

    def __call__(self, job: SlideJob, tell: Tell) -> Imported:
        """Import one slide; the only place where a failure becomes a line of the table instead of an error."""
        try:
            return Imported(self._store(job, tell))
        except (SimTripletError, MemoryError) as error:
            return Imported(None, str(error) or type(error).__name__)
        except Exception as error:  # a bug, or a reader's: this slide's own failure too
            log.debug("slide %s", job.slide_id, exc_info=True)
            what = " ".join(f"{type(error).__name__}: {error}".split())
            return Imported(None, f"slide '{job.path.name}': {what}; report this as a bug")

    def _store(self, job: SlideJob, tell: Tell) -> TilingSummary:
        source = None if self.features is None else _feature_file(self.features, self.coordinates, job)
        if source is not None:  # before hours of reading tiles
            check_h5_features(source, self.coordinates.base_xy)
        summary = import_tiles(
            job, self.coordinates, self.out, self.request, existing=self.existing, progress=SlowTell(tell)
        )
        if source is not None and self.features is not None:
            store = TileStore(self.out / f"{summary.slide_id}{STORE_SUFFIX}")
            found = read_h5_features(source, store.base_xy())
            if summary.status == "ok" or not _has_features(store, self.features.name):
                write_features(store, self.features.name, found, {"imported_from": source.name})
            elif not np.array_equal(store.features(self.features.name), found, equal_nan=True):
                raise StoreExistsError(
                    f"store '{store.path.name}': has other features {self.features.name!r}; pass --existing replace, or give these "
                    "another name with --features"
                )
        return summary


def _feature_file(source: FeatureSource, coordinates: TileCoordinates, job: SlideJob) -> Path:
    if source.folder is None:
        return coordinates.path
    for name in (job.slide_id, coordinates.slide_name, coordinates.path.stem.removesuffix("_patches")):
        if is_file(source.folder / f"{name}.h5"):
            return source.folder / f"{name}.h5"
    raise AnnotationError(f"features '{source.folder}': hold no '{job.slide_id}.h5'; check the folder")


def _has_features(store: TileStore, name: str) -> bool:
    """Tell whether a store has features of that name, whole and of its tiles."""
    try:
        store.features(name)
    except StoreError:
        return False
    return True
