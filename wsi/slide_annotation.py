"""A slide's annotations, read when its turn comes: a malformed file is the failure of that slide and of no other."""

from dataclasses import replace

from simtriplet.wsi.annotation_file import find_annotation, read_annotations
from simtriplet.wsi.reach import is_folder
from simtriplet.wsi.tile_request import SlideJob

__all__ = ["with_regions"]


def with_regions(job: SlideJob) -> SlideJob:
    """Return the job with the regions of its annotation file; as it is where it has them, or names no file.

    Raises:
        AnnotationError: if the file cannot be read or is malformed, or a folder holds two of the slide.
        UnreachableError: if it is out of reach.
    """
    if job.annotation is None or job.regions is not None:
        return job
    file = find_annotation(job.annotation, job.slide_id) if is_folder(job.annotation) else job.annotation
    return replace(job, annotation=None, regions=None if file is None else tuple(read_annotations(file)))
