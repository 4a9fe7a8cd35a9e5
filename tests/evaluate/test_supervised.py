"""Networks trained with labels: they learn what is there to learn, from the tiles they are given and no others."""

import dataclasses

import numpy as np
import pytest
import torch

from simtriplet.evaluate.evaluation import EvaluationResult
from simtriplet.evaluate.label_curve import CurveSettings
from simtriplet.evaluate.label_trainer import LabelNetwork, LabelTrainer
from simtriplet.evaluate.labelled_tiles import locate_tiles
from simtriplet.evaluate.labels import TileLabels, read_labels
from simtriplet.evaluate.splits import hold_out
from simtriplet.evaluate.supervised import train_classifier
from simtriplet.evaluate.supervised_evaluation import evaluate_supervised, supervised_curve
from simtriplet.evaluate.supervised_settings import SupervisedSettings
from simtriplet.pretrain.encoder import Encoder, load_encoder
from simtriplet.wsi.errors import EvaluationError, SettingsError, StoreError
from simtriplet.wsi.store import TileStore

SMALL = SupervisedSettings(
    backbone="resnet18",
    image_size_px=32,
    epochs=1,
    min_steps=12,
    batch_size=16,
    lr=2e-3,
    device="cpu",
    precision="fp32",
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on tiles this small threads wait more than they work
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def cohort(store_factory):
    """Four patients, of whom the last is tested on; half of each slide is of either texture."""
    return [store_factory(f"s{n}", patient_id=f"p{n}", seed=n, index=False) for n in range(4)]


@pytest.fixture
def tiles(cohort):
    return locate_tiles(cohort, read_labels(cohort))


def share_right(classifier, cohort, tiles, places):
    predicted = classifier.probabilities(cohort, tiles, places).argmax(axis=1)
    return (predicted == tiles.codes[places]).mean()


def test_it_tells_two_textures_apart_on_patients_it_has_not_seen(cohort, tiles):
    fold = hold_out(tiles.patients, ["p3"])
    classifier = train_classifier(cohort, tiles, fold.train, SMALL)
    found = classifier.probabilities(cohort, tiles, fold.test)
    assert (found.shape, found.dtype) == ((24, 2), np.float64)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert (found.argmax(axis=1) == tiles.codes[fold.test]).mean() > 0.9


def test_random_labels_give_chance(cohort, tiles):
    rng = np.random.default_rng(0)
    shuffled = dataclasses.replace(tiles, codes=rng.permutation(tiles.codes))
    fold = hold_out(tiles.patients, ["p2", "p3"])
    classifier = train_classifier(cohort, shuffled, fold.train, SMALL)
    assert 0.3 < share_right(classifier, cohort, shuffled, fold.test) < 0.7


@pytest.mark.parametrize("source", [None, "random:resnet18:32"])
def test_the_same_seed_gives_the_same_weights_bit_for_bit(cohort, tiles, source):
    train = hold_out(tiles.patients, ["p3"]).train[:24]
    encoder = None if source is None else load_encoder(source)
    settings = dataclasses.replace(SMALL, min_steps=2)
    states = []
    for seed in (4, 4, 5):
        torch.manual_seed(len(states))  # the caller's random state has no part in it
        before = torch.get_rng_state()
        trained = train_classifier(cohort, tiles, train, dataclasses.replace(settings, seed=seed), encoder=encoder)
        assert torch.equal(torch.get_rng_state(), before)
        states.append({**trained.encoder.state_dict(), **trained.head.state_dict()})
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


@pytest.fixture
def pretrained():
    """An encoder that says it has learnt something, with statistics that no batch of tiles would give."""
    encoder = load_encoder("random:resnet18:32")
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.fill_(-0.01)
    return Encoder(
        encoder.backbone, dataclasses.replace(encoder.info, objective="simtriplet", steps=7, patients=("q",))
    )


def test_finetuning_starts_from_the_encoders_weights_and_leaves_them_alone(cohort, tiles, pretrained):
    train = hold_out(tiles.patients, ["p3"]).train
    before = {key: value.clone() for key, value in pretrained.state_dict().items()}
    still = dataclasses.replace(SMALL, min_steps=1, lr=1e-12, weight_decay=0.0)
    unmoved = train_classifier(cohort, tiles, train, still, encoder=pretrained).encoder
    for key, value in unmoved.state_dict().items():
        torch.testing.assert_close(value, before[key], atol=1e-9, rtol=0)
    quick = dataclasses.replace(SMALL, min_steps=2)
    moved = train_classifier(cohort, tiles, train, quick, encoder=pretrained).encoder
    weights = dict(moved.backbone.named_parameters())
    assert all(not torch.equal(weights[key], before[f"backbone.{key}"]) for key in weights)
    assert all(
        (value == torch.tensor(-0.01)).all()
        for key, value in moved.state_dict().items()
        if key.endswith("running_mean")
    )
    assert all(torch.equal(value, before[key]) for key, value in pretrained.state_dict().items())
    assert moved.info.objective == "simtriplet, then supervised"
    assert moved.info.patients == ("p0", "p1", "p2", "q")
    assert moved.info.steps == 7 + quick.steps(len(train)) == 12
    assert len({moved.info.checkpoint_hash, unmoved.info.checkpoint_hash, pretrained.info.checkpoint_hash}) == 3


@pytest.mark.parametrize("source", ["scratch", "encoder"])
@pytest.mark.parametrize("n_labels", [2, 3, 10])
def test_a_few_labels_are_enough_to_run(cohort, tiles, pretrained, source, n_labels):
    learnt = [np.flatnonzero((tiles.codes == code) & (tiles.patients != "p3")) for code in (0, 1)]
    train = np.concatenate([learnt[0][: n_labels // 2], learnt[1][: n_labels - n_labels // 2]])
    settings = dataclasses.replace(SMALL, min_steps=2)
    encoder = pretrained if source == "encoder" else None
    classifier = train_classifier(cohort, tiles, train, settings, encoder=encoder)
    assert np.isfinite(classifier.probabilities(cohort, tiles, np.flatnonzero(tiles.patients == "p3"))).all()


def test_statistics_of_normalisation_are_those_of_the_training_tiles_as_they_are(cohort, tiles):
    """The first layer's input to normalisation has a mean that can be computed from the tiles."""
    train = hold_out(tiles.patients, ["p3"]).train[:32]
    classifier = train_classifier(cohort, tiles, train, dataclasses.replace(SMALL, batch_size=32, min_steps=2))
    encoder = classifier.encoder
    pixels = np.concatenate([cohort[n].images.read(np.arange(24)) for n in range(4)])[train]
    with torch.inference_mode():
        seen = encoder.backbone.conv1(encoder._prepare(torch.from_numpy(pixels)))
    torch.testing.assert_close(encoder.backbone.bn1.running_mean, seen.mean(dim=(0, 2, 3)), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(encoder.backbone.bn1.running_var, seen.var(dim=(0, 2, 3)), atol=1e-4, rtol=1e-3)
    assert encoder.backbone.bn1.momentum == 0.1


def trainer_of(n_tiles):
    info = load_encoder("random:resnet18:32").info
    network = LabelNetwork(torch.nn.Identity(), torch.nn.Linear(3, 2))
    return LabelTrainer(network, SMALL, np.arange(n_tiles) % 2, info=info, pretrained=False)


@pytest.mark.parametrize("n_tiles", [3, 16, 17, 31, 100])
def test_normalisation_is_settled_on_every_training_tile(n_tiles):
    batches = trainer_of(n_tiles)._settling_batches()
    assert {len(batch) for batch in batches} == {SMALL.batch_size}
    times = np.bincount(torch.cat(batches), minlength=n_tiles)
    assert len(times) == n_tiles
    assert times.min() >= 1
    assert times.max() - times.min() <= 1


def test_of_too_many_tiles_those_of_all_patients_settle_normalisation():
    n_tiles = 20_000
    chosen = torch.cat(trainer_of(n_tiles)._settling_batches()).numpy()
    assert len(np.unique(chosen)) == len(chosen) == 4096
    by_patient = np.bincount(chosen * 10 // n_tiles, minlength=10)  # ten patients, one after the other
    assert by_patient.min() > 300


def test_classes_weigh_the_same_however_many_tiles_they_have():
    codes = np.array([0] * 90 + [2] * 10)
    head = torch.nn.Linear(3, 3)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    info = load_encoder("random:resnet18:32").info
    trainer = LabelTrainer(LabelNetwork(torch.nn.Identity(), head), SMALL, codes, info=info, pretrained=False)
    trainer._loss(torch.ones(100, 3), torch.as_tensor(codes)).backward()
    # two classes are known, each with probability 1/2: the pulls of both sides cancel, the unknown class feels none
    torch.testing.assert_close(head.bias.grad, torch.zeros(3), atol=1e-6, rtol=0)
    loss = trainer._loss(torch.ones(100, 3), torch.as_tensor(codes))
    assert loss.item() == pytest.approx(np.log(2), rel=1e-6)


def test_batches_are_full_and_go_through_all_tiles_before_any_comes_again():
    info = load_encoder("random:resnet18:32").info
    network = LabelNetwork(torch.nn.Identity(), torch.nn.Linear(3, 2))
    for n in (10, 40):
        trainer = LabelTrainer(network, SMALL, np.arange(n) % 2, info=info, pretrained=False)
        batches = list(trainer._batches(20))
        assert {len(batch) for batch in batches} == {16}
        drawn = torch.cat(batches)
        for start in range(0, len(drawn) - n, n):
            assert sorted(drawn[start : start + n].tolist()) == list(range(n))


def test_a_class_that_was_not_in_training_has_probability_zero(cohort):
    first = read_labels(cohort)
    codes = tuple(np.where(np.arange(24) % 6 == 5, 2, part) for part in first.codes)
    tiles = locate_tiles(cohort, TileLabels(("dots", "stripes", "third"), codes, first.patients, "test"))
    train = np.flatnonzero((tiles.codes < 2) & (tiles.patients != "p3"))
    found = train_classifier(cohort, tiles, train, dataclasses.replace(SMALL, min_steps=2)).probabilities(
        cohort, tiles, np.arange(len(tiles))
    )
    assert (found[:, 2] == 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1)


def test_only_training_tiles_are_read(cohort, tiles, tmp_path):
    """The test patient's pixels are rubbish while the network learns, which a reader would refuse."""
    train = hold_out(tiles.patients, ["p3"]).train
    for shard in (cohort[3].path / "tiles" / "images").glob("c.*"):
        shard.write_bytes(bytes(shard.stat().st_size))
    stores = [TileStore(store.path) for store in cohort]
    with pytest.raises(StoreError):
        stores[3].images.read(np.arange(1))
    assert train_classifier(stores, tiles, train, dataclasses.replace(SMALL, min_steps=1)).steps == 5


def test_evaluation_has_the_folds_and_metrics_of_every_protocol(cohort, tmp_path):
    from simtriplet.evaluate import embed_store, evaluate_features

    settings = dataclasses.replace(SMALL, min_steps=8)
    result = evaluate_supervised(cohort, settings, folds=2, out=tmp_path / "out")
    assert isinstance(result, EvaluationResult)
    assert (result.features, result.settings.protocol, result.leakage) == ("supervised", "supervised", "inductive")
    assert result.metrics.balanced_accuracy > 0.8
    for store in cohort:
        embed_store(store, load_encoder("random:resnet18:32"), name="f", device="cpu")
    frozen = evaluate_features(cohort, "f", folds=2)
    assert [fold.test_patients for fold in frozen.folds] == [fold.test_patients for fold in result.folds]
    assert set(result.intervals) == set(frozen.intervals)
    assert (tmp_path / "out" / "results.json").exists()


def test_finetuning_an_encoder_that_saw_a_test_patient_is_transductive(cohort, pretrained):
    seen = Encoder(pretrained.backbone, dataclasses.replace(pretrained.info, patients=("p1",)))
    quick = dataclasses.replace(SMALL, min_steps=1, batch_size=64)
    result = evaluate_supervised(cohort, quick, encoder=seen, test_patients=["p1"])
    assert (result.features, result.leakage) == ("finetune", "transductive")
    assert result.encoder["encoder_hash"] == pretrained.info.checkpoint_hash


def test_random_weights_are_trained_as_a_network_from_scratch(cohort):
    quick = dataclasses.replace(SMALL, min_steps=1, batch_size=64)
    result = evaluate_supervised(cohort, quick, encoder=load_encoder("random:resnet18:32"), test_patients=["p1"])
    assert result.features == "supervised"


def test_a_curve_gives_each_network_the_labels_that_the_linear_heads_get(cohort):
    few = dataclasses.replace(SMALL, min_steps=1, batch_size=32)
    curve = CurveSettings(kind="share", amounts=(0.1, 1.0), draws=2, test_patients=("p3",))
    found = supervised_curve(cohort, few, curve)
    assert (found.features, found.classes) == ("supervised", ("dots", "stripes"))
    assert [[draw.n_labels for draw in point.draws] for point in found.points] == [[8, 8], [72]]
    assert all(0 <= point.intervals["balanced_accuracy"].value <= 1 for point in found.points)


def test_refusals(cohort, tiles):
    with pytest.raises(EvaluationError, match="fewer than two classes"):
        train_classifier(cohort, tiles, np.flatnonzero(tiles.codes == 0), SMALL)
    with pytest.raises(EvaluationError, match="of no stores"):
        evaluate_supervised([], SMALL)
    with pytest.raises(EvaluationError, match="is not finite after 3 steps; lower lr"):
        train_classifier(
            cohort, tiles, np.arange(24), dataclasses.replace(SMALL, min_steps=3, lr=1e30, weight_decay=0.0)
        )


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", 0.0), ("lr", float("inf")), ("batch_size", 1), ("epochs", 0), ("min_steps", 0), ("seed", -1),
     ("weight_decay", -0.1), ("encoder_lr_share", 0.0), ("image_size_px", 8)],
)  # fmt: skip
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(SettingsError, match=name):
        dataclasses.replace(SMALL, **{name: value})


def test_steps_follow_the_epochs_unless_labels_are_few():
    settings = SupervisedSettings(epochs=10, min_steps=50, batch_size=32)
    assert [settings.steps(n) for n in (2, 160, 161, 3200)] == [50, 50, 60, 1000]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns_on_a_gpu(cohort, tiles, precision):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    fold = hold_out(tiles.patients, ["p3"])
    settings = dataclasses.replace(SMALL, device="cuda", precision=precision, min_steps=40)
    assert share_right(train_classifier(cohort, tiles, fold.train, settings), cohort, tiles, fold.test) > 0.9
