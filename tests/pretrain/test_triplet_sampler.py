import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simtriplet.pretrain.neighbours import NeighbourDraw
from simtriplet.pretrain.sampler import TripletSampler, balanced_order, seed_of
from simtriplet.wsi.errors import TrainingError

CPU = torch.device("cpu")


def make(n: int = 10, batch_size: int = 3, seed: int = 0, neighbours: NeighbourDraw | None = None) -> TripletSampler:
    return TripletSampler(torch.arange(n), batch_size=batch_size, seed=seed, neighbours=neighbours, device=CPU)


def test_an_epoch_visits_no_tile_twice_and_leaves_out_less_than_a_batch():
    sampler = make()
    assert sampler.steps_per_epoch == 3
    seen = torch.cat([sampler.ids(step)[0] for step in range(3)])
    assert len(seen) == len(seen.unique()) == 9


def test_epochs_are_in_another_order_and_seeds_too():
    sampler, other = make(100, 100), make(100, 100, seed=1)
    assert not torch.equal(sampler.ids(0), sampler.ids(1))
    assert not torch.equal(sampler.ids(0), other.ids(0))
    assert torch.equal(sampler.ids(1), make(100, 100).ids(1))


def test_any_step_is_found_again_without_the_ones_before(store_factory):
    draw = NeighbourDraw([store_factory().neighbours()], device=CPU)
    whole = make(24, 5, neighbours=draw)
    steps = [whole.ids(step) for step in range(12)]
    for step in (11, 6, 0):
        assert torch.equal(make(24, 5, neighbours=draw).ids(step), steps[step])


def test_the_rows_are_anchor_anchor_neighbour(store_factory):
    graph = store_factory().neighbours()
    sampler = make(24, 24, neighbours=NeighbourDraw([graph], device=CPU))
    first, again, neighbour = sampler.ids(0)
    assert torch.equal(first, again)
    for tile, other in zip(first.tolist(), neighbour.tolist(), strict=True):
        assert other in graph.indices[graph.indptr[tile] : graph.indptr[tile + 1]]
    assert sampler.n_views == 3
    assert make().n_views == 2


def test_weights_belong_to_the_neighbours_of_the_step(store_factory):
    graph = store_factory().neighbours()
    of_edge = np.random.default_rng(0).random(len(graph.indices)).astype(np.float32)
    sampler = make(24, 5, neighbours=NeighbourDraw([graph], device=CPU, weights=[of_edge]))
    for step in (0, 3, 4, 11, 2):
        anchors, _, neighbours = sampler.ids(step)
        expected = []
        for anchor, neighbour in zip(anchors.tolist(), neighbours.tolist(), strict=True):
            row = slice(graph.indptr[anchor], graph.indptr[anchor + 1])
            expected.append(of_edge[row][graph.indices[row] == neighbour].item())
        assert sampler.weights(step).tolist() == expected
    assert make(24, 5, neighbours=NeighbourDraw([graph], device=CPU)).weights(3) is None
    assert make().weights(0) is None


def test_an_epoch_planned_ahead_is_planned_again_when_the_neighbours_change(store_factory):
    graph = store_factory().neighbours()
    draw = NeighbourDraw([graph], device=CPU)
    sampler = make(24, 8, neighbours=draw)
    ahead = sampler.ids(3)[2].clone()
    anchors, others = draw.edges(0, 24)
    draw.keep(others == others.new_zeros(24).scatter_reduce(0, anchors, others, "amax")[anchors])
    largest = torch.from_numpy(graph.indices[graph.indptr[1:] - 1]).long()
    assert torch.equal(sampler.ids(3)[2], largest[sampler.ids(3)[0]])
    assert not torch.equal(sampler.ids(3)[2], ahead)


def test_the_neighbour_changes_from_epoch_to_epoch(store_factory):
    sampler = make(24, 24, neighbours=NeighbourDraw([store_factory().neighbours()], device=CPU))
    by_tile = [ids[2][ids[0].argsort()] for ids in (sampler.ids(epoch) for epoch in range(4))]
    assert len({tuple(each.tolist()) for each in by_tile}) == 4


def test_a_batch_shrinks_to_the_tiles_there_are():
    assert (make(2, 64).batch_size, make(2, 64).steps_per_epoch) == (2, 1)


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_tiles_are_refused(n):
    with pytest.raises(TrainingError, match=f"{n} tiles"):
        make(n)


def test_seeds_of_neighbouring_numbers_have_nothing_in_common():
    seeds = {seed_of(a, b) for a in range(30) for b in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_balanced_slides_come_equally_often_in_every_batch():
    slides = torch.repeat_interleave(torch.arange(4), torch.tensor([100, 5, 30, 1]))
    sampler = TripletSampler(torch.arange(136) + 7, batch_size=16, seed=0, neighbours=None, device=CPU, slides=slides)
    assert sampler.steps_per_epoch == 8
    for step in range(20):
        counts = torch.bincount(slides[sampler.ids(step)[0] - 7], minlength=4)
        assert counts.tolist() == [4, 4, 4, 4]


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=7),
    length=st.integers(1, 120),
    start=st.integers(0, 100),
    seed=st.integers(0, 5),
)
def test_groups_take_turns_and_no_item_repeats_before_all_came(sizes, length, start, seed):
    groups = list(torch.arange(sum(sizes)).split(sizes))
    order = balanced_order(groups, length, torch.Generator().manual_seed(seed))
    assert len(order) == length
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))[order]
    stretch = torch.bincount(owner[start : start + 40], minlength=len(sizes))
    assert int(stretch.max() - stretch.min()) <= 2
    for number, size in enumerate(sizes):
        mine = order[owner == number]
        for part in mine.split(size):
            assert len(part.unique()) == len(part)


def test_a_balanced_order_is_another_one_each_epoch_and_found_again():
    slides = torch.repeat_interleave(torch.arange(3), 20)
    make_one = lambda: TripletSampler(  # noqa: E731
        torch.arange(60), batch_size=12, seed=3, neighbours=None, device=CPU, slides=slides
    )
    whole = make_one()
    steps = [whole.ids(step) for step in range(10)]
    assert not torch.equal(steps[0], steps[5])
    for step in (9, 4, 0):
        assert torch.equal(make_one().ids(step), steps[step])


def test_an_epoch_is_a_uniform_permutation_over_all_stores():
    """What is promised of shuffling: any tile stands at any place of an epoch with the same probability."""
    n, epochs = 40, 400
    sampler = make(n, n)
    places = np.stack([sampler.ids(epoch)[0].argsort().numpy() for epoch in range(epochs)])
    counts = np.stack([np.bincount(column, minlength=n) for column in places.T])  # (tile, place)
    chi_square = ((counts - epochs / n) ** 2 / (epochs / n)).sum()
    free = (n - 1) ** 2
    assert abs(chi_square - free) < 4 * np.sqrt(2 * free)
    neighbours_in_store = np.abs(np.diff(sampler.ids(0)[0].numpy())) == 1
    assert (
        neighbours_in_store.sum() < 8
    )  # 2 expected: batches mix stores and places, whatever lies side by side on disk
