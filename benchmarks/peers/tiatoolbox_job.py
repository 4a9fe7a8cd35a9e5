"""The whole job with TIAToolbox (https://github.com/TissueImageAnalytics/tiatoolbox): mask, patches, one JPEG file each.

To install: pip install tiatoolbox. It hands patches over as arrays and leaves the writing to its user: OpenCV here, JPEG 90.
"""

import contextlib
import multiprocessing
import threading
import time
from collections.abc import Iterator
from typing import Any

import cv2
from driver import Job, read_job, report, versions
from tiatoolbox.tools.patchextraction import get_patch_extractor
from tiatoolbox.wsicore.wsireader import WSIReader

Patch = tuple[int, int, int]
"""Number, x and y, pixels at the resolution asked for."""

_job: Any = None
_reader: Any = None


def main() -> None:
    """Run the job; with more than one worker each process reads and writes a share of the patches."""
    job, _ = read_job()
    with _processes(job) as pool:
        start = time.perf_counter()
        patches = _find_patches(job)
        if pool is None:
            _open(job)
            written = [_write(patch) for patch in patches]
        else:
            written = pool.map(_write, patches, chunksize=32)
        seconds = time.perf_counter() - start
    report(sum(written), seconds, f"{versions('tiatoolbox')}, OpenSlide, JPEG 90 files")


@contextlib.contextmanager
def _processes(job: Job) -> Iterator[Any]:
    """Start worker processes and wait until they have imported what they need; None for one worker.

    Fresh ones: forked ones hung, for the threads of OpenCV do not survive a fork.
    """
    if job.workers == 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(job.workers + 1)
    with context.Pool(job.workers, _open, (job, ready)) as pool:
        ready.wait()
        yield pool
        pool.close()
        pool.join()  # so that the peak of memory of the processes is known


def _find_patches(job: Job) -> list[Patch]:
    extractor = get_patch_extractor(
        "slidingwindow",
        input_img=WSIReader.open(str(job.slide)),
        patch_size=(job.size, job.size),
        resolution=job.mpp,
        units="mpp",
        input_mask="otsu",
        min_mask_ratio=0.5,
        within_bound=True,
    )
    places = extractor.locations_df
    return [(number, int(x), int(y)) for number, (x, y) in enumerate(zip(places["x"], places["y"], strict=True))]


def _open(job: Job, ready: "threading.Barrier | None" = None) -> None:
    global _job, _reader
    _job, _reader = job, WSIReader.open(str(job.slide))
    if ready is not None:
        ready.wait()


def _write(patch: Patch) -> bool:
    """Read a patch as TIAToolbox's extractor does, and write it."""
    number, x, y = patch
    size = (_job.size, _job.size)
    pixels = _reader.read_rect((x, y), size, resolution=_job.mpp, units="mpp", coord_space="resolution")
    path = str(_job.out / f"{number:06d}.jpg")
    return bool(cv2.imwrite(path, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90]))


if __name__ == "__main__":
    main()
