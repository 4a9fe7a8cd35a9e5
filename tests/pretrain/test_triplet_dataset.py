"""The dataset for other people's loops: the same tiles and neighbours as the trainer's, in any kind of worker."""

import pickle
import shutil
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler
from torchvision.transforms import v2

from simtriplet.pretrain import Triplet, TripletDataset
from simtriplet.wsi.errors import NeighbourError, SettingsError, StoreError, TrainingError
from simtriplet.wsi.store import TileStore

StoreFactory = Callable[..., TileStore]


def as_tile(view: Tensor) -> np.ndarray:
    return view.permute(1, 2, 0).numpy()


def all_tiles(store: TileStore) -> np.ndarray:
    return store.images.read(np.arange(len(store)))


def find(store: TileStore, view: Tensor) -> int:
    (place,) = [i for i, tile in enumerate(all_tiles(store)) if np.array_equal(tile, as_tile(view))]
    return place


def test_neighbour_of_each_sample_is_a_neighbour_in_the_index(store_factory: StoreFactory) -> None:
    store = store_factory()
    dataset, graph = TripletDataset(store), store.neighbours()
    assert len(dataset) == len(store)
    for anchor in range(len(store)):
        triplet = dataset[anchor]
        assert triplet.first.shape == (3, 32, 32)
        assert triplet.first.dtype == torch.uint8
        assert find(store, triplet.first) == find(store, triplet.second) == anchor
        assert find(store, triplet.neighbour) in graph.indices[graph.indptr[anchor] : graph.indptr[anchor + 1]]


def test_every_neighbour_comes_and_a_seed_repeats_the_draw(store_factory: StoreFactory) -> None:
    store = store_factory(rows=3, cols=3)
    dataset = TripletDataset(store)

    def draw() -> list[int]:
        torch.manual_seed(7)
        return [find(store, triplet.neighbour) for triplet in dataset.__getitems__([4] * 60)]

    drawn = draw()
    graph = store.neighbours()
    assert set(drawn) == set(graph.indices[graph.indptr[4] : graph.indptr[5]].tolist())
    assert drawn == draw()


def test_stores_are_numbered_by_slide_id_and_excluded_patients_are_left_out(store_factory: StoreFactory) -> None:
    second = store_factory("b", rows=2, cols=2, patient_id="p2", seed=2)
    first = store_factory("a", rows=2, cols=3, patient_id="p1", seed=1)
    dataset = TripletDataset(first.path.parent)
    assert dataset.slides == ("a", "b")
    assert len(dataset) == 10
    assert find(second, dataset[6].first) == 0
    alone = TripletDataset([first.path, second], exclude_patients=["p1"])
    assert (alone.patients, len(alone)) == (("p2",), 4)


def test_tiles_without_a_neighbour_are_their_own_or_are_left_out(store_factory: StoreFactory) -> None:
    keep = np.ones(24, bool)
    keep[[1, 6, 7]] = False  # the tile in the corner is alone then
    store = store_factory(keep=keep)
    (lonely,) = np.flatnonzero(store.neighbours().degrees == 0)
    triplet = TripletDataset(store)[int(lonely)]
    assert torch.equal(triplet.first, triplet.neighbour)
    dropped = TripletDataset(store, isolated="drop")
    assert len(dropped) == len(store) - 1
    assert lonely not in {find(store, dropped[item].first) for item in range(len(dropped))}


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_plain_dataloader_with_workers_collates_batches(store_factory: StoreFactory, context: str) -> None:
    store = store_factory()
    dataset = TripletDataset(store, transform=partial(v2.functional.to_dtype, dtype=torch.float32, scale=True))
    loader = DataLoader(dataset, batch_size=8, num_workers=1, multiprocessing_context=context)
    batches = list(loader)
    assert [type(batch) for batch in batches] == [Triplet] * 3
    first = torch.cat([batch.first for batch in batches])
    assert first.dtype == torch.float32
    assert np.array_equal((first * 255).round().byte().permute(0, 2, 3, 1).numpy(), all_tiles(store))


@pytest.mark.parametrize(("context", "persistent"), [("fork", False), ("fork", True), ("forkserver", True)])
def test_several_workers_draw_differently_and_a_seed_repeats_them(
    store_factory: StoreFactory, context: str, persistent: bool
) -> None:
    """Every batch asks for the middle tile of nine; the workers take turns."""
    store = store_factory(rows=3, cols=3)

    def draw() -> list[tuple[int, ...]]:
        torch.manual_seed(3)
        loader: DataLoader[Triplet] = DataLoader(
            TripletDataset(store),
            batch_sampler=[[4] * 12] * 4,
            num_workers=2,
            persistent_workers=persistent,
            multiprocessing_context=context,
        )
        return [tuple(find(store, one) for one in batch.neighbour) for _ in range(2) for batch in loader]

    drawn = draw()
    assert len(set(drawn)) == 8, "two workers, or two epochs of one, draw alike"
    assert drawn == draw()


def test_processes_share_an_epoch_without_overlap(store_factory: StoreFactory) -> None:
    """As DDP does it: a DistributedSampler a process, over the same numbering in each."""
    store = store_factory()
    seen: list[int] = []
    for rank in range(2):
        dataset = TripletDataset(store.path)
        sampler = DistributedSampler(dataset, num_replicas=2, rank=rank, shuffle=True, seed=1)
        for batch in DataLoader(dataset, batch_size=6, sampler=sampler):
            seen += [find(store, first) for first in batch.first]
    assert sorted(seen) == list(range(24))


def test_the_samples_stay_the_same_when_a_store_comes_into_the_folder(store_factory: StoreFactory) -> None:
    """A split by numbers would otherwise mix training and test in workers that open the folder later."""
    first = store_factory("b", seed=1)
    dataset = TripletDataset(first.path.parent)
    store_factory("a", seed=2)
    again = pickle.loads(pickle.dumps(dataset))
    assert (len(again), again.slides) == (24, ("b",))
    assert torch.equal(again[3].first, dataset[3].first)
    sent = pickle.dumps(dataset)
    shutil.rmtree(first.path)
    store_factory("b", seed=3)
    with pytest.raises(StoreError, match="'b': was tiled or indexed anew since the dataset was made"):
        pickle.loads(sent)


def test_each_sample_has_a_slide_and_a_patient(store_factory: StoreFactory) -> None:
    keep = np.ones(24, bool)
    keep[[1, 6, 7]] = False
    store_factory("a", patient_id="p2", keep=keep)
    store = store_factory("b", patient_id="p1", rows=2, cols=2)
    dataset = TripletDataset(store.path.parent, isolated="drop")
    assert dataset.slide_numbers.tolist() == [0] * 20 + [1] * 4
    assert repr(dataset) == "<TripletDataset: 24 tiles of 32 px at 0.5 um per pixel, 2 slides of 2 patients>"
    assert repr(store) == "<TileStore 'b.tiles.zarr': 4 tiles of 32 px at 0.5 um per pixel>"
    assert (dataset.slides, dataset.slide_patients, dataset.patients) == (("a", "b"), ("p2", "p1"), ("p1", "p2"))


def test_options_that_would_silently_do_something_else_are_refused(store_factory: StoreFactory) -> None:
    store = store_factory(patient_id="p1")
    with pytest.raises(SettingsError, match=r"exclude_patients 'p1': must be several patients; pass \['p1'\]"):
        TripletDataset(store, exclude_patients="p1")
    with pytest.raises(TrainingError, match=r"patients to exclude \(p9\): none is in the stores"):
        TripletDataset(store, exclude_patients=["p9"])
    with pytest.raises(SettingsError, match="'isolated' is 'dorp': must be 'self' or 'drop'"):
        TripletDataset(store, isolated="dorp")  # type: ignore[arg-type]


def test_a_transform_in_place_leaves_the_other_view_alone(store_factory: StoreFactory) -> None:
    store = store_factory()
    triplet = TripletDataset(store, transform=lambda tile: tile.add_(1))[5]
    assert np.array_equal(as_tile(triplet.first), all_tiles(store)[5] + 1)
    assert torch.equal(triplet.first, triplet.second)


def test_neighbours_change_from_epoch_to_epoch_in_workers(store_factory: StoreFactory) -> None:
    loader = DataLoader(TripletDataset(store_factory()), batch_size=24, num_workers=1, multiprocessing_context="fork")
    torch.manual_seed(0)
    one, two = (next(iter(loader)).neighbour for _ in range(2))
    assert not torch.equal(one, two)


def test_each_view_has_its_own_transform_call(store_factory: StoreFactory) -> None:
    dataset = TripletDataset(store_factory(), transform=v2.RandomResizedCrop(16, antialias=True))
    triplet = dataset[0]
    assert triplet.first.shape == triplet.neighbour.shape == (3, 16, 16)
    assert not torch.equal(triplet.first, triplet.second)


def test_pickling_sends_paths_not_pixels(store_factory: StoreFactory) -> None:
    dataset = TripletDataset(store_factory(rows=20, cols=20), isolated="drop")
    sent = pickle.dumps(dataset)
    assert len(sent) < 2000
    again = pickle.loads(sent)
    assert len(again) == len(dataset)
    assert torch.equal(again[5].first, dataset[5].first)


class Numbered(TripletDataset):
    """What a user makes of the dataset: a class with values of its own."""

    def __init__(self, stores: TileStore, shift: int) -> None:
        super().__init__(stores)
        self.shift = shift

    def __getitems__(self, items: Sequence[int]) -> list[tuple[int, Tensor]]:  # type: ignore[override]
        triplets = super().__getitems__(items)
        return [(item + self.shift, triplet.first) for item, triplet in zip(items, triplets, strict=True)]


def test_a_class_made_from_it_is_the_same_in_a_spawned_worker(store_factory: StoreFactory) -> None:
    store = store_factory(rows=2, cols=2)
    again = pickle.loads(pickle.dumps(Numbered(store, 100)))
    assert type(again) is Numbered
    assert [number for number, _ in again.__getitems__([0, 3])] == [100, 103]
    assert np.array_equal(as_tile(again.__getitems__([3])[0][1]), all_tiles(store)[3])


def test_a_store_without_index_or_without_tiles_is_refused(store_factory: StoreFactory) -> None:
    with pytest.raises(NeighbourError, match="simtriplet index"):
        TripletDataset(store_factory("bare", index=False))
    with pytest.raises(TrainingError, match="hold no tile"):
        TripletDataset(store_factory("empty", keep=np.zeros(24, bool)))
    with pytest.raises(TrainingError, match="none has a neighbour"):
        TripletDataset(store_factory("lonely", rows=1, cols=1), isolated="drop")
    with pytest.raises(IndexError):
        TripletDataset(store_factory())[24]
