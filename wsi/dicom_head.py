"""The few values at the head of a DICOM file that matter here, read without a word from pydicom and in bounded memory."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["dicom_series", "read_dicom_head"]


def read_dicom_head(file: BinaryIO, names: Sequence[str]) -> dict[str, Any]:
    """Read values of a DICOM file, which then stands where its pixels begin.

    Args:
        file: opened by its path, at its beginning.
        names: keywords of the values, "NumberOfFrames" for instance.

    Returns:
        Each value, as pydicom understands it; None where the file has none of that name.

    Raises:
        ValueError: if it is no DICOM file or damaged; or deflated as a whole, as no scanner writes slides: 2 MB of such a file
            may hold 2 GB.
    """
    import pydicom  # slow to import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pydicom, about oddities that do not keep a slide from being read
        try:
            about = pydicom.filereader.read_file_meta_info(file.name)
            if about.get("TransferSyntaxUID") == pydicom.uid.DeflatedExplicitVRLittleEndian:
                raise ValueError("it is deflated as a whole, which no slide is")
            found = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(names))
            return {name: found.get(name) for name in names}
        except Exception as error:  # pydicom lets through many types on a damaged file
            raise ValueError(str(error) or type(error).__name__) from error


def dicom_series(path: Path) -> str | None:
    """Return the series that a DICOM file belongs to; None where it tells none, is damaged or no file that has an end."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            series = read_dicom_head(file, ["SeriesInstanceUID"])["SeriesInstanceUID"]
    except (OSError, ValueError):
        return None
    return None if series is None else str(series)
