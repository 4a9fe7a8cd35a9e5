"""The command `index` on drawn slides: rules, gates, several names, the report, and nonsense told in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from simtriplet.wsi.store import TileStore, open_stores

Run = Callable[..., "CompletedProcess[str]"]
Failure = Callable[["CompletedProcess[str]"], str]


@pytest.fixture(scope="module")
def stores(program: Run, cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Overlapping tiles with labels, not indexed yet."""
    out = tmp_path_factory.mktemp("overlapping")
    labels = ("--annotations", cohort.parent / "annotations")
    program("tile", cohort, "--out", out, "--mpp", 1.0, "--size", 64, "--stride", 32, *labels)
    return out


def _index(stores: Path, name: str) -> list[dict[str, object]]:
    return [store.neighbours(name).rule["params"] for store in open_stores([stores])]


def test_rules_gates_and_names(program: Run, stores: Path, cohort: Path) -> None:
    program("index", stores)
    program("index", stores, "--name", "near", "--allow-overlap", "--connectivity", 4)
    program("index", stores, "--name", "ring", "--rule", "ring", "--inner-um", 60, "--radius-um", 100)
    program("index", stores, "--name", "six", "--rule", "knn", "--k", 6, "--any-tissue", "--min-tissue", 0.9)
    annotations = cohort.parent / "annotations"
    program("index", stores, "--name", "gated", "--annotations", annotations)
    for store in open_stores([stores]):
        assert {"gated", "near", "ring", "six", "spatial"} <= set(store.neighbour_names())  # side by side with others
        spatial, near, ring, gated = (store.neighbours(name) for name in ("spatial", "near", "ring", "gated"))
        assert spatial.distances_um.min() == pytest.approx(64.0), "the first ring that does not overlap"
        assert near.distances_um.max() == pytest.approx(32.0)
        assert ring.distances_um.min() >= 60
        assert ring.distances_um.max() <= 100
        assert 0 < gated.n_pairs < spatial.n_pairs
    assert _index(stores, "six")[0]["min_tissue"] == 0.9
    assert "same_tissue" not in _index(stores, "six")[0]


def test_the_border_gate_leaves_fewer_false_positives(program: Run, stores: Path, cohort: Path, tmp_path: Path) -> None:
    annotations = cohort.parent / "annotations"
    program("index", stores, "--report", tmp_path / "plain")
    said = program("index", stores, "--name", "gated", "--annotations", annotations, "--report", tmp_path / "gated")
    plain = json.loads((tmp_path / "plain/spatial.json").read_text())["all"]
    gated = json.loads((tmp_path / "gated/gated.json").read_text())["all"]
    assert gated["false_positive_rate"] < plain["false_positive_rate"]
    assert "all 4" in said.stdout
    assert len(list((tmp_path / "plain/spatial").glob("*.png"))) == 4


def test_a_report_alone_leaves_the_index_as_it_is(program: Run, failure: Failure, stores: Path, tmp_path: Path) -> None:
    program("index", stores)
    before = [store.neighbours().rule["build_id"] for store in open_stores([stores])]
    program("index", stores, "--only-report", "--report", tmp_path / "report")
    assert [store.neighbours().rule["build_id"] for store in open_stores([stores])] == before
    assert "--report" in failure(program("index", stores, "--only-report", status=1))
    (tmp_path / "file").touch()
    line = failure(program("index", stores, "--connectivity", 4, "--report", tmp_path / "file", status=1))
    assert line.endswith("choose another --report")
    assert [store.neighbours().rule["build_id"] for store in open_stores([stores])] == before, "nothing was replaced"


def test_similar_features_gate(program: Run, failure: Failure, stores: Path) -> None:
    program("index", stores)
    before = {store.slide_id: store.neighbours().n_pairs for store in open_stores([stores])}
    line = failure(program("index", stores, "--similar-to", "X_net", "--min-similarity", 0.25, status=1))
    assert "run simtriplet embed first" in line
    program("embed", stores, "--encoder", "random:resnet18:32", "--name", "net")
    program("index", stores, "--name", "alike", "--similar-to", "X_net", "--min-similarity", 0.25)
    for store in open_stores([stores]):
        kept = store.neighbours("alike").n_pairs / before[store.slide_id]
        assert 0.7 < kept < 0.8, "a quarter of the pairs is dropped"


def test_options_of_another_rule_are_refused(program: Run, stores: Path) -> None:
    for options in (("--radius-um", 100), ("--k", 3), ("--rule", "knn", "--connectivity", 4)):
        assert "does nothing with --rule" in program("index", stores, *options, status=2).stderr


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("--rule", "radius"), "--radius-um"),
        (("--rule", "radius", "--radius-um", "-3"), "-3"),
        (("--rule", "ring", "--radius-um", "50"), "--inner-um"),
        (("--rule", "ring", "--radius-um", "50", "--inner-um", "60"), "60"),
        (("--rule", "knn", "--k", "0"), "0"),
        (("--min-tissue", "2"), "0..1"),
        (("--min-similarity", "0.5"), "--similar-to"),
        (("--name", "../elsewhere"), "elsewhere"),
        (("--annotations", "nowhere.geojson"), "nowhere.geojson"),
    ],
)
def test_nonsense_is_one_line(
    program: Run, failure: Failure, stores: Path, arguments: tuple[str, ...], hint: str
) -> None:
    assert hint in failure(program("index", stores, *arguments, status=1))


def test_stores_of_another_resolution_are_refused(
    program: Run, failure: Failure, stores: Path, cohort: Path, tmp_path: Path
) -> None:
    slide = tmp_path / "other.svs"
    shutil.copy(cohort.parent / "patient01-slide1.svs", slide)
    program("tile", slide, "--out", tmp_path, "--mpp", 2.0, "--size", 64, "--slide-mpp", 0.5)
    line = failure(program("index", stores, tmp_path, status=1))
    assert "um per pixel" in line
    assert TileStore(next(tmp_path.glob("*.zarr"))).neighbour_names() == []
