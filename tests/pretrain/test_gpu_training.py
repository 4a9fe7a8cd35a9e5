"""The key promises on a CUDA device."""

import math

import pytest
import torch

from simtriplet.pretrain.encoder import load_encoder
from simtriplet.pretrain.neighbours import NeighbourDraw
from simtriplet.pretrain.settings import ViewSettings
from simtriplet.pretrain.trainer import pretrain
from simtriplet.pretrain.views import ViewMaker

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none"),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_trains(store_factory, make_settings, tmp_path, precision):
    settings = make_settings("run.device=cuda", f"run.precision={precision}")
    result = pretrain([store_factory()], settings, tmp_path / "run")
    assert result.finished
    assert math.isfinite(result.loss)
    assert result.z_std > 0


@pytest.mark.parametrize("tier", ["device", "host", "stream"])
def test_every_tier_starts_from_the_same_loss(store_factory, make_settings, tmp_path, tier):
    first = []
    for name in ("device", tier):
        settings = make_settings("run.device=cuda", f"data.storage={name}", "objective.name=simsiam", "run.max_steps=2")
        losses = []
        pretrain([store_factory()], settings, tmp_path / f"{name}-{len(first)}", progress=losses.append)
        first.append(losses[0].loss)
    assert first[0] == pytest.approx(first[1], abs=1e-3)


def test_views_agree_with_the_cpu():
    tiles = torch.randint(0, 256, (16, 48, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    maker = ViewMaker(ViewSettings(rotations90=True), image_size_px=32)
    parameters = maker.draw(tiles, torch.Generator().manual_seed(1))
    on_gpu = type(parameters)(*(values.cuda() for values in parameters))
    torch.testing.assert_close(
        maker.apply(tiles.cuda(), on_gpu).cpu(), maker.apply_at_once(tiles, parameters), atol=1e-3, rtol=0
    )


def test_a_step_never_waits_for_the_device(store_factory):
    graph = store_factory().neighbours()
    device = torch.device("cuda")
    draw = NeighbourDraw([graph], device=device)
    ids = torch.arange(24, device=device)
    tiles = torch.zeros(24, 32, 32, 3, dtype=torch.uint8, device=device)
    maker = ViewMaker(ViewSettings(), image_size_px=32)
    generator = torch.Generator(device).manual_seed(0)
    maker(tiles[draw.draw(ids, generator)], generator)
    torch.cuda.set_sync_debug_mode("error")
    try:
        maker(tiles[draw.draw(ids, generator)], generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_resumed_run_goes_on(store_factory, make_settings, tmp_path):
    stores, settings = [store_factory()], make_settings("run.device=cuda")

    def stop(report):
        if report.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(stores, settings, tmp_path / "run", progress=stop)
    assert pretrain(stores, settings, tmp_path / "run", resume=True).steps == 6


def test_an_encoder_moves_to_the_device(store_factory):
    store = store_factory()
    encoder = load_encoder("random:resnet18:32")
    tiles = store.images.read([0, 1, 2])
    on_cpu = encoder.embed(tiles)
    on_gpu = encoder.to("cuda").embed(tiles)
    assert on_gpu.device.type == "cuda"
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=1e-2, rtol=1e-2)
