"""Micro-batches and forgotten activations: the same training with less memory."""

import copy

import pytest
import torch
from torch import nn

from simtriplet.pretrain.activation_checkpointing import checkpoint_activations
from simtriplet.pretrain.distributed import World
from simtriplet.pretrain.model import make_model
from simtriplet.pretrain.objective import make_objective
from simtriplet.pretrain.optimiser import make_optimiser
from simtriplet.pretrain.precision import autocast, float32_rounding, make_scaler
from simtriplet.pretrain.settings import ModelSettings, ObjectiveSettings, OptimiserSettings, RunSettings
from simtriplet.pretrain.trainer import pretrain
from simtriplet.pretrain.update import Updater
from simtriplet.wsi.errors import SettingsError, TrainingError

CPU = torch.device("cpu")


def make(backbone: str = "small", **changes: object) -> nn.Module:
    torch.manual_seed(0)
    settings = ModelSettings(backbone=backbone, projector_dim=16, predictor_dim=8, **changes)
    return make_model(settings, with_predictor=True).train()


def views(n: int = 8) -> torch.Tensor:
    return torch.randn(3, n, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def gradients_of(model: nn.Module, precision: str = "fp32") -> list[torch.Tensor]:
    with autocast(CPU, precision):
        outputs = model(views())
    make_objective(ObjectiveSettings())(outputs).loss.backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("backbone", "blocks"), [("small", 1), ("resnet18", 8), ("timid", 1)])
def test_activation_checkpointing_changes_no_gradient_and_no_statistic(backbone, blocks, precision, timid_backbone):
    """Statistics move once per view, not again when a block runs a second time; `timid` draws the same noise again."""
    plain = make(backbone)
    forgetful = copy.deepcopy(plain)
    assert checkpoint_activations(forgetful.backbone) == blocks
    torch.manual_seed(3)
    wanted = gradients_of(plain, precision)
    torch.manual_seed(3)
    got = gradients_of(forgetful, precision)
    for one, other in zip(wanted, got, strict=True):
        assert torch.equal(one, other)
    for (name, one), other in zip(plain.state_dict().items(), forgetful.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    norms = [module for module in forgetful.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    assert {int(norm.num_batches_tracked) for norm in norms} == {3}
    assert {norm.momentum for norm in norms} == {0.1}


def test_activation_checkpointing_keeps_less_for_the_way_back():
    def kept_bytes(model: nn.Module) -> int:
        storages: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs = model(views())
        del outputs
        return sum(size for place, size in storages.items() if place not in weights)

    plain, forgetful = make("resnet18"), make("resnet18")
    checkpoint_activations(forgetful.backbone)
    assert kept_bytes(forgetful) < 0.6 * kept_bytes(plain)


def test_a_run_with_activation_checkpointing_is_the_same_run(store_factory, make_settings, tmp_path):
    stores = [store_factory()]
    small = ["model.backbone=resnet18", "run.epochs=1", "run.accumulate=2"]
    one = pretrain(stores, make_settings(*small), tmp_path / "plain")
    other = pretrain(stores, make_settings(*small, "run.activation_checkpointing=true"), tmp_path / "less")
    assert one.loss == other.loss
    assert one.encoder.read_bytes() == other.encoder.read_bytes()


def step_once(accumulate: int, objective: str = "simtriplet", part_norms: bool = True):
    """One step; with `part_norms` off, batch normalisation uses its fixed statistics, so that samples stay apart."""
    model = make()
    if not part_norms:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.eval()
    optimiser = make_optimiser(model, OptimiserSettings(), peak_lr=0.1)
    scaler = make_scaler(CPU, "fp32")
    options = {"precision": "fp32", "world": World(), "accumulate": accumulate, "skip_bad_steps": False}
    updater = Updater(model, optimiser, scaler, **options)
    parts = []

    def loss_of(outputs, part):
        parts.append((part.start, part.stop))
        return make_objective(ObjectiveSettings(name=objective))(outputs)

    return model, updater.step(views(), loss_of, measure_gradient=True), parts


def test_micro_batches_give_the_whole_batchs_gradient_where_samples_stay_apart():
    whole, one, _ = step_once(1, part_norms=False)
    parts, other, slices = step_once(4, part_norms=False)
    assert slices == [(0, 2), (2, 4), (4, 6), (6, 8)]
    torch.testing.assert_close(other.losses.loss, one.losses.loss)
    torch.testing.assert_close(other.losses.terms, one.losses.terms)
    torch.testing.assert_close(other.grad_norm, one.grad_norm)
    torch.testing.assert_close(other.z, one.z)
    for expected, got in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(got, expected)


def test_micro_batches_have_statistics_of_their_own():
    """Two halves, each as if it were a batch: the mean of their losses, and statistics that move six times."""
    model, outcome, _ = step_once(2, "vicreg")
    alone = make()
    objective = make_objective(ObjectiveSettings(name="vicreg"))
    losses = [objective(alone(views()[:, half])).loss.detach() for half in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(outcome.losses.loss, (losses[0] + losses[1]) / 2)
    for name, value in alone.named_buffers():
        torch.testing.assert_close(dict(model.named_buffers())[name], value)
    assert int(model.backbone[1].num_batches_tracked) == 6


def test_accumulated_runs_train_and_resume_exactly(store_factory, make_settings, tmp_path):
    stores, settings = [store_factory()], make_settings("run.accumulate=4")
    whole = pretrain(stores, settings, tmp_path / "whole")

    def stop(report):
        if report.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(stores, settings, tmp_path / "parts", progress=stop)
    assert (
        pretrain(stores, settings, tmp_path / "parts", resume=True).encoder.read_bytes() == whole.encoder.read_bytes()
    )
    assert whole.batch_size == 8


def test_a_batch_that_shrinks_still_divides(store_factory, make_settings, tmp_path):
    settings = make_settings("run.batch_size=64", "run.accumulate=4")
    assert pretrain([store_factory(rows=1, cols=11)], settings, tmp_path / "run").batch_size == 8
    with pytest.raises(TrainingError, match="must be at least 8"):
        pretrain([store_factory("tiny", rows=1, cols=7)], settings, tmp_path / "tiny")


@pytest.mark.parametrize(
    "changes", [{"batch_size": 10, "accumulate": 4}, {"batch_size": 4, "accumulate": 4}, {"accumulate": 0}]
)
def test_micro_batches_must_divide_the_batch(changes):
    with pytest.raises(SettingsError, match=r"run\.accumulate"):
        RunSettings(**changes)


def test_rounding_is_of_gpus_only_and_given_back():
    places = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [place.fp32_precision for place in places]
    for wanted in (True, False):
        with float32_rounding(wanted, torch.device("cuda")):
            assert {place.fp32_precision for place in places} == {"tf32" if wanted else "ieee"}
        assert [place.fp32_precision for place in places] == before
    with float32_rounding(True, CPU):
        assert [place.fp32_precision for place in places] == before
