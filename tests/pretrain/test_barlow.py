"""Barlow Twins against equation 1 of arXiv 2103.03230, in float64."""

import numpy as np
import pytest
import torch

from simtriplet.pretrain.barlow import cross_correlation
from simtriplet.pretrain.model import ViewOutputs
from simtriplet.pretrain.objective import make_objective
from simtriplet.pretrain.settings import ObjectiveSettings


def random_views(views: int = 3, n: int = 24, d: int = 6, seed: int = 0) -> list[torch.Tensor]:
    """Views of one tile are alike, dimensions differ in scale and mean and are correlated."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator)
    base = torch.randn(n, d, generator=generator) @ mix
    return [base + 0.5 * torch.randn(n, d, generator=generator) + 3 for _ in range(views)]


def random_weights(n: int = 24) -> torch.Tensor:
    weights = torch.rand(n, generator=torch.Generator().manual_seed(9))
    weights[::6] = 0
    return weights


def correlation_numpy(one: np.ndarray, other: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Covariance over deviations, entry by entry, with the epsilon of the authors' batch normalisation."""
    d = one.shape[1]
    found = np.empty((d, d))
    for j in range(d):
        for k in range(d):
            a, b = one[:, j], other[:, k]
            mean_a, mean_b = np.average(a, weights=weights), np.average(b, weights=weights)
            covariance = np.average((a - mean_a) * (b - mean_b), weights=weights)
            variance_a = np.average((a - mean_a) ** 2, weights=weights)
            variance_b = np.average((b - mean_b) ** 2, weights=weights)
            found[j, k] = covariance / np.sqrt((variance_a + 1e-5) * (variance_b + 1e-5))
    return found


def barlow_numpy(one: np.ndarray, other: np.ndarray, redundancy_weight: float, weights: np.ndarray) -> float:
    """Equation 1 over d, as the docstring of the objective has it."""
    loss = 0.0
    for (j, k), value in np.ndenumerate(correlation_numpy(one, other, weights)):
        loss += (1 - value) ** 2 if j == k else redundancy_weight * value**2
    return float(loss) / one.shape[1]


def test_unweighted_correlation_is_that_of_batch_normalised_views():
    one, other, _ = random_views()
    norm = torch.nn.BatchNorm1d(6, affine=False)
    authors = norm(one).T @ norm(other) / len(one)
    torch.testing.assert_close(cross_correlation(one, other), authors)


def test_two_views_are_the_published_equation():
    one, other = random_views(2)
    settings = ObjectiveSettings(name="barlow", inter_weight=0, redundancy_weight=0.02)
    loss, terms = make_objective(settings)(ViewOutputs((), (one, other)))
    expected = barlow_numpy(one.double().numpy(), other.double().numpy(), 0.02, np.ones(24))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert set(terms) == {"invariance", "redundancy"}
    assert loss.item() == pytest.approx(terms["invariance"].item() + 0.02 * terms["redundancy"].item(), rel=1e-6)


@pytest.mark.parametrize("weights", [None, random_weights()])
@pytest.mark.parametrize(("inter_weight", "warm_in"), [(1.0, 1.0), (0.4, 0.5)])
def test_with_a_neighbour_it_is_the_weighted_mean_of_both_pairs(weights, inter_weight, warm_in):
    views = random_views()
    z1, z2, z3 = (view.double().numpy() for view in views)
    settings = ObjectiveSettings(name="barlow", inter_weight=inter_weight)
    loss, _ = make_objective(settings)(ViewOutputs((), tuple(views)), warm_in=warm_in, pair_weights=weights)
    w = np.ones(24) if weights is None else weights.double().numpy()
    weight = inter_weight * warm_in * w.mean()
    intra, inter = barlow_numpy(z1, z2, 0.005, np.ones(24)), barlow_numpy(z2, z3, 0.005, w)
    assert loss.item() == pytest.approx((intra + weight * inter) / (1 + weight), rel=1e-5)


def test_samples_of_weight_zero_are_as_if_they_were_not_there():
    one, other, _ = random_views()
    weights = torch.ones(24)
    weights[5:] = 0
    torch.testing.assert_close(cross_correlation(one, other, weights), cross_correlation(one[:5], other[:5]))


def test_the_minimum_is_reached_by_equal_views_of_independent_dimensions():
    """Columns of a Hadamard matrix have mean 0, variance 1 and no correlation."""
    two = np.array([[1, 1], [1, -1]])
    hadamard = np.kron(np.kron(two, two), two)
    z = torch.from_numpy(hadamard[:, 1:]).float()
    settings = ObjectiveSettings(name="barlow", redundancy_weight=1)
    assert make_objective(settings)(ViewOutputs((), (z, z, z))).loss.item() == pytest.approx(0, abs=1e-6)


def test_without_any_weight_or_spread_gradients_stay_finite():
    z = [torch.ones(8, 4, requires_grad=True) for _ in range(3)]
    make_objective(ObjectiveSettings(name="barlow"))(
        ViewOutputs((), tuple(z)), pair_weights=torch.zeros(8)
    ).loss.backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in z)


def test_bf16_outputs_are_correlated_in_float32():
    views = tuple(view.bfloat16() for view in random_views())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = make_objective(ObjectiveSettings(name="barlow"))(ViewOutputs((), views)).loss
    exact = make_objective(ObjectiveSettings(name="barlow"))(ViewOutputs((), tuple(view.float() for view in views)))
    assert loss.dtype == torch.float32
    assert loss.item() == exact.loss.item()
