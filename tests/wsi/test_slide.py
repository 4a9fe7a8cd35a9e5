"""The resolution of a slide: from tags, from Aperio's description, or from the user, and refused when it is unknown."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simtriplet.wsi.errors import ResolutionError, SettingsError
from simtriplet.wsi.slide import open_slide, slide_mpp

Writer = Callable[..., Path]
ALL = ("tiff", "openslide", "tiffslide")
APERIO = "Aperio Image Library v11.2.1\r\n701x503 (240x240) Q=70|AppMag = 20|MPP = 0.4990|Left = 25.69"


def mpp_of(path: Path, reader: str = "auto", override: float | None = None) -> float:
    with open_slide(path, reader=reader) as slide:
        return slide_mpp(slide, override)


@pytest.mark.parametrize("unit", ["CENTIMETER", "INCH"])
def test_from_the_resolution_tags(tmp_path: Path, picture: Any, write_slide: Writer, unit: str) -> None:
    path = write_slide(tmp_path / "a.tif", picture(64, 64), tile=32, mpp=0.4, unit=unit)
    assert mpp_of(path) == pytest.approx(0.4, rel=1e-6)


def test_from_the_aperio_description(tmp_path: Path, picture: Any, write_slide: Writer) -> None:
    path = write_slide(tmp_path / "a.svs", picture(64, 64), tile=32, mpp=9.0, aperio=APERIO, compression="jpeg")
    for reader in ALL:
        assert mpp_of(path, reader) == 0.499
        with open_slide(path, reader=reader) as slide:
            assert slide.info.objective_power == 20
            assert slide.info.vendor == "aperio"


@pytest.mark.parametrize("aperio", [APERIO.replace("MPP = 0.4990|", ""), APERIO.replace("0.4990", "0")])
def test_an_aperio_slide_that_does_not_say(tmp_path: Path, picture: Any, write_slide: Writer, aperio: str) -> None:
    path = write_slide(tmp_path / "a.svs", picture(64, 64), tile=32, aperio=aperio, compression="jpeg")
    with pytest.raises(ResolutionError, match=r"has no mpp in its file; pass --slide-mpp$"):
        mpp_of(path)


@pytest.mark.parametrize("tags", [{"mpp": None}, {"mpp": 0.5, "unit": "NONE"}])
def test_unknown_names_the_option(tmp_path: Path, picture: Any, write_slide: Writer, tags: dict[str, Any]) -> None:
    path = write_slide(tmp_path / "a.tif", picture(64, 64), tile=32, **tags)
    with pytest.raises(ResolutionError) as caught:
        mpp_of(path)
    assert str(caught.value) == f"slide '{path}': has no mpp in its file; pass --slide-mpp"
    assert mpp_of(path, override=0.3) == 0.3


def test_pixels_that_are_not_square_are_refused(tmp_path: Path, picture: Any, write_slide: Writer) -> None:
    path = write_slide(tmp_path / "a.tif", picture(64, 64), tile=32, mpp=(0.5, 0.51))
    with pytest.raises(ResolutionError, match=r"pixels are not square \(0\.5\d* x 0\.51\d* um\); pass --slide-mpp$"):
        mpp_of(path)
    assert mpp_of(path, override=0.505) == 0.505


def test_up_to_one_percent_is_averaged(tmp_path: Path, picture: Any, write_slide: Writer) -> None:
    path = write_slide(tmp_path / "a.tif", picture(64, 64), tile=32, mpp=(0.5, 0.504))
    assert mpp_of(path) == pytest.approx(0.502, rel=1e-5)


@pytest.mark.parametrize("override", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_override_is_refused(flat_slide: Path, override: float) -> None:
    with pytest.raises(SettingsError, match=r"must be a positive number; pass --slide-mpp"):
        mpp_of(flat_slide, override=override)


def test_an_override_wins(flat_slide: Path) -> None:
    assert mpp_of(flat_slide) == pytest.approx(0.5)
    assert mpp_of(flat_slide, override=0.25) == 0.25
