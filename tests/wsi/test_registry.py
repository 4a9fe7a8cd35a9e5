"""The registry of extension points: unique names, and a miss that says what there is."""

import pytest

from simtriplet.wsi.errors import SettingsError, SimTripletError, UnknownNameError
from simtriplet.wsi.registry import Registry, nearest_name


@pytest.fixture
def colours() -> Registry[int]:
    made: Registry[int] = Registry("colour")
    made.add("red", 1)
    made.add("green", 2)
    return made


def test_get_returns_what_add_was_given(colours: Registry[int]) -> None:
    assert (colours.get("red"), colours.get("green")) == (1, 2)
    assert colours.add("blue", 3) == 3


def test_names_iterate_in_order_and_are_contained(colours: Registry[int]) -> None:
    assert list(colours) == ["green", "red"]
    assert "red" in colours
    assert "RED" not in colours
    assert 7 not in colours


def test_a_taken_name_is_refused_and_the_first_entry_stays(colours: Registry[int]) -> None:
    with pytest.raises(SettingsError, match=r"^colour 'red': is registered already"):
        colours.add("red", 9)
    assert colours.get("red") == 1


def test_a_miss_names_the_nearest_and_lists_the_known(colours: Registry[int]) -> None:
    with pytest.raises(UnknownNameError) as caught:
        colours.get("grene")
    assert str(caught.value) == "colour 'grene': is not known; did you mean 'green'?; known are green, red"
    assert isinstance(caught.value, SimTripletError)
    assert isinstance(caught.value, LookupError)
    assert caught.value.__cause__ is None


def test_nothing_close_gives_no_hint() -> None:
    assert nearest_name("xyz", ["otsu", "all"]) == ""
    assert nearest_name("otus", ["otsu", "all"]) == "; did you mean 'otsu'?"


def test_every_extension_point_of_the_package_lists_its_entries() -> None:
    import simtriplet.wsi.readers  # noqa: F401  (registers them)
    from simtriplet.wsi.codec import CODECS
    from simtriplet.wsi.neighbours import RULES
    from simtriplet.wsi.slide import READERS
    from simtriplet.wsi.tissue import DETECTORS

    assert list(CODECS) == ["jpeg", "none", "zstd"]
    assert list(RULES) == ["grid", "knn", "radius", "ring"]
    assert list(READERS) == ["openslide", "tiff", "tiffslide"]
    assert {"all", "otsu"} <= set(DETECTORS)
