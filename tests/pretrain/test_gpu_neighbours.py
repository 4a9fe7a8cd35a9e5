"""Weights, warm-in and choosing neighbours anew on a CUDA device: no step waits, and a GPU keeps what a CPU keeps."""

import numpy as np
import pytest
import torch
from torch import nn

from simtriplet.pretrain.cohort import Cohort
from simtriplet.pretrain.model import ViewOutputs
from simtriplet.pretrain.neighbours import NeighbourDraw
from simtriplet.pretrain.objective import OBJECTIVES, make_objective
from simtriplet.pretrain.regate import NeighbourRegate, RunPlace
from simtriplet.pretrain.settings import ObjectiveSettings
from simtriplet.pretrain.tiles import open_tiles
from simtriplet.pretrain.trainer import pretrain
from simtriplet.pretrain.warm_in import WarmIn

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none"),
]


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_neither_draw_nor_loss_waits_for_the_device(store_factory, name):
    graph = store_factory().neighbours()
    device = torch.device("cuda")
    weights = np.linspace(0, 1, len(graph.indices), dtype=np.float32)
    draw = NeighbourDraw([graph], device=device, weights=[weights])
    draw.keep(torch.arange(draw.n_edges) % 3 > 0)
    ids = torch.arange(24, device=device)
    generator = torch.Generator(device).manual_seed(0)
    objective = make_objective(ObjectiveSettings(name=name))
    z = [torch.randn(24, 16, device=device, requires_grad=True) for _ in range(3)]

    def step():
        pairs = draw.draw_pairs(ids, generator)
        outputs = ViewOutputs(tuple(2 * each for each in z), tuple(z))
        objective(outputs, warm_in=WarmIn(5).on(device, 2), pair_weights=pairs.weights).loss.backward()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("tier", ["device", "host", "stream"])
def test_a_gpu_keeps_the_neighbours_that_a_cpu_keeps(store_factory, make_settings, tier):
    stores = [store_factory("a"), store_factory("b", seed=1)]
    settings = make_settings("data.regate_every_epochs=1", "data.regate_quantile=0.4")
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    states = []
    for device, of_device in ((torch.device("cpu"), "device"), (torch.device("cuda"), tier)):
        cohort = Cohort(stores, neighbours="spatial")
        with open_tiles(cohort.numbering, device=device, tier=of_device) as source:
            regate = NeighbourRegate(
                settings,
                neighbours=cohort.neighbour_draw(source.id_device),
                source=source,
                offsets=cohort.numbering.offsets.tolist(),
                steps_per_epoch=3,
                place=RunPlace(device, "fp32", torch.contiguous_format),
            )
            regate.choose(backbone)
        states.append(np.unpackbits(regate.neighbours.state().numpy(), count=regate.neighbours.n_edges))
    assert 0.5 < states[0].mean() < 0.8
    assert (states[0] == states[1]).mean() > 0.97  # a pair right at the quantile may fall on either side


@pytest.mark.parametrize("objective", ["simtriplet", "vicreg", "barlow"])
def test_a_run_with_every_option_goes_on_after_a_stop(store_factory, make_settings, tmp_path, objective):
    settings = make_settings(
        "run.device=cuda",
        f"objective.name={objective}",
        "run.epochs=5",
        "objective.inter_warmup_epochs=1.5",
        'data.pair_weights=["distance", "tissue"]',
        "data.regate_every_epochs=2",
    )
    stores = [store_factory("a")]

    def stop(report):
        if report.step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(stores, settings, tmp_path / "run", progress=stop)
    file = tmp_path / "run" / "checkpoints" / "last.pt"
    kept = torch.load(file, weights_only=True)["kept_edges"]
    assert len(kept) > 0
    assert pretrain(stores, settings, tmp_path / "run", resume=True).steps == 15
