import json

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
import torchvision.transforms.v2.functional as tv

from simtriplet.pretrain.encoder import Encoder, load_encoder, save_encoder
from simtriplet.pretrain.trainer import pretrain
from simtriplet.wsi.errors import CheckpointError, UnknownNameError


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 40, 40, 3), dtype=np.uint8)


@pytest.fixture
def run(store_factory, make_settings, tmp_path):
    settings = make_settings("model.backbone=resnet18", "run.max_steps=2", "run.batch_size=4", "data.image_size_px=32")
    return pretrain([store_factory(patient_id="p")], settings, tmp_path / "run").out


def test_the_weights_are_a_torchvision_networks_without_its_head(run):
    network = torchvision.models.resnet18(weights=None)
    keys = network.load_state_dict(safetensors.torch.load_file(run / "encoder.safetensors"), strict=False)
    assert keys.missing_keys == ["fc.weight", "fc.bias"]
    assert keys.unexpected_keys == []


def test_features_are_those_of_the_trained_network_on_resized_normalised_tiles(run, tiles):
    encoder = load_encoder(run)
    network = torchvision.models.resnet18(weights=None)
    network.load_state_dict(safetensors.torch.load_file(run / "encoder.safetensors"), strict=False)
    network.fc = torch.nn.Identity()
    images = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255
    images = torch.nn.functional.interpolate(images, size=(32, 32), mode="bilinear", antialias=True)
    images = tv.normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.inference_mode():
        wanted = network.eval()(images)
    got = encoder.embed(tiles)
    assert (got.shape, got.dtype) == ((5, 512), torch.float32)
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(encoder.embed(torch.from_numpy(tiles)), got)


def test_a_tiles_features_do_not_depend_on_the_batch_it_is_in(run, tiles):
    encoder = load_encoder(run)
    encoder.train()
    alone = torch.cat([encoder.embed(tiles[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(encoder.embed(tiles), alone, atol=1e-4, rtol=1e-4)
    assert encoder.embed(tiles[:0]).shape == (0, 512)


def test_a_head_is_trained_on_the_features(tiles):
    encoder = load_encoder("random:resnet18:32")
    features = encoder.embed(tiles)
    head = torch.nn.Linear(512, 2)
    head(features).sum().backward()
    torch.testing.assert_close(head.weight.grad, features.sum(0).expand(2, -1))
    assert not features.requires_grad


def test_bf16_features_are_float32_and_close(run, tiles):
    encoder = load_encoder(run)
    exact, half = encoder.embed(tiles), encoder.embed(tiles, precision="bf16")
    assert half.dtype == torch.float32
    assert 0 < (half - exact).norm() / exact.norm() < 0.05


def test_a_run_folder_and_its_file_are_one_encoder_with_a_verified_hash(run):
    by_folder, by_file = load_encoder(run), load_encoder(run / "encoder.safetensors")
    assert by_folder.info == by_file.info
    assert by_folder.info.patients == ("p",)
    assert by_folder.info.slides == ("slide",)
    assert len(by_folder.info.checkpoint_hash) == 64
    assert dict(by_folder.info.versions)["torch"] == torch.__version__.partition("+")[0]
    assert not by_folder.training


@pytest.mark.parametrize("size", [None, 64])
def test_random_encoders_are_seeded_and_leave_the_random_state_alone(size):
    name = "random:resnet18" if size is None else f"random:resnet18:{size}"
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, other = load_encoder(name), load_encoder(name)
    assert torch.equal(torch.get_rng_state(), before)
    assert one.info == other.info
    assert one.info.image_size_px == (size or 128)
    assert (one.info.objective, one.info.mpp, one.info.patients) == ("random", None, ())
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_torchvision_weights_come_from_a_file(tmp_path, tiles):
    network = torchvision.models.resnet18(weights=None)
    torch.save(network.state_dict(), tmp_path / "r18.pth")
    encoder = load_encoder(f"torchvision:resnet18:{tmp_path / 'r18.pth'}")
    assert (encoder.info.image_size_px, encoder.info.objective) == (224, "torchvision")
    assert torch.equal(encoder.backbone.conv1.weight, network.conv1.weight)


@pytest.mark.parametrize("wrong", ["shape", "dtype", "channels"])
def test_tiles_of_another_shape_are_refused(tiles, wrong):
    encoder = load_encoder("random:resnet18:32")
    bad = {"shape": tiles[0], "dtype": tiles.astype(np.float32), "channels": tiles.transpose(0, 3, 1, 2)}[wrong]
    with pytest.raises(ValueError, match="must be"):
        encoder.embed(bad)


def damage(run, how):
    weights, info = run / "encoder.safetensors", run / "encoder.json"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-5])
    elif how == "noise":
        weights.write_bytes(b"PK" * 400)
    elif how == "other weights":
        state = safetensors.torch.load_file(weights)
        state["conv1.weight"] += 1
        safetensors.torch.save_file(state, weights)
    elif how == "no weights":
        weights.unlink()
    elif how == "no info":
        info.unlink()
    elif how == "bad info":
        info.write_text("{")
    elif how == "odd info":
        info.write_text(json.dumps([1]))
    elif how == "info of more":
        info.write_text(json.dumps({**json.loads(info.read_text()), "colour": 1}))


@pytest.mark.parametrize(
    "how", ["truncated", "noise", "other weights", "no weights", "no info", "bad info", "odd info", "info of more"]
)
def test_a_damaged_encoder_is_refused_in_one_line(run, how):
    damage(run, how)
    with pytest.raises(CheckpointError) as caught:
        load_encoder(run)
    assert "\n" not in str(caught.value)


def test_the_scale_of_its_images_follows_from_tiles_and_views(store_factory, make_settings, tmp_path):
    """A tile of 64 px at 0.5 um resized to 48 px has 2/3 um a pixel."""
    settings = make_settings("run.max_steps=1", "data.image_size_px=48", "run.compile=off")
    out = pretrain([store_factory(size_px=64)], settings, tmp_path / "run").out
    info = load_encoder(out).info
    assert (info.tile_size_px, info.image_size_px, info.mpp) == (64, 48, 0.5)
    assert info.image_mpp == pytest.approx(2 / 3)


def test_an_encoder_of_an_older_version_still_loads(run):
    info = json.loads((run / "encoder.json").read_text())
    for later in ("tile_size_px", "initial_weights", "initial_weights_hash", "simtriplet_checksum"):
        assert later in info
        del info[later]
    (run / "encoder.json").write_text(json.dumps(info))
    loaded = load_encoder(run).info
    assert (loaded.tile_size_px, loaded.image_mpp, loaded.initial_weights) == (None, None, None)


@pytest.mark.parametrize("source", ["nowhere", "random:resnet18:big", "random:resnet18:0", "torchvision:resnet18"])
def test_a_source_that_is_none_is_refused(source):
    with pytest.raises(CheckpointError):
        load_encoder(source)


def test_an_unknown_backbone_is_refused_by_name():
    with pytest.raises(UnknownNameError, match="resnet18"):
        load_encoder("random:resnet17")


def test_the_package_gives_its_names_lazily():
    import simtriplet.pretrain as package

    assert package.Encoder is Encoder
    assert set(package.__all__) == {name for name in package.__all__ if getattr(package, name)}
    with pytest.raises(AttributeError, match="nothing"):
        _ = package.nothing


def test_an_encoder_that_cannot_be_replaced_whole_stays_whole(run):
    """The weights meet a full disk, say: the description of the new ones must not stand beside the old ones."""
    before = load_encoder(run).info
    (run / "encoder.safetensors.partial").mkdir()
    other = load_encoder("random:resnet18:32")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_encoder(run, other.backbone, other.info)
    assert load_encoder(run).info == before
    assert not (run / "encoder.json.partial").exists()
