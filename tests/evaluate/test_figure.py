"""Texts of pictures."""

from hypothesis import given
from hypothesis import strategies as st

from simtriplet.evaluate.figure import shorten


def test_names_that_differ_at_their_end_still_do():
    grades = [shorten(f"Adenocarcinoma, grade {grade}", 20) for grade in (1, 2, 3)]
    assert grades == ["Adenocarci…, grade 1", "Adenocarci…, grade 2", "Adenocarci…, grade 3"]


@given(st.text(), st.integers(4, 40))
def test_a_short_name_has_room_and_no_line_breaks(name, longest):
    found, flat = shorten(name, longest), " ".join(name.split())
    assert len(found) == min(len(flat), longest)
    assert found == flat or (found[0] == flat[0] and found[-1] == flat[-1] and "…" in found)
