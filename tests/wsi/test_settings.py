"""Settings: TOML and `--set` strings into dataclasses and back, and messages that name the mistake."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simtriplet.wsi.errors import SettingsError
from simtriplet.wsi.settings import build, merge, parse_assignments, read_toml, to_toml, to_values


@dataclass(frozen=True, slots=True)
class Optimiser:
    learning_rate: float = 0.05
    steps: int = 100
    milestones: tuple[int, ...] = ()
    betas: tuple[float, float] = (0.9, 0.999)
    name: Literal["sgd", "adam"] = "sgd"

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise SettingsError(f"learning_rate {self.learning_rate}: must be positive; correct it")


@dataclass(frozen=True, slots=True)
class Run:
    out: Path
    title: str = "run"
    resume: bool = False
    limit: int | None = None
    scale: float | str | None = None
    optimiser: Optimiser = dataclasses.field(default_factory=Optimiser)


def make(**values: Any) -> Run:
    return build(Run, {"out": "runs", **values}, source="recipe.toml")


def refuse(**values: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        make(**values)
    return str(caught.value)


def test_a_value_of_several_lines_is_told_in_one() -> None:
    import numpy as np

    assert "\n" not in refuse(title=np.zeros((30, 30)))


def test_defaults_stay_where_nothing_is_said() -> None:
    assert make() == Run(out=Path("runs"))


def test_nested_sections_and_conversions() -> None:
    run = make(optimiser={"learning_rate": 1, "milestones": [3, 5], "betas": [0, 1], "name": "adam"}, limit=4)
    assert run.optimiser == Optimiser(learning_rate=1.0, milestones=(3, 5), betas=(0.0, 1.0), name="adam")
    assert [type(value) for value in (run.optimiser.learning_rate, *run.optimiser.betas)] == [float] * 3
    assert run.limit == 4


def test_an_unknown_key_names_the_nearest_with_its_section() -> None:
    assert refuse(optimiser={"learning_rat": 1.0}) == (
        "recipe.toml: setting 'optimiser.learning_rat' is not known; did you mean 'learning_rate'?"
    )
    assert refuse(zzzz=1) == (
        "recipe.toml: setting 'zzzz' is not known; known are out, title, resume, limit, scale, optimiser"
    )


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"limit": "many"}, "setting 'limit' is 'many': must be an integer"),
        ({"limit": 1.5}, "setting 'limit' is 1.5: must be an integer"),
        ({"limit": True}, "setting 'limit' is True: must be an integer"),
        ({"resume": 1}, "setting 'resume' is 1: must be true or false"),
        ({"title": 3}, "setting 'title' is 3: must be a string"),
        ({"out": 3}, "setting 'out' is 3: must be a path"),
        ({"optimiser": 3}, "setting 'optimiser' is 3: must be a section"),
        ({"optimiser": {"name": "lamb"}}, "setting 'optimiser.name' is 'lamb': must be one of 'sgd', 'adam'"),
        ({"optimiser": {"betas": [0.9]}}, "setting 'optimiser.betas' is [0.9]: must be a list of a number, a number"),
        ({"optimiser": {"betas": 0.9}}, "setting 'optimiser.betas' is 0.9: must be a list of a number, a number"),
        ({"optimiser": {"milestones": [1, "x"]}}, "setting 'optimiser.milestones' is 'x': must be an integer"),
        ({"optimiser": {"learning_rate": True}}, "setting 'optimiser.learning_rate' is True: must be a number"),
    ],
)
def test_a_wrong_type_names_the_setting_and_the_rule(values: dict[str, Any], rule: str) -> None:
    assert refuse(**values) == f"recipe.toml: {rule}; correct it"


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(SettingsError, match=r"^recipe.toml: settings missing: out; add them$"):
        build(Run, {}, source="recipe.toml")


def test_an_invalid_value_carries_the_source() -> None:
    assert refuse(optimiser={"learning_rate": -1.0}).startswith("recipe.toml: learning_rate -1.0: must be positive")


def test_a_union_takes_either_type() -> None:
    assert make(scale="auto").scale == "auto"
    assert make(scale=2).scale == 2.0
    assert make(scale=None).scale is None
    assert "must be a number or a string" in refuse(scale=[1]) or "must be a string" in refuse(scale=[1])


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
optimisers = st.builds(
    Optimiser,
    learning_rate=st.floats(1e-9, 1e9),
    steps=st.integers(-(2**63), 2**63 - 1),
    milestones=st.lists(st.integers(0, 10**6), max_size=4).map(tuple),
    betas=st.tuples(st.floats(allow_nan=False), st.floats(allow_nan=False)),
    name=st.sampled_from(["sgd", "adam"]),
)
runs = st.builds(
    Run,
    out=st.sampled_from(["a", "a/b c", "ü"]).map(Path),
    title=texts,
    resume=st.booleans(),
    limit=st.none() | st.integers(0, 99),
    scale=st.none() | st.floats(allow_nan=False) | texts,
    optimiser=optimisers,
)


@settings(deadline=None)
@given(run=runs)
def test_toml_round_trip(run: Run, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "round.toml"
    path.write_text(to_toml(run), encoding="utf-8", newline="")
    assert build(Run, read_toml(path), source="x") == run
    assert build(Run, to_values(run), source="x") == run


def test_the_requests_of_this_package_round_trip() -> None:
    import tomllib

    from simtriplet.wsi.geometry import TilingSpec
    from simtriplet.wsi.tiling import LabelSpec, TileRequest

    for request in (
        TileRequest(),
        TileRequest(
            tiling=TilingSpec(level=2, stride_px=7, edge="pad"), labels=LabelSpec(background="stroma"), codec="jpeg"
        ),
    ):
        assert build(TileRequest, tomllib.loads(to_toml(request)), source="x") == request


def test_assignments_nest_and_read_toml_values() -> None:
    assert parse_assignments(["a.b=1", "a.c = [1, 2]", "d=text", "e='7'", "f=true", "a.b=2", "g=x=y", "h="]) == {
        "a": {"b": 2, "c": [1, 2]},
        "d": "text",
        "e": "7",
        "f": True,
        "g": "x=y",
        "h": "",
    }


@pytest.mark.parametrize("assignment", ["a", "=1", "a..b=1", ".a=1", ""])
def test_an_assignment_without_key_or_value_is_refused(assignment: str) -> None:
    with pytest.raises(SettingsError, match=r"is not of the form section.key=value"):
        parse_assignments([assignment])


def test_merge_lays_sections_over_each_other_and_leaves_the_base_alone() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merge(base, {"a": {"b": 9}, "d": {"e": 1}}) == {"a": {"b": 9, "c": 2}, "d": {"e": 1}}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), (b"a = ", "Invalid value"), (b"a = '\xff'", "utf-8"), (b"a=1\na=2", "Cannot overwrite")],
)
def test_an_unreadable_file_is_one_line(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "x.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=reason) as caught:
        read_toml(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_value_that_holds_itself_many_times_over_is_told_in_brief() -> None:
    """As a checkpoint of somebody's may: written out whole, these lists would have 2 to the power of 60 numbers."""
    deep: list[Any] = [1]
    for _ in range(60):
        deep = [deep, deep]
    told = refuse(limit=deep)
    assert told.startswith("recipe.toml: setting 'limit' is [[[[[")
    assert told.endswith("...: must be an integer; correct it")
