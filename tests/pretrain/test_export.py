"""The encoder as others load it: torchvision, timm, TorchScript, ONNX, and the card beside it."""

import hashlib
import importlib.util
import json

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision

from simtriplet.pretrain.backbone import make_backbone
from simtriplet.pretrain.encoder import load_encoder
from simtriplet.pretrain.export import export_onnx, export_torchscript
from simtriplet.pretrain.trainer import pretrain
from simtriplet.wsi.errors import MissingDependencyError, UnknownNameError

HAS_TIMM = importlib.util.find_spec("timm") is not None
HAS_ONNX = all(importlib.util.find_spec(name) is not None for name in ("onnx", "onnxscript"))
their_warnings = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


@pytest.fixture
def run(store_factory, make_settings, tmp_path):
    stores = [store_factory(name, patient_id=f"patient {name}", seed=seed) for seed, name in enumerate("ab")]
    settings = make_settings("model.backbone=resnet18", "run.max_steps=2", "run.batch_size=4")
    return pretrain(stores, settings, tmp_path / "run").out


@pytest.fixture
def images():
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_torchvision_loads_the_file_and_misses_only_its_head(run, images):
    network = torchvision.models.resnet18(weights=None)
    keys = network.load_state_dict(safetensors.torch.load_file(run / "encoder.safetensors"), strict=False)
    assert (keys.missing_keys, keys.unexpected_keys) == (["fc.weight", "fc.bias"], [])
    network.fc = torch.nn.Identity()
    with torch.inference_mode():
        assert torch.equal(network.eval()(images), load_encoder(run)(images))


def test_config_says_how_to_build_it_and_where_it_comes_from(run):
    config, info = json.loads((run / "config.json").read_text()), load_encoder(run).info
    assert (config["architecture"], config["num_features"], config["num_classes"]) == ("resnet18", 512, 0)
    wanted = {"input_size": [3, 32, 32], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert {key: config["pretrained_cfg"][key] for key in wanted} == wanted
    ours = config["simtriplet"]
    assert (ours["mpp"], ours["steps"], ours["slides"], ours["patients"]) == (0.5, 2, 2, 2)
    assert (ours["tile_mpp"], ours["tile_size_px"], ours["initial_weights"]) == (0.5, 32, None)
    assert ours["checkpoint_hash"] == info.checkpoint_hash
    assert "patient a" not in (run / "config.json").read_text()


@pytest.mark.skipif(not HAS_TIMM, reason="needs timm")
@their_warnings
def test_timm_loads_the_file_by_its_config(run, images):
    import timm

    config = json.loads((run / "config.json").read_text())
    network = timm.create_model(
        config["architecture"], checkpoint_path=str(run / "encoder.safetensors"), num_classes=config["num_classes"]
    )
    with torch.inference_mode():
        torch.testing.assert_close(network.eval()(images), load_encoder(run)(images), atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(not HAS_TIMM, reason="needs timm")
@their_warnings
def test_networks_of_timm_are_backbones(store_factory, make_settings, tmp_path):
    stores = [store_factory()]
    settings = make_settings("model.backbone='timm:resnet10t'", "run.epochs=1", "run.activation_checkpointing=true")
    out = pretrain(stores, settings, tmp_path / "run").out
    encoder = load_encoder(out)
    assert encoder.info.backbone == "timm:resnet10t"
    assert encoder.embed(stores[0].images.read([0, 1])).shape == (2, encoder.info.feature_dim)
    assert make_backbone("timm:convnext_atto").feature_dim == 320
    with pytest.raises(UnknownNameError, match="did you mean 'resnet10t'"):
        make_backbone("timm:resnet10")


@pytest.mark.skipif(HAS_TIMM, reason="timm is installed")
def test_networks_of_timm_without_timm_are_refused():
    with pytest.raises(MissingDependencyError, match=r"timm:vit_small.*not installed"):
        make_backbone("timm:vit_small")


@their_warnings
def test_torchscript_gives_the_same_features_for_any_number_of_images(run, images, tmp_path):
    encoder = load_encoder(run)
    export_torchscript(encoder, tmp_path / "encoder.pt")
    loaded = torch.jit.load(tmp_path / "encoder.pt")
    with torch.inference_mode():
        for n in (1, 5):
            torch.testing.assert_close(loaded(images[:n]), encoder(images[:n]), atol=1e-5, rtol=1e-4)
    assert [path.name for path in tmp_path.glob("*.partial")] == []


@their_warnings
def test_a_run_writes_the_forms_it_is_asked_for(store_factory, make_settings, images, tmp_path):
    settings = make_settings("model.backbone=resnet18", "run.max_steps=1", "run.export=['torchscript']")
    out = pretrain([store_factory()], settings, tmp_path / "run").out
    loaded, encoder = torch.jit.load(out / "encoder.torchscript.pt"), load_encoder(out)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images), encoder(images), atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(HAS_ONNX, reason="onnx is installed")
def test_onnx_without_its_packages_is_refused_before_the_run(store_factory, make_settings, tmp_path):
    with pytest.raises(MissingDependencyError, match=r"run\.export.*onnx.*not installed"):
        pretrain([store_factory()], make_settings("run.export=['onnx']"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not HAS_ONNX, reason="needs onnx and onnxscript")
@their_warnings
def test_onnx_gives_the_same_features(run, images, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    encoder = load_encoder(run)
    export_onnx(encoder, tmp_path / "encoder.onnx")
    session = runtime.InferenceSession(str(tmp_path / "encoder.onnx"), providers=["CPUExecutionProvider"])
    for n in (1, 5):
        (features,) = session.run(["features"], {"images": images[:n].numpy()})
        with torch.inference_mode():
            np.testing.assert_allclose(features, encoder(images[:n]).numpy(), atol=1e-4, rtol=1e-3)


def test_the_card_says_what_was_done_and_what_it_is_not_for(run):
    card = (run / "README.md").read_text()
    last = json.loads((run / "monitor.jsonl").read_text().splitlines()[-1])
    metrics = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert card.startswith("---\nlibrary_name: timm\n")
    assert "48 tiles of 2 slides, 2 patients" in card
    assert "2 steps of 4 triplets" in card
    assert f"| loss | {metrics['loss']:.4g} |" in card
    for name in ("feature_rank", "knn_accuracy", "slide_leakage"):
        assert f"| {name} | {last[name]:.4g} |" in card
    assert "Not a medical device" in card
    assert "patient a" not in card
    assert str(run) not in card


def card_of(store_factory, make_settings, tmp_path, *changes, **store):
    out = pretrain([store_factory(**store)], make_settings(*changes), tmp_path / "run").out
    return (out / "README.md").read_text(), json.loads((out / "config.json").read_text())["simtriplet"]


def test_card_and_config_tell_the_scale_of_the_images(store_factory, make_settings, tmp_path):
    card, ours = card_of(
        store_factory, make_settings, tmp_path, "run.max_steps=1", "data.image_size_px=48", size_px=64, mpp=0.5
    )
    assert ours["mpp"] == pytest.approx(2 / 3)
    assert (ours["tile_mpp"], ours["tile_size_px"]) == (0.5, 64)
    assert "images of 48 x 48 px; a whole tile in one has 0.6667 micrometres a pixel" in card
    assert "the stored tiles are 64 x 64 px, at 0.5 micrometres a pixel" in card


def test_weights_it_started_from_are_named_with_their_hash(store_factory, make_settings, tmp_path):
    file = tmp_path / "imagenet.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), file)
    sha = hashlib.sha256(file.read_bytes()).hexdigest()
    small = ["model.backbone=resnet18", "run.epochs=1", f"model.weights='{file}'"]

    def stop(report):
        if report.step == 2:
            raise KeyboardInterrupt

    stores, settings = [store_factory()], make_settings(*small)
    with pytest.raises(KeyboardInterrupt):
        pretrain(stores, settings, tmp_path / "run", progress=stop)
    file.write_bytes(b"another file since")  # what the run began with is what counts
    out = pretrain(stores, settings, tmp_path / "run", resume=True).out
    for info in (load_encoder(out).info, load_encoder(out / "checkpoints" / "last.pt").info):
        assert (info.initial_weights, info.initial_weights_hash) == ("imagenet.pth", sha)
    card, ours = (out / "README.md").read_text(), json.loads((out / "config.json").read_text())["simtriplet"]
    assert f"It started from the weights in imagenet.pth (SHA-256 {sha})" in card
    assert (ours["initial_weights"], ours["initial_weights_hash"]) == ("imagenet.pth", sha)
    assert str(tmp_path) not in card


def test_the_card_of_simsiam_knows_no_neighbour(store_factory, make_settings, tmp_path):
    card, _ = card_of(store_factory, make_settings, tmp_path, "objective.name=simsiam", "run.max_steps=1")
    assert "* objective simsiam\n" in card
    assert "1 steps of 8 pairs of views" in card
    assert "neighbour" not in card
    assert "It started from random weights." in card


def test_the_card_gives_what_the_settings_came_to(store_factory, make_settings, tmp_path):
    """A warm-up that max_steps cut short, a learning rate scaled with the batch there was, the precision that auto is."""
    changes = ["objective.name=vicreg", "objective.inter_weight=0.5", "run.epochs=100", "run.max_steps=20"]
    changes += ["optimiser.warmup_epochs=5", "optimiser.base_lr=0.32", "run.batch_size=64", "run.precision=auto"]
    card, _ = card_of(store_factory, make_settings, tmp_path, *changes)  # 24 tiles: batches of 24, one step an epoch
    assert (
        "* objective vicreg, neighbour weight 0.5, invariance weight 25, variance weight 25, covariance weight 1\n"
        in card
    )
    assert "* SGD, learning rate 0.03, momentum 0.9, weight decay 0.0001\n" in card
    assert "* warm-up over 2 steps, then a cosine to step 20\n" in card
    assert "* precision fp32 on cpu\n" in card
    assert "20 steps of 24 triplets" in card
