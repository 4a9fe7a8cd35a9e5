import pytest
import torch

from simtriplet.pretrain.warm_in import WarmIn

CPU = torch.device("cpu")


def test_the_share_rises_linearly_from_nothing_to_all():
    assert [WarmIn(4).share(step) for step in range(7)] == [0, 0.25, 0.5, 0.75, 1, 1, 1]


def test_without_a_rise_the_neighbour_counts_in_full_from_the_first_step():
    assert [WarmIn(0).share(step) for step in range(3)] == [1, 1, 1]
    assert WarmIn(0).on(CPU, 0) == 1.0


@pytest.mark.parametrize("step", [0, 1, 3, 9])
def test_an_objective_gets_a_scalar_of_the_device(step):
    share = WarmIn(3).on(CPU, step)
    assert isinstance(share, torch.Tensor)
    assert (share.shape, share.dtype, share.item()) == ((), torch.float32, pytest.approx(min(1, step / 3)))
