import pickle

import pytest
import safetensors.torch
import torch
import torchvision

from simtriplet.pretrain.backbone import BACKBONES, make_backbone, read_state_dict
from simtriplet.wsi.errors import CheckpointError, UnknownNameError


@pytest.mark.parametrize(("name", "dim"), [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)])
def test_a_backbone_gives_features_of_the_length_it_says(name, dim):
    backbone = make_backbone(name)
    assert backbone.feature_dim == dim
    with torch.inference_mode():
        assert backbone.module.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, dim)


def test_an_unknown_backbone_lists_the_known():
    assert {"resnet18", "resnet34", "resnet50", "resnet101"} <= set(BACKBONES)
    with pytest.raises(UnknownNameError, match="did you mean 'resnet50'"):
        make_backbone("resnet5O")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_come_from_a_file_with_or_without_a_head(tmp_path, suffix):
    theirs = torchvision.models.resnet18(weights=None)
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(theirs.state_dict(), file)
    else:
        safetensors.torch.save_file(theirs.state_dict(), file)
    ours = make_backbone("resnet18", weights=file).module
    theirs.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(ours.eval()(images), theirs.eval()(images))


def test_weights_of_another_network_are_refused_in_one_line(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(torchvision.models.resnet34(weights=None).state_dict(), file)
    with pytest.raises(CheckpointError, match="are of another network") as caught:
        make_backbone("resnet18", weights=file)
    assert "\n" not in str(caught.value)


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


@pytest.mark.parametrize("content", ["missing", "empty", "noise", "pickle", "list"])
def test_what_is_no_state_dict_is_refused_in_one_line(tmp_path, content):
    file = tmp_path / "weights.pth"
    if content == "pickle":
        file.write_bytes(pickle.dumps(Bomb()))
    elif content == "list":
        torch.save([1, 2], file)
    elif content != "missing":
        file.write_bytes(b"" if content == "empty" else bytes(range(256)) * 10)
    with pytest.raises(CheckpointError) as caught:
        read_state_dict(file)
    assert "\n" not in str(caught.value)
