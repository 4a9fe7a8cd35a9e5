import dataclasses
from pathlib import Path

import pytest

from simtriplet.pretrain.backbone import BACKBONES
from simtriplet.pretrain.objective import OBJECTIVES
from simtriplet.pretrain.settings import PretrainSettings, load_settings, preset_names
from simtriplet.wsi.errors import SettingsError, UnknownNameError
from simtriplet.wsi.settings import build, read_toml, to_toml, to_values


def test_the_paper_preset_is_the_default_and_the_published_recipe():
    paper = load_settings(preset="paper")
    assert paper == PretrainSettings()
    assert (paper.model.backbone, paper.model.projector_dim, paper.model.predictor_dim) == ("resnet50", 2048, 512)
    assert (paper.optimiser.base_lr, paper.optimiser.momentum, paper.optimiser.weight_decay) == (0.05, 0.9, 1e-4)
    assert (paper.run.epochs, paper.run.batch_size, paper.optimiser.warmup_epochs) == (400, 128, 10)
    assert (paper.objective.name, paper.objective.inter_weight, paper.data.image_size_px) == ("simtriplet", 1.0, 128)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_builds_names_what_exists_and_reads_back(name):
    settings = load_settings(preset=name)
    assert settings.objective.name in OBJECTIVES
    assert settings.model.backbone in BACKBONES
    import tomllib

    assert build(PretrainSettings, tomllib.loads(to_toml(settings)), source="x") == settings


def test_the_three_presets_come_with_the_package():
    assert preset_names() == ["paper", "pathology", "quick"]


def test_the_pathology_preset_keeps_the_stain_and_turns_the_tile():
    views = load_settings(preset="pathology").views
    assert views.grey_p == 0
    assert views.rotations90
    assert views.vertical_flip_p == 0.5
    assert views.crop_scale == (0.4, 1.0)


def test_a_file_lies_over_the_preset_and_overrides_over_the_file(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[run]\nseed = 3\nbatch_size = 32\n[model]\nbackbone = 'resnet34'\n")
    settings = load_settings(preset="quick", file=file, overrides=["run.seed=7"])
    assert (settings.run.seed, settings.run.batch_size, settings.model.backbone) == (7, 32, "resnet34")
    assert settings.objective == load_settings(preset="quick").objective


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("run.epoch=3", "did you mean 'epochs'"),
        ("optimiser.base_rl=3", "did you mean 'base_lr'"),
        ("objectiv.name=3", "did you mean 'objective'"),
    ],
)
def test_an_unknown_key_names_the_nearest(override, hint):
    with pytest.raises(SettingsError, match=hint):
        load_settings(overrides=[override])


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'paper'"):
        load_settings(preset="papr")


def test_a_wrong_key_in_a_file_names_the_file(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[views]\nblurr_p = 0.5\n")
    with pytest.raises(SettingsError, match=r"mine\.toml.*views\.blurr_p.*blur_p"):
        load_settings(file=file)


@pytest.mark.parametrize(
    "override",
    [
        "data.image_size_px=8",
        "data.isolated=keep",
        "views.crop_scale=[0.9, 0.2]",
        "views.crop_ratio=[1.2, 2.0]",
        "views.grey_p=1.5",
        "views.hue=0.6",
        "views.std=[1.0, 0.0, 1.0]",
        "model.projector_dim=1",
        "objective.inter_weight=-1",
        "optimiser.base_lr=0",
        "optimiser.momentum=1.0",
        "optimiser.warmup_epochs=400",
        "run.batch_size=1",
        "run.max_steps=0",
        "run.threads=100000",
        "run.max_minutes=0",
        "run.precision=fp8",
    ],
)
def test_values_out_of_range_are_refused_by_name(override):
    key = override.partition("=")[0]
    with pytest.raises(SettingsError, match=key.replace(".", r"\.")):
        load_settings(overrides=[override])


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PretrainSettings().run.seed = 1  # type: ignore[misc]


def test_a_path_survives_as_text():
    settings = load_settings(overrides=["model.weights='a/b.pth'"])
    assert settings.model.weights == Path("a/b.pth")
    assert to_values(settings)["model"]["weights"] == "a/b.pth"


def test_each_preset_says_what_its_numbers_mean():
    folder = Path(__import__("simtriplet.pretrain.settings", fromlist=["x"]).__file__).parent / "presets"
    for name in preset_names():
        assert (folder / f"{name}.toml").read_text().startswith("# ")
        assert read_toml(folder / f"{name}.toml")
