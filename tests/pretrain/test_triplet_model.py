import copy

import pytest
import torch
from torch import nn

from simtriplet.pretrain.model import make_model
from simtriplet.pretrain.settings import ModelSettings


def small_model(**changes) -> nn.Module:
    torch.manual_seed(0)
    settings = ModelSettings(backbone="small", projector_dim=16, predictor_dim=8, **changes)
    return make_model(settings, with_predictor=True)


def views() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shift = torch.tensor([-1.0, 0.0, 2.0]).view(3, 1, 1, 1, 1)  # the views differ in mean, so that statistics do too
    return torch.randn(3, 6, 3, 32, 32, generator=generator) + shift


def test_each_view_is_normalised_with_its_own_statistics():
    model = small_model()
    apart, together = copy.deepcopy(model), copy.deepcopy(model)
    outputs = model(views())
    for i, view in enumerate(views()):
        z = apart.projector(apart.backbone(view))
        assert torch.equal(outputs.z[i], z)
    for i, z in enumerate(outputs.z):
        assert torch.equal(outputs.p[i], apart.predictor(z))
    for (name, ours), theirs in zip(model.state_dict().items(), apart.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert not torch.allclose(together.projector(together.backbone(views().flatten(0, 1)))[:6], outputs.z[0], atol=1e-2)


def test_running_statistics_move_once_per_view():
    model = small_model()
    model(views())
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert len(norms) == 6
    assert {int(norm.num_batches_tracked) for norm in norms} == {3}


def test_the_heads_are_those_of_the_paper():
    model = make_model(ModelSettings(backbone="resnet50"), with_predictor=True)
    widths = [(m.in_features, m.out_features, m.bias is None) for m in model.modules() if isinstance(m, nn.Linear)]
    assert widths == [(2048, 2048, True)] * 3 + [(2048, 512, True), (512, 2048, False)]
    kinds = [type(module) for module in model.projector]
    block = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert kinds == block + block + [nn.Linear, nn.BatchNorm1d]
    assert not model.projector[-1].affine
    assert model.feature_dim == 2048


@pytest.mark.parametrize(("last_norm", "tail"), [("affine", nn.BatchNorm1d), ("none", nn.Linear)])
def test_the_last_normalisation_is_a_choice(last_norm, tail):
    last = small_model(last_norm=last_norm).projector[-1]
    assert isinstance(last, tail)
    assert last.bias is not None


def test_without_predictor_there_is_no_p():
    model = make_model(ModelSettings(backbone="small", projector_dim=16), with_predictor=False)
    outputs = model(views())
    assert outputs.p == ()
    assert [z.shape for z in outputs.z] == [(6, 16)] * 3


def test_residual_branches_start_at_zero_where_asked():
    for zero in (True, False):
        model = make_model(
            ModelSettings(backbone="resnet18", projector_dim=4, zero_init_residual=zero), with_predictor=False
        )
        starts = {float(block.bn2.weight.detach().abs().max()) for block in model.backbone.layer2}
        assert starts == ({0.0} if zero else {1.0})
