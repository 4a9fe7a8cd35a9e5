"""Whole steps on a CUDA device: they wait for nothing, fit into what they promise, and compile."""

import contextlib
import math

import pytest
import torch

from simtriplet.pretrain.batches import BatchMaker
from simtriplet.pretrain.cohort import Cohort
from simtriplet.pretrain.compiling import make_run_objective
from simtriplet.pretrain.distributed import World
from simtriplet.pretrain.network import Network
from simtriplet.pretrain.optimiser import set_learning_rate
from simtriplet.pretrain.precision import pick_device, pick_precision
from simtriplet.pretrain.regate import RunPlace
from simtriplet.pretrain.schedule import plan_schedule
from simtriplet.pretrain.step_log import StepLog
from simtriplet.pretrain.tiles import open_tiles
from simtriplet.pretrain.trainer import pretrain

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none"),
]


class Steps:
    """What the trainer does in a step, without what it does between steps."""

    def __init__(self, store, source, settings):
        device = pick_device(settings.run.device)
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        place = RunPlace(device, pick_precision(settings.run.precision, device), layout)
        self.objective = make_run_objective(settings, device)
        cohort = Cohort([store], neighbours=settings.data.neighbours)
        self.batches = BatchMaker(settings, cohort, source, place, World())
        sampler = self.batches.sampler
        self.schedule = plan_schedule(settings, steps_per_epoch=sampler.steps_per_epoch, batch_size=sampler.batch_size)
        self.network = Network(settings, place, self.schedule, World(), with_predictor=self.objective.uses_predictor)
        self.network.model.train()
        self.log = StepLog(total_steps=self.schedule.total_steps, batch_size=sampler.batch_size)

    def views(self, step):
        return self.batches.make(step, is_last=False).views

    def train(self, views, step):
        lr = set_learning_rate(self.network.optimiser, self.schedule, step)
        outcome = self.network.updater.step(views, lambda outputs, _: self.objective(outputs), measure_gradient=True)
        self.log.add(outcome, lr=lr)
        return outcome


@contextlib.contextmanager
def steps_of(store, settings):
    device = pick_device(settings.run.device)
    numbering = Cohort([store], neighbours=None).numbering
    with open_tiles(numbering, device=device, tier=settings.data.storage) as source:
        yield Steps(store, source, settings)


@contextlib.contextmanager
def no_waiting():
    """Any wait of the host for the device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("extra", ["run.precision=fp32", "run.precision=bf16", "run.precision=fp16", "run.on_nan=skip"])
@pytest.mark.parametrize("tier", ["device", "host", "stream"])
def test_a_whole_step_waits_for_nothing(store_factory, make_settings, tier, extra):
    settings = make_settings("run.device=cuda", f"data.storage={tier}", "views.rotations90=true", extra)
    with steps_of(store_factory(rows=8, cols=10), settings) as steps:  # ten steps an epoch
        for step in range(4):
            steps.train(steps.views(step), step)
        with no_waiting():
            for step in range(4, 8):
                steps.train(steps.views(step), step)
        report = steps.log.report(step=8, epoch=1)[0]
    assert math.isfinite(report.loss)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("asked", ["encoder", "step"])
def test_compiled_runs_train_alike(store_factory, make_settings, tmp_path, asked, precision):
    """With CUDA graphs for the whole step; losses that were kept stay what they were when later steps replay the graphs."""
    stores = [store_factory()]
    small = ["run.device=cuda", f"run.precision={precision}", "run.tf32=false", "run.epochs=4", "run.log_every_steps=3"]
    losses = {"off": [], asked: []}
    results = [
        pretrain(stores, make_settings(*small, f"run.compile={each}"), tmp_path / each, progress=losses[each].append)
        for each in losses
    ]
    for one, other in zip(*losses.values(), strict=True):
        if precision == "fp32" or one.step == 3:  # rounding to 8 or 11 bits takes two runs apart
            assert other.loss == pytest.approx(one.loss, abs=1e-3 if precision == "fp32" else 3e-2)
        assert math.isfinite(other.loss)
    names = [list(torch.load(each.out / "checkpoints" / "last.pt", weights_only=True)["model"]) for each in results]
    assert names[0] == names[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("extra", ["run.accumulate=2", "run.on_nan=skip", "objective.name=vicreg"])
def test_compiled_steps_go_with_the_other_options(store_factory, make_settings, tmp_path, extra):
    small = ["run.device=cuda", "run.tf32=false", "run.precision=fp32", extra]
    stores = [store_factory()]
    one = pretrain(stores, make_settings(*small), tmp_path / "plain")
    other = pretrain(stores, make_settings(*small, "run.compile=step"), tmp_path / "compiled")
    assert other.loss == pytest.approx(one.loss, rel=1e-3, abs=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_step_waits_for_nothing(store_factory, make_settings):
    settings = make_settings("run.device=cuda", "data.storage=device", "run.compile=step")
    with steps_of(store_factory(rows=8, cols=10), settings) as steps:
        for step in range(5):  # compiles, warms up and records the graphs
            steps.train(steps.views(step), step)
        with no_waiting():
            for step in range(5, 9):
                steps.train(steps.views(step), step)


def test_a_step_that_overflows_in_fp16_changes_nothing(store_factory, make_settings):
    settings = make_settings("run.device=cuda", "run.precision=fp16", "run.on_nan=skip")
    with steps_of(store_factory(), settings) as steps:
        views = steps.views(0)
        for step in range(20):  # until the scale is one that the gradients bear
            if not steps.train(views, step).skipped:
                break
        model, scaler = steps.network.model, steps.network.scaler
        before, scale = {name: value.clone() for name, value in model.state_dict().items()}, scaler.get_scale()
        assert bool(steps.train(torch.full_like(views, math.inf), 20).skipped)
        assert scaler.get_scale() < scale
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), name
        assert not bool(steps.train(views, 21).skipped)
        assert any(not torch.equal(value, before[name]) for name, value in model.named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("view_px", "limit_gb", "extra"),
    [(128, 8, ()), (224, 16, ("run.activation_checkpointing=true",))],
)
def test_the_published_batch_fits_a_card_of_16_gb(store_factory, make_settings, view_px, limit_gb, extra):
    """ResNet-50, 128 triplets, mixed precision; the cap makes anything more an error."""
    total = torch.cuda.get_device_properties(0).total_memory
    if total < 16e9:
        pytest.skip("the GPU has less than 16 GB itself")
    network = ["model.backbone=resnet50", "model.projector_dim=2048", "model.predictor_dim=512", "run.batch_size=128"]
    place = ["run.device=cuda", "run.precision=bf16", f"data.image_size_px={view_px}", "data.storage=device"]
    settings = make_settings(*network, *place, *extra)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_per_process_memory_fraction(16e9 / total)
    try:
        with steps_of(store_factory(rows=12, cols=24, size_px=view_px), settings) as steps:
            for step in range(3):
                loss = steps.train(steps.views(step), step).losses.loss
            assert math.isfinite(loss)
        assert torch.cuda.max_memory_reserved() < limit_gb * 1e9
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
