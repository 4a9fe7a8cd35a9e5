import numpy as np
import pytest
import torch

from simtriplet.pretrain.model import ViewOutputs
from simtriplet.pretrain.objective import OBJECTIVES, make_objective, negative_cosine
from simtriplet.pretrain.settings import ObjectiveSettings
from simtriplet.wsi.errors import UnknownNameError


def random_outputs(views: int = 3, n: int = 12, d: int = 10, seed: int = 0) -> ViewOutputs:
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(n, d, generator=generator).requires_grad_() for _ in range(2 * views)]
    return ViewOutputs(tuple(draws[:views]), tuple(draws[views:]))


def c(p: torch.Tensor, z: torch.Tensor, weights: np.ndarray | float = 1.0) -> float:
    """METHOD: C(p, z) = -cos(p, z), in float64, each sample times its weight."""
    a, b = p.detach().numpy().astype(np.float64), z.detach().numpy().astype(np.float64)
    return float(-(weights * (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean())


def random_weights(n: int = 12, seed: int = 5) -> torch.Tensor:
    """Some of them 0, as of a pair of which one tile has no tissue."""
    weights = torch.rand(n, generator=torch.Generator().manual_seed(seed))
    weights[::5] = 0
    return weights


def test_simtriplet_is_the_equation():
    (p1, p2, p3), (z1, z2, z3) = outputs = random_outputs()
    intra = c(p1, z2) / 2 + c(p2, z1) / 2
    inter = c(p2, z3) / 2 + c(p3, z2) / 2
    loss, terms = make_objective(ObjectiveSettings(inter_weight=0.7))(outputs)
    assert loss.item() == pytest.approx(intra + 0.7 * inter, abs=1e-6)
    assert terms["intra"].item() == pytest.approx(intra, abs=1e-6)
    assert terms["inter"].item() == pytest.approx(inter, abs=1e-6)
    assert not any(term.requires_grad for term in terms.values())


@pytest.mark.parametrize("warm_in", [1.0, 0.3, torch.tensor(0.3), 0.0])
def test_simtriplet_weighs_each_neighbour_and_warms_in(warm_in):
    (p1, p2, p3), (z1, z2, z3) = outputs = random_outputs()
    weights = random_weights()
    w = weights.double().numpy()
    intra = c(p1, z2) / 2 + c(p2, z1) / 2
    inter = c(p2, z3, w) / 2 + c(p3, z2, w) / 2
    loss, terms = make_objective(ObjectiveSettings(inter_weight=0.7))(outputs, warm_in=warm_in, pair_weights=weights)
    assert loss.item() == pytest.approx(intra + 0.7 * float(warm_in) * inter, abs=1e-6)
    assert terms["inter"].item() == pytest.approx(inter, abs=1e-6)


def objective_of(name: str, weight: float = 0.8):
    return make_objective(ObjectiveSettings(name=name, inter_weight=weight))


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_equal_pair_weights_scale_the_inter_weight(name):
    outputs = random_outputs(n=32)
    half = objective_of(name)(outputs, pair_weights=torch.full((32,), 0.5)).loss
    torch.testing.assert_close(half, objective_of(name, 0.4)(outputs).loss, rtol=1e-5, atol=1e-6)
    ones = objective_of(name)(outputs, pair_weights=torch.ones(32)).loss
    torch.testing.assert_close(ones, objective_of(name)(outputs).loss, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_a_warm_in_scales_the_inter_weight(name):
    outputs = random_outputs(n=32)
    for share in (0.25, torch.tensor(0.25)):
        early = objective_of(name)(outputs, warm_in=share, pair_weights=random_weights(32)).loss
        expected = objective_of(name, 0.2)(outputs, pair_weights=random_weights(32)).loss
        torch.testing.assert_close(early, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["simtriplet", "barlow"])
@pytest.mark.parametrize("off", [{"warm_in": 0.0}, {"pair_weights": torch.zeros(12)}])
def test_a_neighbour_without_weight_teaches_nothing(name, off):
    """VICReg's variance and covariance are of every view, whatever the weight of the pair."""
    outputs = random_outputs()
    inputs = outputs.p if name == "simtriplet" else outputs.z
    gradients = torch.autograd.grad(objective_of(name)(outputs, **off).loss, inputs)
    two = ViewOutputs(outputs.p[:2], outputs.z[:2])
    without = torch.autograd.grad(objective_of(name, 0)(two).loss, inputs[:2])
    assert gradients[2].abs().max() == 0
    for gradient, expected in zip(gradients, without, strict=False):
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("name", ["simtriplet", "vicreg", "barlow"])
def test_a_pair_of_weight_zero_does_not_pull_its_tile(name):
    """The same tile pulls when the weight is above 0; only what does not depend on pairs is left of the gradient."""
    outputs = random_outputs()
    z = (outputs.p if name == "simtriplet" else outputs.z)[2]
    settings = ObjectiveSettings(name=name, variance_weight=0, covariance_weight=0)
    weights = torch.ones(12)
    weights[3] = 0
    (gradient,) = torch.autograd.grad(make_objective(settings)(outputs, pair_weights=weights).loss, z)
    assert gradient[3].abs().max() == 0
    assert gradient[4].abs().max() > 0


@pytest.mark.parametrize(("name", "views", "least"), [("simtriplet", 3, -2), ("simsiam", 2, -1)])
def test_the_minimum_is_reached_where_p_is_z(name, views, least):
    same = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    loss, _ = make_objective(ObjectiveSettings(name=name))(ViewOutputs((same,) * views, (same,) * views))
    assert loss.item() == pytest.approx(least, abs=1e-6)


def test_no_gradient_flows_through_z():
    outputs = random_outputs()
    make_objective(ObjectiveSettings())(outputs, warm_in=0.5, pair_weights=random_weights()).loss.backward()
    assert all(z.grad is None for z in outputs.z)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in outputs.p)


def test_the_first_anchor_view_has_no_term_with_the_neighbour():
    outputs = random_outputs()
    outputs.p[2].data.zero_()
    objective = make_objective(ObjectiveSettings())
    (with_neighbour,) = torch.autograd.grad(objective(outputs).loss, outputs.p[0])
    simsiam = make_objective(ObjectiveSettings(name="simsiam"))
    (without,) = torch.autograd.grad(simsiam(ViewOutputs(outputs.p[:2], outputs.z[:2])).loss, outputs.p[0])
    torch.testing.assert_close(with_neighbour, without)


def test_without_inter_weight_no_neighbour_is_asked_for():
    assert not make_objective(ObjectiveSettings(inter_weight=0)).uses_neighbour
    assert not make_objective(ObjectiveSettings(name="simsiam")).uses_neighbour
    assert not make_objective(ObjectiveSettings(name="vicreg", inter_weight=0)).uses_neighbour
    assert not make_objective(ObjectiveSettings(name="barlow", inter_weight=0)).uses_neighbour
    assert make_objective(ObjectiveSettings()).uses_neighbour


def test_the_loss_is_float32_under_autocast():
    p = torch.nn.functional.normalize(torch.randn(64, 2048, generator=torch.Generator().manual_seed(0)), dim=1)
    z = p + 2e-4 * torch.randn(64, 2048, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = make_objective(ObjectiveSettings(name="simsiam"))(ViewOutputs((p, p), (z, z)))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(c(p, z), abs=1e-6)
    assert -1 + 1e-5 < loss.item() < -0.998  # between two numbers of bf16, whose steps here are 0.004


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["vicreg", "barlow"])
def test_products_over_the_batch_are_float32_under_autocast(name, dtype):
    """Autocast would compute covariances and correlations in bf16, a thousandth off."""
    objective = make_objective(ObjectiveSettings(name=name))
    z = [(0.1 * each.detach() + 3).to(dtype).requires_grad_() for each in random_outputs(n=64, d=32).z]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, terms = objective(ViewOutputs((), tuple(z)))
    exact, wanted = objective(ViewOutputs((), tuple(each.detach().float() for each in z)))
    assert {loss.dtype, *(term.dtype for term in terms.values())} == {torch.float32}
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
    for term, each in terms.items():
        assert each.item() == pytest.approx(wanted[term].item(), rel=1e-6), term
    loss.backward()
    assert all(each.grad.isfinite().all() and each.grad.abs().sum() > 0 for each in z)


def test_bf16_outputs_are_compared_in_float32():
    p, z = (torch.randn(8, 32, generator=torch.Generator().manual_seed(seed)).bfloat16() for seed in (0, 1))
    assert negative_cosine(p, z).item() == pytest.approx(c(p.float(), z.float()), abs=1e-6)


def vicreg_numpy(z: list[np.ndarray], settings: ObjectiveSettings, warm_in: float, weights: np.ndarray) -> float:
    """arXiv 2105.04906 as its authors' code has it, over any number of views; the pairs' mean is a weighted one."""
    d = z[0].shape[1]

    def variance(x):
        return np.maximum(0, 1 - np.sqrt(x.var(0, ddof=1) + 1e-4)).mean()

    def covariance(x):
        matrix = np.cov(x, rowvar=False)
        return (matrix**2).sum() / d - (np.diag(matrix) ** 2).sum() / d

    invariance = ((z[0] - z[1]) ** 2).mean()
    if len(z) == 3:
        w = settings.inter_weight * warm_in * weights
        invariance = (invariance + (w * ((z[1] - z[2]) ** 2).mean(1)).mean()) / (1 + w.mean())
    return (
        settings.invariance_weight * invariance
        + settings.variance_weight * np.mean([variance(x) for x in z])
        + settings.covariance_weight * 2 * np.mean([covariance(x) for x in z])
    )


@pytest.mark.parametrize("weights", [None, random_weights()])
@pytest.mark.parametrize(("views", "weight", "warm_in"), [(2, 0.0, 1.0), (3, 1.0, 1.0), (3, 0.4, 0.6)])
def test_vicreg_is_the_equation(views, weight, warm_in, weights):
    settings = ObjectiveSettings(name="vicreg", inter_weight=weight)
    z = [(0.7 * each).detach() for each in random_outputs(views).z]
    loss, terms = make_objective(settings)(ViewOutputs((), tuple(z)), warm_in=warm_in, pair_weights=weights)
    w = np.ones(12) if weights is None else weights.double().numpy()
    expected = vicreg_numpy([each.double().numpy() for each in z], settings, warm_in, w)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert set(terms) == {"invariance", "variance", "covariance"}


@pytest.mark.parametrize("name", ["vicreg", "barlow"])
def test_without_a_stopped_gradient_every_view_teaches(name):
    outputs = random_outputs()
    make_objective(ObjectiveSettings(name=name))(outputs).loss.backward()
    assert all(z.grad is not None and z.grad.abs().sum() > 0 for z in outputs.z)


def test_an_unknown_objective_lists_the_known():
    assert list(OBJECTIVES) == ["barlow", "simsiam", "simtriplet", "vicreg"]
    with pytest.raises(UnknownNameError, match="did you mean 'simsiam'"):
        make_objective(ObjectiveSettings(name="simsam"))
