import importlib.util
import pickle

import pytest
import safetensors.torch
import torch
import torchvision

from simtriplet.pretrain.backbone import BACKBONES, check_backbone, make_backbone, read_state_dict
from simtriplet.pretrain.settings import ModelSettings
from simtriplet.pretrain.trainer import pretrain
from simtriplet.wsi.errors import CheckpointError, SettingsError, UnknownNameError

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
their_warnings = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


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


@needs_timm
@their_warnings
@pytest.mark.parametrize(
    "name", ["resnet10t", "convnext_atto", "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"]
)
def test_weights_of_timm_come_from_a_file_whatever_their_head_is_called(tmp_path, name):
    import timm

    torch.manual_seed(2)
    theirs = timm.create_model(name, pretrained=False)
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    ours = make_backbone(f"timm:{name}", weights=tmp_path / "weights.safetensors")
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    theirs.reset_classifier(0)
    with torch.inference_mode():
        features = ours.module.eval()(images)
        assert torch.equal(features, theirs.eval()(images))
    assert features.shape == (1, ours.feature_dim)


@needs_timm
@their_warnings
def test_a_network_for_one_size_is_made_for_the_runs(store_factory, make_settings, tmp_path):
    """Its position embeddings are resampled where it starts from a file, and timm makes it again as the config says."""
    import json

    import timm
    from timm.layers import resample_abs_pos_embed

    from simtriplet.pretrain.encoder import load_encoder

    theirs = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    ours = make_backbone("timm:vit_tiny_patch16_224", weights=tmp_path / "vit.pth", image_size_px=48).module
    wanted = resample_abs_pos_embed(theirs.pos_embed, new_size=(3, 3), num_prefix_tokens=1)
    torch.testing.assert_close(ours.pos_embed, wanted)

    small = ["model.backbone='timm:vit_tiny_patch16_224'", "data.image_size_px=48", "run.max_steps=1"]
    weights = f"model.weights='{tmp_path / 'vit.pth'}'"
    out = pretrain([store_factory()], make_settings(*small, weights), tmp_path / "run").out
    config = json.loads((out / "config.json").read_text())
    assert config["model_args"] == {"img_size": 48}
    assert config["pretrained_cfg"]["fixed_input_size"]
    assert "num_classes=0, img_size=48)" in (out / "README.md").read_text()
    network = timm.create_model(
        config["architecture"],
        checkpoint_path=str(out / "encoder.safetensors"),
        num_classes=0,
        **config["model_args"],
    )
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for encoder in (load_encoder(out), load_encoder(out / "checkpoints" / "last.pt")):
            torch.testing.assert_close(network.eval()(images), encoder(images), atol=1e-5, rtol=1e-4)


@needs_timm
@their_warnings
@pytest.mark.parametrize("size", [17, 100])
@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "vit_tiny_patch16_224", "resnet10t"])
def test_most_networks_take_any_size(name, size):
    check_backbone(ModelSettings(backbone=f"timm:{name}"), image_size_px=size)
    backbone = make_backbone(f"timm:{name}", image_size_px=size)
    with torch.inference_mode():
        features = backbone.module.eval()(torch.zeros(1, 3, size, size))
    assert features.shape == (1, backbone.feature_dim)


@needs_timm
@their_warnings
@pytest.mark.parametrize("size", [17, 100])
def test_a_size_that_a_network_cannot_take_is_refused_before_anything_is_written(
    store_factory, make_settings, tmp_path, size
):
    """It cannot be made for 17 px; made for 100 px it takes no image."""
    settings = make_settings("model.backbone='timm:maxvit_rmlp_pico_rw_256'", f"data.image_size_px={size}")
    with pytest.raises(SettingsError, match=rf"\b{size}\b.*image_size_px|image_size_px {size}") as caught:
        pretrain([store_factory()], settings, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@needs_timm
@their_warnings
def test_the_size_that_a_network_cannot_see_is_named():
    with pytest.raises(SettingsError, match=r"image_size_px 16: backbone 'timm:inception_v3' takes no such images"):
        check_backbone(ModelSettings(backbone="timm:inception_v3"), image_size_px=16)


@pytest.mark.parametrize(
    ("changes", "error"),
    [(["model.backbone=resnet5O"], UnknownNameError), (["model.weights=none.pth"], CheckpointError)],
)
def test_what_cannot_be_made_is_refused_before_anything_is_written(
    store_factory, make_settings, tmp_path, changes, error
):
    with pytest.raises(error):
        pretrain([store_factory()], make_settings(*changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_check_leaves_the_random_state_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    check_backbone(ModelSettings(backbone="resnet18"), image_size_px=32)
    assert torch.equal(torch.get_rng_state(), before)
