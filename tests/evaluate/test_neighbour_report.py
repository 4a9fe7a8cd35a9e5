"""The report of the neighbour index: its numbers by hand, its files, and a picture that shows the graph."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from simtriplet.evaluate.graph_picture import draw_graph
from simtriplet.evaluate.neighbour_report import write_neighbour_report
from simtriplet.wsi.errors import NeighbourError
from simtriplet.wsi.neighbour_index import index_store
from simtriplet.wsi.neighbour_statistics import add_statistics, measure_neighbours
from simtriplet.wsi.neighbours import GridRule, RadiusRule
from simtriplet.wsi.store import TileStore

StoreFactory = Callable[..., TileStore]


def test_the_numbers_of_a_lattice(store_factory: StoreFactory) -> None:
    """3 x 4 tiles of 16 um: columns 0, 1 are one class, 2, 3 the other."""
    store = store_factory(rows=3, cols=4)
    found = measure_neighbours(store)
    straight, diagonal = 3 * 3 + 4 * 2, 2 * 2 * 3
    assert (found.n_tiles, found.n_pairs, found.n_isolated) == (12, straight + diagonal, 0)
    assert found.degree_counts == (0, 0, 0, 4, 0, 6, 0, 0, 2)
    assert found.mean_degree == 2 * (straight + diagonal) / 12
    # across the border: one straight pair a row, two diagonal ones a pair of rows
    assert found.label_agreement == (straight + diagonal - 3 - 4) / (straight + diagonal)
    assert found.chance_agreement == 2 * (6 * 5) / (12 * 11)
    assert found.distances.um == pytest.approx([16.0, 22.6], abs=0.05)
    assert found.distances.pairs.tolist() == [straight, diagonal]
    assert found.distances.agreeing.tolist() == [straight - 3, diagonal - 4]
    assert found.distances.median_um == pytest.approx(16.0)


def test_slides_together_count_every_pair_once(store_factory: StoreFactory) -> None:
    first, second = store_factory("a", rows=3, cols=4), store_factory("b", rows=2, cols=2, labels=False)
    alone = store_factory("c", rows=1, cols=1)
    parts = [measure_neighbours(store) for store in (first, second, alone)]
    both = add_statistics(parts)
    assert both.n_slides == 3
    assert both.n_without_neighbours == 1
    assert both.n_tiles == 12 + 4 + 1
    assert both.n_pairs == sum(part.n_pairs for part in parts)
    assert both.n_labelled_pairs == parts[0].n_labelled_pairs
    assert both.label_agreement == parts[0].label_agreement
    assert both.isolated_share == 1 / 17
    assert add_statistics([]).n_tiles == 0


def test_distances_are_binned_without_losing_pairs(store_factory: StoreFactory) -> None:
    store = store_factory(rows=8, cols=8, index=False)
    index_store(store, RadiusRule(90.0))
    distances = measure_neighbours(TileStore(store.path)).distances
    binned = distances.binned(5)
    assert len(binned.um) <= 5 < len(distances.um)
    assert binned.pairs.sum() == distances.pairs.sum()
    assert binned.agreeing.sum() == distances.agreeing.sum()
    assert binned.um[-1] == distances.um[-1]


def test_the_report_leaves_its_files(store_factory: StoreFactory, tmp_path: Path) -> None:
    stores = [store_factory("a", rows=3, cols=4), store_factory("empty", keep=np.zeros(24, bool))]
    out = tmp_path / "report"
    parts = write_neighbour_report(stores, out)
    assert [part.slide_id for part in parts] == ["a", "empty", ""]
    document = json.loads((out / "spatial.json").read_text())
    assert document["slides"]["a"]["false_positive_rate"] == pytest.approx(1 - parts[0].label_agreement)  # type: ignore[operator]
    assert document["slides"]["empty"]["share_without_neighbours"] is None
    assert document["all"]["tiles"] == 12
    assert document["slides"]["a"]["params"]["rule"] == "grid"
    with (out / "spatial.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["slide"] for row in rows] == ["a", "empty", "all"]
    assert rows[0]["pairs"] == str(parts[0].n_pairs)
    assert sorted(path.name for path in out.iterdir()) == ["spatial", "spatial.csv", "spatial.json"]
    assert [path.name for path in (out / "spatial").iterdir()] == ["a.png"], "a slide without a tile has no picture"
    with pytest.raises(NeighbourError, match="near"):
        write_neighbour_report(stores, out, name="near")


def test_the_picture_shows_more_ink_for_more_pairs(store_factory: StoreFactory) -> None:
    store = store_factory(rows=6, cols=9, index=False)
    inks = []
    for rule in (GridRule(4), GridRule(8)):
        index_store(store, rule)
        picture = cv2.imdecode(np.frombuffer(draw_graph(TileStore(store.path)), np.uint8), cv2.IMREAD_COLOR_RGB)
        assert picture is not None
        blue = (np.abs(picture.astype(int) - (0, 114, 178)).max(axis=2) < 60).sum()
        inks.append(int(blue))
    assert 0 < inks[0] < inks[1]
