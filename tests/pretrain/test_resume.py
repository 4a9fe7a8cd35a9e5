"""A run that was stopped and resumed equals one that was not, bit for bit."""

import dataclasses
import json
import os
import shutil
import signal
import threading

import pytest
import safetensors.torch
import torch

from simtriplet.evaluate.training_log import read_loss_curve
from simtriplet.pretrain import run_product
from simtriplet.pretrain.backbone import BACKBONES
from simtriplet.pretrain.encoder import load_encoder
from simtriplet.pretrain.settings import load_settings
from simtriplet.pretrain.trainer import pretrain
from simtriplet.wsi.errors import CheckpointError, TrainingError
from simtriplet.wsi.neighbour_index import index_store
from simtriplet.wsi.neighbours import GridRule
from simtriplet.wsi.settings import read_toml
from simtriplet.wsi.store import TABLE, TileStore


def state_of(out):
    return torch.load(out / "checkpoints" / "last.pt", weights_only=True)


def losses_of(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["lr"], line["z_std"]) for line in lines]


def stop_at(step, how):
    def progress(report):
        if report.step == step:
            how()

    return progress


def raise_interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("step", [2, 3, 4])  # in the first epoch, at its end, in the second
@pytest.mark.parametrize("objective", ["simtriplet", "vicreg"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    store_factory, make_settings, tmp_path, step, objective, assert_same
):
    stores, settings = [store_factory()], make_settings(f"objective.name={objective}")
    whole = pretrain(stores, settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        pretrain(stores, settings, tmp_path / "parts", progress=stop_at(step, raise_interrupt))
    assert (state_of(tmp_path / "parts")["step"], state_of(tmp_path / "parts")["finished"]) == (step, False)
    torch.manual_seed(999)  # whatever else the process drew in between
    parts = pretrain(stores, settings, tmp_path / "parts", resume=True)
    assert (parts.steps, parts.loss) == (whole.steps, whole.loss)
    assert_same(state_of(tmp_path / "parts"), state_of(tmp_path / "whole"))
    assert losses_of(tmp_path / "parts") == losses_of(tmp_path / "whole")
    assert parts.encoder.read_bytes() == whole.encoder.read_bytes()


OPTIONS = {
    "fp16": ["run.precision=fp16"],
    "fp16 and skip": ["run.precision=fp16", "run.on_nan=skip"],
    "bf16": ["run.precision=bf16"],
    "balance": ["data.balance=slide"],
    "stream": ["data.storage=stream"],
    "skip": ["run.on_nan=skip"],
}


@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS)
def test_a_resumed_run_with_an_option_equals_an_uninterrupted_one(
    store_factory, make_settings, tmp_path, changes, assert_same
):
    """Two slides of 24 and 6 tiles: balanced, the small one repeats."""
    stores = [store_factory("a"), store_factory("b", rows=2, cols=3, seed=1)]
    settings = make_settings("run.epochs=3", *changes)
    whole = pretrain(stores, settings, tmp_path / "whole")
    for step in (2, 6, 7):
        with pytest.raises(KeyboardInterrupt):
            pretrain(stores, settings, tmp_path / "parts", resume=True, progress=stop_at(step, raise_interrupt))
        torch.manual_seed(999)
    parts = pretrain(stores, settings, tmp_path / "parts", resume=True)
    assert (parts.steps, parts.loss) == (whole.steps, whole.loss) == (9, whole.loss)
    assert_same(state_of(tmp_path / "parts"), state_of(tmp_path / "whole"))
    assert losses_of(tmp_path / "parts") == losses_of(tmp_path / "whole")
    assert parts.encoder.read_bytes() == whole.encoder.read_bytes()


def test_the_loss_scaler_goes_on_where_it_was(store_factory, make_settings, tmp_path, assert_same):
    """It starts far too high, and its way down is saved: a resumed run that began at the top would skip steps again."""
    stores, settings = [store_factory()], make_settings("run.precision=fp16", "objective.name=vicreg", "run.epochs=6")
    whole = pretrain(stores, settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        pretrain(stores, settings, tmp_path / "parts", progress=stop_at(9, raise_interrupt))
    stopped = state_of(tmp_path / "parts")
    assert stopped["skipped"][0] > 0
    assert stopped["scaler"]["scale"] == 2.0 ** (16 - stopped["skipped"][0])
    pretrain(stores, settings, tmp_path / "parts", resume=True)
    assert_same(state_of(tmp_path / "parts"), state_of(tmp_path / "whole"))
    assert whole.finished


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_finish_and_saves(store_factory, make_settings, tmp_path, number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        pretrain(
            [store_factory()],
            make_settings(),
            tmp_path / "run",
            progress=stop_at(2, lambda: os.kill(os.getpid(), number)),
        )
    assert state_of(tmp_path / "run")["step"] == 2
    assert signal.getsignal(number) == before


def test_a_run_in_another_thread_leaves_signals_alone(store_factory, make_settings, tmp_path):
    results = []
    stores = [store_factory()]
    thread = threading.Thread(target=lambda: results.append(pretrain(stores, make_settings(), tmp_path / "run")))
    thread.start()
    thread.join()
    assert results[0].finished


def test_a_killed_run_goes_on_from_its_last_checkpoint_without_repeating_metrics(
    store_factory, make_settings, tmp_path
):
    """Two steps after the checkpoint of the first epoch are lost, and with them their lines, the last one cut short."""
    stores, settings = [store_factory()], make_settings()
    whole = pretrain(stores, settings, tmp_path / "whole")
    with pytest.raises(ZeroDivisionError):
        pretrain(stores, settings, tmp_path / "parts", progress=stop_at(5, lambda: 1 / 0))
    assert state_of(tmp_path / "parts")["step"] == 3
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    assert pretrain(stores, settings, tmp_path / "parts", resume=True).loss == whole.loss
    assert losses_of(tmp_path / "parts") == losses_of(tmp_path / "whole")


def test_a_run_out_of_time_leaves_an_encoder_and_can_be_resumed(store_factory, make_settings, tmp_path):
    stores = [store_factory()]
    whole = pretrain(stores, make_settings(), tmp_path / "whole")
    part = pretrain(stores, make_settings("run.max_minutes=1e-6"), tmp_path / "parts")
    assert not part.finished
    assert part.steps < 6
    assert part.encoder.exists()
    parts = pretrain(stores, make_settings(), tmp_path / "parts", resume=True)
    assert parts.finished
    assert parts.encoder.read_bytes() == whole.encoder.read_bytes()


def test_a_folder_with_a_run_is_refused_and_the_cure_named(store_factory, make_settings, tmp_path):
    stores, settings = [store_factory()], make_settings()
    pretrain(stores, settings, tmp_path / "run")
    with pytest.raises(TrainingError, match="--resume"):
        pretrain(stores, settings, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "last.pt").unlink()
    with pytest.raises(TrainingError, match="--resume"):
        pretrain(stores, settings, tmp_path / "run")


def test_a_run_that_never_began_does_not_block_its_folder(store_factory, make_settings, tmp_path):
    stores = [store_factory(rows=1, cols=3)]
    with pytest.raises(TrainingError, match="3 tiles to train on: must be at least 4"):
        pretrain(stores, make_settings("run.accumulate=2"), tmp_path / "run")
    assert (tmp_path / "run" / "settings.toml").exists()
    assert pretrain(stores, make_settings(), tmp_path / "run").finished


def test_resuming_a_finished_run_returns_its_result_at_once(store_factory, make_settings, tmp_path):
    stores, settings = [store_factory()], make_settings()
    first = pretrain(stores, settings, tmp_path / "run")
    before = (tmp_path / "run" / "checkpoints" / "last.pt").stat().st_mtime_ns
    assert pretrain(stores, settings, tmp_path / "run", resume=True) == first
    assert (tmp_path / "run" / "checkpoints" / "last.pt").stat().st_mtime_ns == before


def test_the_first_weights_are_not_needed_again(store_factory, make_settings, tmp_path):
    """Their file is gone when the run goes on, and still named in what comes out."""
    stores, file = [store_factory()], tmp_path / "first.safetensors"
    torch.manual_seed(5)
    safetensors.torch.save_file(BACKBONES.get("small")(False).module.state_dict(), file)
    settings = make_settings(f"model.weights={file}")
    whole = pretrain(stores, settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        pretrain(stores, settings, tmp_path / "parts", progress=stop_at(2, raise_interrupt))
    told = state_of(tmp_path / "parts")["settings"]["model"]
    assert told["weights"] == "first.safetensors"  # and no place of this machine
    file.unlink()
    parts = pretrain(stores, settings, tmp_path / "parts", resume=True)
    assert parts.encoder.read_bytes() == whole.encoder.read_bytes()
    infos = [load_encoder(out.out).info for out in (parts, whole)]
    assert infos[0] == infos[1]
    assert infos[0].initial_weights == "first.safetensors"


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated:FutureWarning")  # as TorchScript is, for ever
def test_resuming_a_finished_run_writes_the_exports_that_it_lacks(store_factory, make_settings, tmp_path):
    stores = [store_factory()]
    pretrain(stores, make_settings(), tmp_path / "run")
    file = tmp_path / "run" / "encoder.torchscript.pt"
    assert not file.exists()
    settings = make_settings("run.export=['torchscript']")
    pretrain(stores, settings, tmp_path / "run", resume=True)
    encoder = load_encoder(tmp_path / "run")
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(torch.jit.load(file)(images), encoder(images))
    assert read_toml(tmp_path / "run" / "settings.toml")["run"]["export"] == ["torchscript"]
    written = file.stat().st_mtime_ns
    pretrain(stores, settings, tmp_path / "run", resume=True)
    assert file.stat().st_mtime_ns == written


def test_a_run_killed_while_it_wrote_its_product_still_knows_its_loss(
    store_factory, make_settings, tmp_path, monkeypatch
):
    """The best checkpoint is of the last step, so that the resumed run has no step left to take."""
    stores, settings = [store_factory()], make_settings("run.monitor_every_epochs=2")
    whole = pretrain(stores, settings, tmp_path / "whole")

    def fail(*args):
        raise ZeroDivisionError

    monkeypatch.setattr(run_product, "write_model_card", fail)
    with pytest.raises(ZeroDivisionError):
        pretrain(stores, settings, tmp_path / "parts")
    monkeypatch.undo()
    assert (state_of(tmp_path / "parts")["step"], state_of(tmp_path / "parts")["finished"]) == (6, False)
    parts = pretrain(stores, settings, tmp_path / "parts", resume=True)
    assert dataclasses.replace(parts, out=whole.out, encoder=whole.encoder) == whole
    card = (tmp_path / "parts" / "README.md").read_text()
    assert f"| loss | {whole.loss:.4g} |" in card
    assert state_of(tmp_path / "parts")["result"]["loss"] == whole.loss


def test_resume_without_a_run_begins_one(store_factory, make_settings, tmp_path):
    assert pretrain([store_factory()], make_settings(), tmp_path / "run", resume=True).steps == 6


def test_other_settings_are_refused_by_name(store_factory, make_settings, tmp_path):
    stores = [store_factory()]
    pretrain(stores, make_settings(), tmp_path / "run")
    with pytest.raises(TrainingError, match=r"optimiser\.base_lr = 0\.05, not 0\.1"):
        pretrain(stores, make_settings("optimiser.base_lr=0.1"), tmp_path / "run", resume=True)
    with pytest.raises(TrainingError, match=r"run\.max_steps = None, not 5"):
        pretrain(stores, make_settings("run.max_steps=5"), tmp_path / "run", resume=True)
    assert pretrain(stores, make_settings("run.log_every_steps=7"), tmp_path / "run", resume=True).finished


def test_other_stores_are_refused_by_name(store_factory, make_settings, tmp_path):
    first, second = store_factory("first"), store_factory("second")
    pretrain([first, second], make_settings(), tmp_path / "run")
    with pytest.raises(TrainingError, match="slide 'second', which is missing"):
        pretrain([first], make_settings(), tmp_path / "run", resume=True)
    with pytest.raises(TrainingError, match="without slide 'third'"):
        pretrain([first, second, store_factory("third")], make_settings(), tmp_path / "run", resume=True)
    index_store(second, GridRule(4))
    with pytest.raises(TrainingError, match="another neighbour index of slide 'second'"):
        pretrain([first, second], make_settings(), tmp_path / "run", resume=True)
    again = [store_factory("first", seed=1), second]
    with pytest.raises(TrainingError, match="other tiles of slide 'first'"):
        pretrain(again, make_settings(), tmp_path / "run", resume=True)


def test_the_same_tiles_and_pairs_made_again_are_the_same(store_factory, make_settings, tmp_path, assert_same):
    """As after `check --repair`, or where the steps before are simply run once more."""
    stores = [store_factory("first"), store_factory("second")]
    whole = pretrain(stores, make_settings(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        pretrain(stores, make_settings(), tmp_path / "parts", progress=stop_at(4, raise_interrupt))
    index_store(stores[0])
    again = [TileStore(stores[0].path), store_factory("second")]
    parts = pretrain(again, make_settings(), tmp_path / "parts", resume=True)
    assert_same(state_of(tmp_path / "parts"), state_of(tmp_path / "whole"))
    assert parts.encoder.read_bytes() == whole.encoder.read_bytes()


def test_an_index_of_an_earlier_version_is_known_by_its_build(store_factory, make_settings, tmp_path):
    store = store_factory()
    shutil.rmtree(store.path / TABLE / "uns/spatial_neighbors/pairs_id")
    older = TileStore(store.path)
    pretrain([older], make_settings(), tmp_path / "run")
    assert state_of(tmp_path / "run")["stores"][0]["index"] == older.neighbours().rule["build_id"]
    assert pretrain([older], make_settings(), tmp_path / "run", resume=True).finished


@pytest.mark.parametrize("name", ["best.pt", "epoch_0001.pt"])
def test_a_run_whose_last_checkpoint_is_gone_is_not_begun_anew(store_factory, make_settings, tmp_path, name):
    """What else it has kept is days of work."""
    stores, run = [store_factory()], tmp_path / "run"
    settings = make_settings("run.keep_every_epochs=1", "run.monitor_every_epochs=1", "run.monitor_tiles=24")
    with pytest.raises(KeyboardInterrupt):
        pretrain(stores, settings, run, progress=stop_at(4, raise_interrupt))
    for file in run.glob("checkpoints/*.pt"):
        if file.name != name:
            file.unlink()
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    assert run / "checkpoints" / name in before
    with pytest.raises(TrainingError, match=f"no checkpoints/last.pt.*{name}"):
        pretrain(stores, settings, run, resume=True)
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
    shutil.copy(run / "checkpoints" / name, run / "checkpoints/last.pt")
    assert pretrain(stores, settings, run, resume=True).finished


def test_a_checkpoint_that_is_a_broken_link_is_not_taken_for_none(store_factory, make_settings, tmp_path):
    """As where the disk that holds the checkpoints is not mounted."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints/last.pt").symlink_to(tmp_path / "elsewhere/last.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        pretrain([store_factory()], make_settings(), run, resume=True)
    with pytest.raises(TrainingError, match="holds a run"):
        pretrain([store_factory()], make_settings(), run)


def test_a_damaged_checkpoint_is_refused_in_one_line(store_factory, make_settings, tmp_path):
    stores = [store_factory()]
    pretrain(stores, make_settings(), tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / "last.pt"
    file.write_bytes(file.read_bytes()[:1000])
    file.with_name("best.pt").unlink()
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        pretrain(stores, make_settings(), tmp_path / "run", resume=True)
    assert "\n" not in str(caught.value)
    assert "copy" not in str(caught.value)
    file.with_name("best.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"cannot be read.*; or copy best.pt there to go on from that"):
        pretrain(stores, make_settings(), tmp_path / "run", resume=True)


def test_bytes_that_are_no_text_stop_no_run(store_factory, make_settings, tmp_path):
    """As a disk leaves them that failed under a log; whole lines before and after them count."""
    stores, run = [store_factory()], tmp_path / "run"
    settings = make_settings("run.monitor_every_epochs=1", "run.monitor_tiles=24")
    with pytest.raises(KeyboardInterrupt):
        pretrain(stores, settings, run, progress=stop_at(4, raise_interrupt))
    before = losses_of(run)
    for name in ("metrics.jsonl", "monitor.jsonl", "settings.toml"):
        with (run / name).open("ab") as file:
            file.write(b"# \xff\x00\xfe\n")
    assert pretrain(stores, settings, run, resume=True).finished
    assert losses_of(run)[: len(before)] == before
    assert load_settings(file=run / "settings.toml") == settings
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\n")
    assert len(read_loss_curve(run).steps) == 6


def test_a_stray_file_called_as_the_settings_are_is_replaced(store_factory, make_settings, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.toml").write_bytes(b"\xff\xfe")
    assert pretrain([store_factory()], make_settings(), tmp_path / "run").finished
    assert load_settings(file=tmp_path / "run" / "settings.toml") == make_settings()


def test_an_encoder_whose_checkpoint_is_gone_is_not_trained_anew(store_factory, make_settings, tmp_path):
    stores, run = [store_factory()], tmp_path / "run"
    pretrain(stores, make_settings(), run)
    before = (run / "encoder.safetensors").read_bytes()
    (run / "checkpoints" / "last.pt").unlink()
    with pytest.raises(TrainingError, match="has an encoder but no checkpoint to go on from"):
        pretrain(stores, make_settings("optimiser.base_lr=0.9"), run, resume=True)
    assert (run / "encoder.safetensors").read_bytes() == before
