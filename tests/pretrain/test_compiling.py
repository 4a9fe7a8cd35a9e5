"""torch.compile of the encoder, and of all that a step computes: other code, the same training."""

import os
import subprocess
import sys

import pytest
import torch

from simtriplet.pretrain.compiling import CompiledObjective, compile_model, make_run_objective, make_run_views
from simtriplet.pretrain.model import ViewOutputs, make_model
from simtriplet.pretrain.objective import SimTripletObjective, make_objective
from simtriplet.pretrain.run_settings import RunSettings
from simtriplet.pretrain.settings import ObjectiveSettings, load_settings
from simtriplet.pretrain.trainer import pretrain
from simtriplet.pretrain.views import ViewMaker
from simtriplet.wsi.errors import SettingsError, TrainingError

CPU = torch.device("cpu")
of_torch = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # while it compiles


@pytest.mark.parametrize(
    ("asked", "compiled"),
    [("auto", "off"), ("off", "off"), ("encoder", "encoder"), ("step", "step"), ("true", "encoder"), ("false", "off")],
)
def test_what_is_asked_for_says_what_is_compiled(asked, compiled):
    assert load_settings(overrides=[f"run.compile={asked}"]).run.compiled == compiled
    assert RunSettings().compiled == "off"  # until a gain has been measured on a GPU


@pytest.mark.parametrize("asked", ["on", "1", "network", "[]"])
def test_other_words_are_refused_with_those_that_are_known(asked):
    with pytest.raises(SettingsError, match=r"run\.compile.*must be one of 'auto', 'off', 'encoder', 'step'"):
        load_settings(overrides=[f"run.compile={asked}"])


@pytest.mark.parametrize("asked", [True, "encoder", "step"])
def test_compiling_and_activation_checkpointing_exclude_each_other(asked):
    with pytest.raises(SettingsError, match=r"run\.compile.*must be off with run\.activation_checkpointing"):
        RunSettings(compile=asked, activation_checkpointing=True)
    assert RunSettings(compile="off", activation_checkpointing=True).compiled == "off"


def test_a_whole_step_is_not_compiled_for_several_processes(make_settings):
    settings = make_settings("run.compile=step")
    model = make_model(settings.model, with_predictor=True)
    with pytest.raises(TrainingError, match=r"run\.compile 'step': is for one process, not 2; pass run\.compile=enc"):
        compile_model(model, settings.run, CPU, n_processes=2)


def test_only_a_whole_step_compiles_views_and_loss(make_settings):
    for asked, kind in (("off", SimTripletObjective), ("encoder", SimTripletObjective), ("step", CompiledObjective)):
        settings = make_settings(f"run.compile={asked}")
        assert type(make_run_objective(settings, CPU)) is kind
        tiles = torch.zeros(1, 40, 40, 3, dtype=torch.uint8)
        if asked != "step":  # that would compile
            views = make_run_views(settings, CPU)(tiles, torch.Generator().manual_seed(0))
            assert views.unique().numel() == 3


def test_a_run_goes_on_where_the_same_is_said_in_other_words(store_factory, make_settings, tmp_path):
    stores = [store_factory()]
    small = ["run.max_steps=1", "optimiser.warmup_epochs=0"]
    done = pretrain(stores, make_settings("run.compile=false", *small), tmp_path / "run")
    for same in ("off", "auto", "false"):
        resumed = pretrain(stores, make_settings(f"run.compile={same}", *small), tmp_path / "run", resume=True)
        assert resumed == done
    with pytest.raises(TrainingError, match=r"was begun with run\.compile = 'off', not 'step'"):
        pretrain(stores, make_settings("run.compile=step", *small), tmp_path / "run", resume=True)


@pytest.mark.slow
def test_a_machine_without_a_compiler_is_told_so_in_one_line(tmp_path):
    code = "import torch; from simtriplet.pretrain.compiled_part import compile_part;"
    code += "compile_part(lambda x: x * 2 + 1, mode=None)(torch.ones(3))"
    place = {**os.environ, "CXX": str(tmp_path / "no-such-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=place, check=False)
    assert ended.returncode == 1
    assert "TrainingError: torch.compile: failed (" in ended.stderr.splitlines()[-1]
    assert "pass run.compile=off" in ended.stderr.splitlines()[-1]


@pytest.mark.slow
@of_torch
def test_compiled_views_are_those_of_a_gpu(make_settings):
    settings = make_settings("run.compile=step", "views.rotations90=true", "views.stain_p=0.5")
    tiles = torch.randint(0, 256, (6, 40, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain = ViewMaker(settings.views, image_size_px=32)
    parameters = plain.draw(tiles, torch.Generator().manual_seed(1))
    views = make_run_views(settings, CPU).apply(tiles, parameters)
    torch.testing.assert_close(views, plain.apply_at_once(tiles, parameters), atol=1e-4, rtol=0)
    assert not views.requires_grad


@pytest.mark.slow
@of_torch
@pytest.mark.parametrize("name", ["simtriplet", "vicreg", "barlow"])
def test_a_compiled_objective_is_the_objective(name):
    plain = make_objective(ObjectiveSettings(name=name))
    compiled = CompiledObjective(plain, mode=None)
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(12, 10, generator=generator).requires_grad_() for _ in range(6)]
    outputs = ViewOutputs(tuple(draws[:3]) if plain.uses_predictor else (), tuple(draws[3:]))
    inputs = draws[:3] if plain.uses_predictor else draws[3:]
    weights = torch.rand(12, generator=generator)
    for share in (torch.tensor(0.25), torch.tensor(0.5)):  # a tensor, so that a step does not compile anew
        wanted, terms = plain(outputs, warm_in=share, pair_weights=weights)
        got, other = compiled(outputs, warm_in=share, pair_weights=weights)
        torch.testing.assert_close(got, wanted)
        torch.testing.assert_close(other, terms)
        for one, two in zip(torch.autograd.grad(wanted, inputs), torch.autograd.grad(got, inputs), strict=True):
            torch.testing.assert_close(two, one)


@pytest.mark.slow
@of_torch
@pytest.mark.parametrize("extra", ["run.accumulate=2", "run.on_nan=skip", "objective.name=vicreg"])
@pytest.mark.parametrize("asked", ["encoder", "step"])
def test_a_compiled_run_trains_alike_and_keeps_its_names(
    store_factory, make_settings, tmp_path, monkeypatch, asked, extra
):
    if asked == "step":  # which makes views as a GPU does, without a CPU's rounding to 8 bits after the crop
        monkeypatch.setattr(ViewMaker, "apply_one_by_one", ViewMaker.apply_at_once)
    stores = [store_factory()]
    small = ["objective.inter_warmup_epochs=0.5", 'data.pair_weights=["distance"]', extra]
    losses = {"off": [], asked: []}
    results = [
        pretrain(stores, make_settings(*small, f"run.compile={each}"), tmp_path / each, progress=losses[each].append)
        for each in losses
    ]
    assert len(losses["off"]) == 6
    for one, other in zip(*losses.values(), strict=True):
        assert other.loss == pytest.approx(one.loss, abs=2e-4, rel=1e-3)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-2)
    states = [torch.load(each.out / "checkpoints" / "last.pt", weights_only=True)["model"] for each in results]
    assert list(states[0]) == list(states[1])
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-2, atol=1e-3, msg=name)
