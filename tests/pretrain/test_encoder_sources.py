"""Encoders of other libraries by name: from files, from what was fetched before, and never from the network unasked."""

import dataclasses
import importlib.util

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision

from simtriplet.pretrain.encoder import load_encoder
from simtriplet.wsi.errors import CheckpointError, MissingDependencyError, UnknownNameError

HAS_TIMM = importlib.util.find_spec("timm") is not None
needs_timm = pytest.mark.skipif(not HAS_TIMM, reason="timm is not installed")


@pytest.fixture
def hub(tmp_path):
    """An empty torch hub, and a proxy that leads nowhere in case anything should call."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    yield tmp_path / "hub" / "checkpoints"
    torch.hub.set_dir(before)


@pytest.fixture
def offline(monkeypatch):
    calls = []

    def refuse(*arguments, **_):
        calls.append(arguments)
        raise OSError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    return calls


@pytest.mark.parametrize("source", ["torchvision:resnet18", "timm:resnet18"])
def test_nothing_is_fetched_unless_allowed(hub, offline, source):
    with pytest.raises(CheckpointError, match=r"names no file; write .*:FILE, or pass --allow-download"):
        load_encoder(source)
    assert offline == []
    assert not hub.exists()


def test_a_download_that_fails_is_told_in_one_line(hub, offline):
    with pytest.raises(CheckpointError, match=r"cannot be fetched .*; write torchvision:resnet18:FILE") as caught:
        load_encoder("torchvision:resnet18", allow_download=True)
    assert offline
    assert "\n" not in str(caught.value)


def test_what_torchvision_fetched_before_is_found_by_name(hub, offline):
    network = torchvision.models.resnet18(weights=None)
    hub.mkdir(parents=True)
    name = torchvision.models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    torch.save(network.state_dict(), hub / name)
    encoder = load_encoder("torchvision:resnet18")
    assert torch.equal(encoder.backbone.conv1.weight, network.conv1.weight)
    assert (encoder.info.objective, encoder.info.image_size_px) == ("torchvision", 224)
    assert offline == []


def test_an_unknown_network_is_told_as_such():
    with pytest.raises(UnknownNameError, match="did you mean 'resnet50'"):
        load_encoder("torchvision:resnet5O")


@pytest.mark.parametrize(("name", "size"), [("resnet18", 128), ("resnet18:48", 48)])
def test_random_encoders_may_say_their_size(name, size):
    assert load_encoder(f"random:{name}").info.image_size_px == size


@pytest.mark.skipif(HAS_TIMM, reason="timm is installed")
def test_without_timm_it_is_named(tmp_path):
    with pytest.raises(MissingDependencyError, match="needs the package timm"):
        load_encoder(f"timm:resnet18:{tmp_path / 'w.pth'}")


@needs_timm
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_timm_weights_come_from_a_file_with_timms_size_and_normalisation(tmp_path, suffix):
    import timm

    torch.manual_seed(1)
    network = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(network.state_dict(), file)
    else:
        safetensors.torch.save_file(network.state_dict(), file)
    encoder = load_encoder(f"timm:vit_tiny_patch16_224:{file}")
    info = encoder.info
    assert (info.backbone, info.objective, info.image_size_px) == ("timm:vit_tiny_patch16_224", "timm", 224)
    assert (info.mean, info.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    tiles = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    images = (torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    with torch.inference_mode():
        wanted = network.eval().forward_head(network.forward_features(images), pre_logits=True)
    torch.testing.assert_close(encoder.embed(tiles), wanted, atol=1e-4, rtol=1e-4)
    assert dataclasses.asdict(info)["feature_dim"] == 192


@needs_timm
@pytest.mark.filterwarnings("ignore")
def test_random_timm_networks_have_a_name_with_a_colon():
    encoder = load_encoder("random:timm:resnet18:48")
    assert (encoder.info.backbone, encoder.info.image_size_px) == ("timm:resnet18", 48)
    assert load_encoder("random:timm:resnet18").info.image_size_px == 128
