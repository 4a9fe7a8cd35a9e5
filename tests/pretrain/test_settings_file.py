"""settings.toml of a run says what it was told, and what it chose where that was left open."""

import json
import tomllib

import pytest
import torch

from simtriplet.pretrain import settings_file
from simtriplet.pretrain.settings import load_settings
from simtriplet.pretrain.settings_file import write_settings
from simtriplet.pretrain.trainer import pretrain
from simtriplet.wsi.errors import TrainingError
from simtriplet.wsi.settings import to_values


def chosen_of(out):
    """The comments as TOML."""
    lines = (out / "settings.toml").read_text().splitlines()
    dotted = [line.removeprefix("# ") for line in lines if line.startswith("# ") and " = " in line]
    return tomllib.loads("\n".join(dotted))


def test_what_was_left_open_is_told_and_the_file_still_makes_the_same_settings(store_factory, make_settings, tmp_path):
    settings = make_settings("run.tensorboard=off", "run.device=auto")
    out = pretrain([store_factory()], settings, tmp_path / "run").out
    assert load_settings(file=out / "settings.toml") == settings
    chosen = chosen_of(out)
    on_gpu = torch.cuda.is_available()
    assert chosen["data"] == {"storage": "device"}
    assert chosen["run"]["device"] == ("cuda" if on_gpu else "cpu")
    assert chosen["run"]["precision"] == ("bf16" if on_gpu else "fp32")
    assert (chosen["run"]["tensorboard"], chosen["run"]["compile"]) == ("off", "off")
    assert chosen["run"]["threads"] == torch.get_num_threads()
    assert chosen["processes"] == 1


def test_a_resumed_run_tells_its_own_choices(store_factory, make_settings, tmp_path):
    stores, out = [store_factory()], tmp_path / "run"

    def stop(report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(stores, make_settings("run.threads=1"), out, progress=stop)
    assert chosen_of(out)["data"] == {"storage": "device"}
    other = make_settings("data.storage=stream", "run.threads=2", "run.log_every_steps=2", "run.on_nan=skip")
    with pytest.raises(KeyboardInterrupt):
        pretrain(stores, other, out, progress=stop, resume=True)
    assert load_settings(file=out / "settings.toml") == other
    assert chosen_of(out)["data"] == {"storage": "stream"}
    assert chosen_of(out)["run"]["threads"] == 2
    with pytest.raises(TrainingError, match="begun with"):  # what is refused is not written either
        pretrain(stores, make_settings("optimiser.base_lr=0.1"), out, resume=True)
    assert load_settings(file=out / "settings.toml") == other


def test_a_run_that_begins_anew_forgets_what_a_failed_one_chose(store_factory, make_settings, tmp_path):
    write_settings(tmp_path, make_settings(), {"processes": 7})
    with pytest.raises(TrainingError, match="3 tiles to train on"):
        pretrain([store_factory(rows=1, cols=3)], make_settings("run.accumulate=2"), tmp_path)
    assert chosen_of(tmp_path) == {}


def test_choices_are_kept_where_there_are_no_new_ones_and_nothing_is_written_twice(tmp_path, make_settings):
    write_settings(tmp_path, make_settings(), {"run.device": "cpu", "processes": 2})
    before = (tmp_path / "settings.toml").stat().st_mtime_ns
    write_settings(tmp_path, make_settings())
    assert (tmp_path / "settings.toml").stat().st_mtime_ns == before
    write_settings(tmp_path, make_settings("run.on_nan=skip"))
    assert chosen_of(tmp_path) == {"run": {"device": "cpu"}, "processes": 2}
    assert load_settings(file=tmp_path / "settings.toml") == make_settings("run.on_nan=skip")
    assert [path.name for path in tmp_path.iterdir()] == ["settings.toml"]


def test_without_a_writer_of_toml_the_same_is_said_as_json(tmp_path, make_settings, monkeypatch):
    def missing(settings):
        raise ImportError

    monkeypatch.setattr(settings_file, "to_toml", missing)
    write_settings(tmp_path, make_settings(), {"run.device": "cpu"})
    write_settings(tmp_path, make_settings("run.on_nan=skip"))
    values = json.loads((tmp_path / "settings.json").read_text())
    assert values.pop("chosen") == {"run.device": "cpu"}
    assert values == to_values(make_settings("run.on_nan=skip"))
