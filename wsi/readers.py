"""Registers the slide readers that come with the package."""

from simtriplet.wsi.openslide_reader import OpenSlideReader
from simtriplet.wsi.slide import READERS
from simtriplet.wsi.tiff_reader import TiffReader
from simtriplet.wsi.tiffslide_reader import TiffSlideReader

__all__ = ["OpenSlideReader", "TiffReader", "TiffSlideReader"]

READERS.add(OpenSlideReader.name, OpenSlideReader)
READERS.add(TiffReader.name, TiffReader)
READERS.add(TiffSlideReader.name, TiffSlideReader)
