"""Two processes that share a batch train as one process does that has it to itself."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from simtriplet.pretrain.backbone import BACKBONES, Backbone
from simtriplet.pretrain.distributed import World
from simtriplet.pretrain.joint_norm import JointBatchNorm, synchronise_norms
from simtriplet.pretrain.model import ViewOutputs, make_model
from simtriplet.pretrain.trainer import pretrain

PROGRAM = """
import sys
from pathlib import Path

import torch
from torch import nn

from simtriplet.pretrain import load_settings, pretrain
from simtriplet.pretrain.backbone import BACKBONES, Backbone
from simtriplet.wsi.errors import SimTripletError
from simtriplet.wsi.store import open_stores


def smooth(zero_init_residual):
    layers = [nn.Conv2d(3, 16, 5, 2, bias=False), nn.BatchNorm2d(16), nn.Tanh()]
    layers += [nn.Conv2d(16, 32, 3, 2, bias=False), nn.BatchNorm2d(32), nn.Tanh()]
    return Backbone(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 32)


torch.set_num_threads(1)
BACKBONES.add("smooth", smooth)
out, store, resume, *overrides = sys.argv[1:]
try:
    result = pretrain(open_stores([store]), load_settings(overrides=overrides), Path(out), resume=resume == "resume")
except SimTripletError as error:
    raise SystemExit(f"refused: {error}") from error
print(f"done {result.steps} {result.loss}", flush=True)
"""

SMALL = [
    "data.image_size_px=32",
    "model.backbone=smooth",
    "model.projector_dim=16",
    "model.predictor_dim=8",
    "optimiser.warmup_epochs=0.5",
    "run.epochs=2",
    "run.batch_size=16",
    "run.device=cpu",
    "run.log_every_steps=1",
    "run.checkpoint_every_epochs=1",
    "run.monitor_every_epochs=1",
]


VICREG = [
    "objective.name=vicreg",
    "optimiser.base_lr=0.001",  # its gradients are a hundred times those of cosines
    "run.accumulate=2",
    "run.activation_checkpointing=true",
]


def smooth(zero_init_residual):
    layers = [nn.Conv2d(3, 16, 5, 2, bias=False), nn.BatchNorm2d(16), nn.Tanh()]
    layers += [nn.Conv2d(16, 32, 3, 2, bias=False), nn.BatchNorm2d(32), nn.Tanh()]
    return Backbone(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 32)


@pytest.fixture(scope="module", autouse=True)
def smooth_backbone():
    """Without ReLU, whose slope jumps at 0: one activation in 200,000 that rounds to the other side moves a gradient by a
    thousandth, and in five steps the two runs have little to do with each other any more."""
    if "smooth" not in BACKBONES:
        BACKBONES.add("smooth", smooth)


def run_two(tmp_path, store, out, *overrides, resume=False):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    command += [str(out), str(store.path), "resume" if resume else "begin", *SMALL, *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def weights_of(out):
    return torch.load(out / "checkpoints" / "last.pt", weights_only=True)["model"]


def assert_trained_alike(out, other, settings):
    """Weights and statistics differ by less than a hundredth of how far they have come."""
    torch.manual_seed(settings.run.seed)
    with_predictor = settings.objective.name == "simtriplet"
    start = make_model(settings.model, with_predictor=with_predictor).state_dict()
    one, two = weights_of(out), weights_of(other)
    assert one.keys() == two.keys() == start.keys()
    for name, begun in start.items():
        way = (two[name] - begun).double().norm()
        assert way > 0, name
        assert (one[name] - two[name]).double().norm() <= 0.01 * way + 1e-6, name


def lines_of(out, name="metrics.jsonl"):
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


@pytest.mark.parametrize(
    "changes",
    [["objective.name=simtriplet"], VICREG],
    ids=["simtriplet", "vicreg in micro-batches"],
)
def test_two_processes_do_what_one_does(store_factory, make_settings, tmp_path, changes):
    store, settings = store_factory(rows=8), make_settings(*SMALL, *changes)
    one = pretrain([store], settings, tmp_path / "one").out
    done = run_two(tmp_path, store, tmp_path / "two", *changes)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done 6 ") == 2
    two = tmp_path / "two"
    lines, expected = lines_of(two), lines_of(one)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]  # one process writes
    for line, wanted in zip(lines, expected, strict=True):
        for key in ("loss", "z_std", "grad_norm"):
            assert line[key] == pytest.approx(wanted[key], rel=1e-4, abs=1e-5), (key, line["step"])
    assert_trained_alike(two, one, settings)
    assert [line["step"] for line in lines_of(two, "monitor.jsonl")] == [3, 6]
    assert (two / "encoder.safetensors").exists()


def test_two_processes_refuse_a_taken_folder_and_resume_a_stopped_run(store_factory, make_settings, tmp_path):
    store, settings = store_factory(rows=8), make_settings(*SMALL)
    whole = pretrain([store], settings, tmp_path / "whole").out
    stopped = run_two(tmp_path, store, tmp_path / "run", "run.max_minutes=1e-9")
    assert stopped.returncode == 0, stopped.stderr
    assert stopped.stdout.count("done 0 ") == 2
    refused = run_two(tmp_path, store, tmp_path / "run")
    assert refused.returncode != 0
    assert "holds a run; pass --resume" in refused.stderr
    resumed = run_two(tmp_path, store, tmp_path / "run", resume=True)
    assert resumed.returncode == 0, resumed.stderr
    assert_trained_alike(tmp_path / "run", whole, settings)


def test_slices_of_all_processes_make_up_each_micro_batch():
    """2 views of 12 triplets, 3 micro-batches, 2 processes."""
    joint = torch.arange(24)
    own = [World(rank, 2).own(joint, n_views=2, accumulate=3).view(2, 3, 2) for rank in range(2)]
    whole = joint.view(2, 3, 4)
    assert torch.equal(torch.cat(own, dim=2), whole)
    assert torch.equal(World().own(joint, n_views=2, accumulate=3), joint)
    images = torch.randn(24, 3, 2)
    assert torch.equal(World(1, 2).own(images, n_views=2, accumulate=3), images[own[1].flatten()])


@pytest.fixture
def alone(tmp_path):
    """A process group of one process: what is added over all is what it was."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 4, 3)])
@pytest.mark.parametrize("affine", [True, False])
def test_the_joint_norm_of_one_process_is_batch_norm(alone, shape, affine):
    plain: nn.Module = nn.BatchNorm1d(5, affine=affine) if len(shape) == 2 else nn.BatchNorm2d(5, affine=affine)
    holder = nn.Sequential(nn.Identity(), plain)
    joint = synchronise_norms(nn.Sequential(nn.Identity(), type(plain)(5, affine=affine)), torch.device("cpu"))
    assert isinstance(joint[1], JointBatchNorm)
    assert joint.state_dict().keys() == holder.state_dict().keys()
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 + 7).requires_grad_()
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    outputs = []
    for module in (holder, joint):
        x.grad = None
        y = module(x)
        (y * weight).sum().backward()
        outputs.append((y.detach(), x.grad.clone(), *[each.grad.clone() for each in module.parameters()]))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
    for one, other in zip(joint.buffers(), holder.buffers(), strict=True):
        torch.testing.assert_close(one, other)
    joint.eval()
    torch.testing.assert_close(joint(x), holder.eval()(x))


def test_joined_outputs_of_one_process_are_its_own():
    outputs = ViewOutputs((torch.ones(2, 3),), (torch.zeros(2, 3), torch.ones(2, 3)))
    assert World().join(outputs) is outputs
