"""The whole job with hs2p (https://github.com/clemsgrs/hs2p): tissue mask, coordinates, tar of JPEG tiles.

To install: pip install "hs2p[cucim,turbojpeg]", and libturbojpeg from the system (PyTurboJPEG 2 needs libjpeg-turbo 3;
PyTurboJPEG below 2 works with older ones). Where that is missing Pillow encodes, hs2p's default, and the note says so.
hs2p chooses cuCIM to read where it is installed.
"""

import dataclasses
import sys
import time

import hs2p
from driver import read_job, report, versions


def main() -> None:
    """Run the job with hs2p's defaults, save for the least share of tissue, which is a half for all programs."""
    job, _ = read_job()
    encoder = _encoder()
    start = time.perf_counter()
    (artifact,) = hs2p.tile_slides(
        [hs2p.SlideSpec(sample_id="slide", image_path=job.slide)],
        tiling=hs2p.TilingConfig(
            requested_spacing_um=job.mpp, requested_tile_size_px=job.size, tolerance=0.05, overlap=0.0
        ),
        segmentation=hs2p.SegmentationConfig(method="hsv", downsample=64),
        masks=dataclasses.replace(hs2p.DEFAULT_MASK_SAMPLING, min_coverage={"tissue": 0.5}),
        output_dir=job.out,
        num_workers=job.workers,
        save_tiles=True,
        jpeg_backend=encoder,
    )
    seconds = time.perf_counter() - start
    if artifact.tiles_tar_path is None:
        sys.exit("hs2p wrote no tiles")
    report(artifact.num_tiles, seconds, f"{versions('hs2p')}, {artifact.backend}, tar of JPEG 90 by {encoder}")


def _encoder() -> str:
    try:
        import turbojpeg

        turbojpeg.TurboJPEG()
    except (ImportError, OSError, RuntimeError):  # the package, or the shared library that it loads
        return "pil"
    return "turbojpeg"


if __name__ == "__main__":
    main()
