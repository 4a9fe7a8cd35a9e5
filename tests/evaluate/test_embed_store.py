"""Embedding: the stored features are the encoder's, whole or not there, and say what made them."""

import dataclasses
import logging

import numpy as np
import pytest
import torch

from simtriplet.evaluate import embed_store
from simtriplet.evaluate.feature_array import write_features
from simtriplet.pretrain.encoder import Encoder, load_encoder
from simtriplet.wsi.errors import EvaluationError, SettingsError, StoreError, StoreExistsError
from simtriplet.wsi.store import TileStore


@pytest.fixture(scope="module")
def encoder():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on tiles this small threads wait more than they work
    yield load_encoder("random:resnet18:32")
    torch.set_num_threads(threads)


def trained_at(encoder, **changes):
    return Encoder(encoder.backbone, dataclasses.replace(encoder.info, **changes))


def test_features_are_those_of_each_tile_whatever_the_batch(store_factory, encoder):
    store = store_factory(rows=3, cols=7, index=False)
    done = []
    summary = embed_store(store, encoder, name="r18", batch_size=4, device="cpu", progress=done.append)
    expected = encoder.embed(store.images.read(np.arange(21))).numpy()
    np.testing.assert_allclose(TileStore(store.path).features("r18"), expected, rtol=1e-4, atol=1e-5)
    assert done == [4, 4, 4, 4, 4, 1]
    assert (summary.n_tiles, summary.feature_dim, summary.skipped) == (21, 512, False)


def test_attributes_name_the_encoder_and_whom_it_was_trained_on(store_factory, encoder):
    store = store_factory(index=False)
    trained = trained_at(encoder, patients=("p1", "p2"), slides=("s1",), objective="simtriplet", steps=7, mpp=0.5)
    embed_store(store, trained, name="f", device="cpu")
    attributes = TileStore(store.path).feature_attributes("f")
    assert attributes["encoder_hash"] == encoder.info.checkpoint_hash
    assert attributes["tiles_id"] == store.attributes["tiles_id"]
    assert (attributes["pretraining_patients"], attributes["pretraining_slides"]) == (["p1", "p2"], ["s1"])
    assert (attributes["objective"], attributes["steps"], attributes["precision"]) == ("simtriplet", 7, "fp32")
    assert (attributes["encoding-type"], attributes["encoding-version"]) == ("array", "0.2.0")


def test_anndata_reads_the_features(store_factory, encoder):
    anndata = pytest.importorskip("anndata")
    store = store_factory(index=False)
    embed_store(store, encoder, name="f", device="cpu")
    table = anndata.read_zarr(store.path / "tables" / "tiles")
    np.testing.assert_array_equal(table.obsm["X_f"], store.features("f"))


def test_embedding_again_replaces_skips_or_refuses(store_factory, encoder, caplog):
    store = store_factory(index=False)
    write_features(store, "f", np.zeros((24, 3), np.float32), {"encoder_hash": "other"})
    assert not embed_store(store, encoder, name="f", device="cpu", existing="skip").skipped
    assert "features 'f' are of another encoder and are replaced" in caplog.text
    caplog.clear()
    assert store.features("f").shape == (24, 512)
    assert embed_store(store, encoder, name="f", device="cpu", existing="skip").skipped
    assert not embed_store(store, encoder, name="f", device="cpu").skipped
    with pytest.raises(StoreExistsError, match="choose another --name"):
        embed_store(store, encoder, name="f", device="cpu", existing="error")


def test_features_of_another_image_size_or_precision_are_not_taken_for_the_same(store_factory, encoder):
    store = store_factory(rows=1, cols=2, index=False)
    embed_store(store, encoder, name="f", device="cpu")
    larger = trained_at(encoder, image_size_px=48)  # the weights, and so the hash, are the same
    assert not embed_store(store, larger, name="f", device="cpu", existing="skip").skipped
    assert embed_store(store, larger, name="f", device="cpu", existing="skip").skipped
    assert not embed_store(store, larger, name="f", device="cpu", existing="skip", precision="bf16").skipped
    assert store.feature_attributes("f")["precision"] == "bf16"


def test_an_interrupted_run_leaves_the_old_features_and_no_scratch(store_factory, encoder):
    store = store_factory(index=False)
    before = np.ones((24, 3), np.float32)
    write_features(store, "f", before, {})

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_store(store, encoder, name="f", batch_size=5, device="cpu", progress=stop)
    np.testing.assert_array_equal(TileStore(store.path).features("f"), before)


def test_the_scratch_of_a_killed_run_is_cleared(store_factory):
    store = store_factory(index=False)
    scratch = store.path / "tables" / "tiles" / "X_f.partial"
    (scratch / "X_f" / "c").mkdir(parents=True)
    write_features(store, "f", np.ones((24, 3), np.float32), {})
    assert not scratch.exists()
    assert sorted(path.name for path in (store.path / "tables" / "tiles" / "obsm").glob("X_*")) == ["X_f"]


def test_a_store_without_tiles_gets_no_rows(store_factory, encoder):
    store = store_factory(keep=np.zeros(24, bool), index=False)
    embed_store(store, encoder, name="f", device="cpu")
    assert store.features("f").shape == (0, 512)


@pytest.mark.parametrize("name", ["", "a b", "../x", "a/b", "é"])
def test_a_name_that_is_no_key_is_refused(store_factory, encoder, name):
    with pytest.raises(SettingsError, match="choose another --name"):
        embed_store(store_factory(index=False), encoder, name=name, device="cpu")


def test_features_that_are_not_one_row_a_tile_are_refused(store_factory):
    with pytest.raises(StoreError, match="one row per tile"):
        write_features(store_factory(index=False), "f", np.ones((3, 2), np.float32), {})


@pytest.mark.parametrize(("mpp", "warns"), [(0.5, False), (0.48, False), (0.52, False), (0.45, True), (1.0, True)])
def test_another_resolution_is_warned_of(store_factory, encoder, caplog, mpp, warns):
    store = store_factory(rows=1, cols=2, mpp=0.5, index=False)
    with caplog.at_level(logging.WARNING):
        embed_store(store, trained_at(encoder, mpp=mpp), name="f", device="cpu")
    assert bool(caplog.records) == warns


@pytest.mark.parametrize(("tile_size_px", "said"), [(32, None), (48, "features may be poor"), (96, "factor of 2")])
def test_tiles_of_another_size_are_another_scale(store_factory, encoder, caplog, tile_size_px, said):
    store = store_factory(rows=1, cols=2, size_px=32, mpp=0.5, index=False)
    trained = trained_at(encoder, mpp=0.5, tile_size_px=tile_size_px)
    if said == "factor of 2":
        with pytest.raises(EvaluationError, match=r"within a factor of 2; tile with --mpp 0.5 --size 96"):
            embed_store(store, trained, name="f", device="cpu")
        return
    embed_store(store, trained, name="f", device="cpu")
    assert (said in caplog.text) if said else not caplog.records


@pytest.mark.parametrize("mpp", [0.249, 1.01])
def test_a_resolution_beyond_a_factor_of_two_is_refused(store_factory, encoder, mpp):
    store = store_factory(rows=1, cols=2, mpp=0.5, index=False)
    with pytest.raises(EvaluationError, match="within a factor of 2; tile with --mpp"):
        embed_store(store, trained_at(encoder, mpp=mpp), name="f", device="cpu")
    assert store.feature_names() == []


def test_features_that_are_not_finite_are_not_stored(store_factory, encoder):
    store = store_factory(rows=1, cols=2, index=False)
    broken = Encoder(encoder.backbone, dataclasses.replace(encoder.info, std=(1e-45, 1e-45, 1e-45)))
    with pytest.raises(EvaluationError, match="not finite"):
        embed_store(store, broken, name="f", device="cpu")
    assert store.feature_names() == []


def test_a_batch_that_does_not_fit_into_memory_is_told(store_factory, encoder):
    store = store_factory(rows=1, cols=2, index=False)
    with pytest.raises(
        EvaluationError, match="64 images of 2000000 px do not fit into the memory of cpu; pass a small"
    ):
        embed_store(store, trained_at(encoder, image_size_px=2_000_000), name="f", device="cpu", batch_size=64)
    assert store.feature_names() == []


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("nonsense", "is not a torch device"),
        ("meta", "is not supported; pass auto, cpu or cuda"),
        ("cuda:0", "no CUDA device"),
    ],
)
def test_a_device_that_is_not_there_is_refused(store_factory, encoder, device, said):
    if device.startswith("cuda") and torch.cuda.is_available():
        pytest.skip("this machine has the device")
    with pytest.raises(SettingsError, match=said):
        embed_store(store_factory(rows=1, cols=2, index=False), encoder, name="f", device=device)


@pytest.mark.gpu
def test_features_of_the_gpu_match_those_of_the_cpu(store_factory, encoder):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    store = store_factory(index=False)
    embed_store(store, encoder, name="cpu", device="cpu")
    embed_store(store, load_encoder("random:resnet18:32"), name="gpu", device="cuda", precision="fp32")
    np.testing.assert_allclose(store.features("gpu"), store.features("cpu"), rtol=2e-2, atol=2e-3)
