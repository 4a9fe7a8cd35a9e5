"""The whole job with slideflow (https://github.com/slideflow/slideflow): Otsu's mask, one TFRecord of JPEG tiles.

To install: pip install slideflow cucim-cu12 torch torchvision "setuptools<81", in an environment of its own. Where its
dependency smac does not build, pip install --no-deps slideflow and the other dependencies: tiling needs no smac.
"""

import os
import time

from cucim import CuImage
from driver import Job, read_job, report, versions


def main() -> None:
    """Run the job without slideflow's second filter, by pixels, and without its PDF report."""
    os.environ["SF_SLIDE_BACKEND"], os.environ["SF_BACKEND"] = "cucim", "torch"
    job, _ = read_job()
    # cuCIM 26.10 hangs when it opens its first slide after PyTorch 2.15 (CUDA 13) was loaded, which slideflow imports
    CuImage(str(job.slide))
    import slideflow

    seconds = _tile(job)
    (record,) = job.out.glob("*.tfrecords")
    tiles = slideflow.io.get_tfrecord_length(str(record))
    report(tiles, seconds, f"{versions('slideflow')}, cucim, TFRecord of JPEG 95")


def _tile(job: Job) -> float:
    """Return the seconds that the job takes."""
    from slideflow import WSI

    start = time.perf_counter()
    slide = WSI(str(job.slide), job.size, round(job.size * job.mpp), roi_method="ignore", verbose=False)
    slide.qc("otsu", filter_threshold=0.5)
    slide.extract_tiles(str(job.out), img_format="jpg", report=False, grayspace_fraction=1, num_threads=job.workers)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
