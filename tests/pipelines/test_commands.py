"""The commands one by one on drawn slides, and every failure a user can cause."""

import csv
import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

from simtriplet.wsi.store import TileStore, open_stores

Run = Callable[..., "CompletedProcess[str]"]
Failure = Callable[["CompletedProcess[str]"], str]

COMMANDS = ("info", "tile", "index", "pretrain", "embed", "evaluate", "run", "demo", "check")
TINY = (
    "--set",
    "run.max_steps=6",
    "--set",
    "run.batch_size=16",
    "--set",
    "data.image_size_px=32",
    "--set",
    "run.threads=1",
)


@pytest.fixture(scope="module")
def program(cold_program: Run) -> Run:
    """Every command of this file is a process that imports everything anew."""
    return cold_program


@pytest.fixture(scope="module")
def stores(program: Run, cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cohort's stores, tiled with labels and indexed."""
    out = tmp_path_factory.mktemp("stores")
    labels = ("--annotations", cohort.parent / "annotations")
    program("tile", cohort, "--out", out, "--mpp", 1.0, "--size", 64, "--codec", "zstd", *labels)
    program("index", out)
    return out


@pytest.fixture(scope="module")
def run_folder(program: Run, stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "first"
    program("pretrain", stores, "--out", out, "--preset", "quick", *TINY)
    return out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_defaults(program: Run, command: str) -> None:
    text = program(command, "--help").stdout
    assert text.startswith(f"Usage: simtriplet.pipelines {command}") or f" {command} " in text.splitlines()[0]
    if command not in ("run", "check"):
        assert "[default: " in text


def test_help_lists_every_command(program: Run) -> None:
    text = program("--help").stdout
    assert [name for name in COMMANDS if f"\n  {name} " not in text] == []


def test_version_is_the_package_version(program: Run) -> None:
    import importlib.metadata

    assert importlib.metadata.version("simtriplet") in program("--version").stdout


def test_info_takes_a_folder_as_tile_does(program: Run, cohort: Path) -> None:
    lines = program("info", cohort.parent).stdout.splitlines()
    assert [line.partition("\t")[0] for line in lines[1:]] == [
        f"patient{number:02d}-slide1.svs" for number in range(1, 5)
    ]


def test_info_says_what_the_file_says(program: Run, cohort: Path) -> None:
    lines = program("info", cohort.parent / "patient01-slide1.svs").stdout.splitlines()
    assert lines[1].split("\t") == [
        "patient01-slide1.svs",
        "1536 x 1280",
        "1 4 16",
        "0.5 x 0.5",
        "20x",
        "aperio",
        "tiff",
    ]


def test_tile_writes_summary_and_settings_beside_the_stores(stores: Path) -> None:
    with (stores / "tile-summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["slide_id"] for row in rows] == [f"patient0{n}-slide1" for n in (1, 2, 3, 4)]
    for row in rows:
        store = TileStore(stores / f"{row['slide_id']}.tiles.zarr")
        assert (row["status"], int(row["tiles"])) == ("ok", len(store))
        assert store.patient_id == row["slide_id"].partition("-")[0]
        labels = store.labels()
        assert labels is not None
        assert int(row["labelled"]) == int((np.asarray(labels.codes) >= 0).sum()) > 0
    settings = tomllib.loads((stores / "tile.toml").read_text())
    assert settings["tiling"]["mpp"] == 1.0
    assert settings["codec"] == "zstd"


def test_index_is_there_and_check_finds_nothing(program: Run, stores: Path) -> None:
    for store in open_stores([stores]):
        assert store.neighbours().rule["params"]["rule"] == "grid"
    ended = program("check", stores)
    assert ended.stdout.splitlines() == [f"patient0{n}-slide1.tiles.zarr: ok" for n in (1, 2, 3, 4)]


def test_check_finds_a_flipped_byte(program: Run, failure: Failure, stores: Path, tmp_path: Path) -> None:
    copy = tmp_path / "patient01-slide1.tiles.zarr"
    shutil.copytree(stores / copy.name, copy)
    shard = copy / "tiles/images/c.0.0.0.0"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    ended = program("check", copy, status=1)
    assert "tile 0: its bytes do not match their checksum" in ended.stdout
    assert "1 of 1 stores are damaged" in failure(ended)


def test_pretrain_embed_evaluate_leave_their_results(
    program: Run, stores: Path, run_folder: Path, tmp_path: Path
) -> None:
    assert (run_folder / "encoder.safetensors").exists()
    assert tomllib.loads((run_folder / "settings.toml").read_text())["run"]["max_steps"] == 6
    program("embed", stores, "--encoder", run_folder, "--name", "first")
    program("embed", stores, "--encoder", "random:resnet18:32", "--name", "random")
    assert TileStore(stores / "patient02-slide1.tiles.zarr").features("first").shape[1] == 512
    out = tmp_path / "results"
    ended = program(
        "evaluate", stores, "--features", "first", "--baseline", "random", "--out", out, "--run", run_folder
    )
    values = json.loads((out / "results.json").read_text())
    assert values["leakage"] == "transductive"
    tested = [patient for fold in values["folds"] for patient in fold["test_patients"]]
    assert sorted(tested) == [f"patient0{n}" for n in (1, 2, 3, 4)]
    for fold in values["folds"]:
        assert not set(fold["train_patients"]) & set(fold["test_patients"])
    assert f"{values['metrics']['balanced_accuracy']['value']:.3f}" in ended.stdout
    assert sum(one["n_tiles"] for one in values["per_class"]) == values["n_tiles"]
    assert "<script" not in (out / "report.html").read_text()


def test_evaluate_takes_labels_of_slides_from_a_csv(
    program: Run, failure: Failure, stores: Path, run_folder: Path, tmp_path: Path
) -> None:
    program("embed", stores, "--encoder", "random:resnet18:32", "--name", "random")
    table = tmp_path / "labels.csv"
    table.write_text(
        "slide_id,patient_id,grade\n" + "".join(f"patient0{n}-slide1,p{n},g{n % 2}\n" for n in (1, 2, 3, 4))
    )
    arguments = ("evaluate", stores, "--features", "random", "--out", tmp_path / "r", "--no-report", "--labels", table)
    program(*arguments, "--label-column", "grade")
    values = json.loads((tmp_path / "r/results.json").read_text())
    assert values["classes"] == ["g0", "g1"]
    assert {len(fold["test_patients"]) for fold in values["folds"]} == {2}
    assert "no column 'grdae'" in failure(program(*arguments, "--label-column", "grdae", status=1))


def test_second_tile_run_skips_replaces_or_refuses(program: Run, failure: Failure, stores: Path, cohort: Path) -> None:
    labels = ("--annotations", cohort.parent / "annotations", "--codec", "zstd")
    again = ("tile", cohort, "--out", stores, "--mpp", 1.0, "--size", 64, *labels)
    root = stores / "patient01-slide1.tiles.zarr/zarr.json"
    before = root.stat().st_mtime_ns
    assert "skipped" in program(*again, "--existing", "skip").stdout
    assert root.stat().st_mtime_ns == before
    assert "4 of 4 slides failed" in failure(program(*again, status=1))
    other = ("tile", cohort, "--out", stores, "--mpp", 2.0, "--size", 64, "--existing", "skip")
    assert "with other settings" in program(*other, status=1).stdout


def test_dask_workers_give_the_same_stores(program: Run, stores: Path, cohort: Path, tmp_path: Path) -> None:
    labels = ("--annotations", cohort.parent / "annotations", "--codec", "zstd")
    program("tile", cohort, "--out", tmp_path, "--mpp", 1.0, "--size", 64, *labels, "--workers", 2)
    for store in open_stores([tmp_path]):
        other = TileStore(stores / store.path.name)
        assert np.array_equal(store.images.read(range(len(store))), other.images.read(range(len(other))))
        assert np.array_equal(store.base_xy(), other.base_xy())


class TestFailures:
    """Each is one line that names the file and the cure, exit 1, and leaves nothing under a final name."""

    def test_not_a_slide(self, program: Run, failure: Failure, tmp_path: Path) -> None:
        (tmp_path / "notes.svs").write_text("no slide")
        line = failure(program("tile", tmp_path / "notes.svs", "--out", tmp_path / "out", status=1))
        assert "notes.svs" in line
        assert "is not a slide" in line
        assert not list((tmp_path / "out").glob("*.zarr*"))

    def test_missing_slide(self, program: Run, failure: Failure, tmp_path: Path) -> None:
        line = failure(program("tile", tmp_path / "gone.svs", "--out", tmp_path / "out", status=1))
        assert "gone.svs': does not exist; check the path" in line

    def test_truncated_slide(self, program: Run, failure: Failure, cohort: Path, tmp_path: Path) -> None:
        whole = (cohort.parent / "patient01-slide1.svs").read_bytes()
        for share in (0.2, 0.6, 0.95):
            (tmp_path / "cut.svs").write_bytes(whole[: int(len(whole) * share)])
            line = failure(program("tile", tmp_path / "cut.svs", "--out", tmp_path / "out", status=1))
            assert "cut.svs" in line
            assert not list((tmp_path / "out").glob("*.zarr*"))

    def test_no_mpp(self, program: Run, failure: Failure, tmp_path: Path) -> None:
        from simtriplet.wsi.synthetic import SyntheticSlideSpec, draw_slide

        spec = SyntheticSlideSpec(width_px=1024, height_px=768, description_mpp=False, region_um=100.0)
        draw_slide(tmp_path / "bare.svs", spec)
        line = failure(program("tile", tmp_path / "bare.svs", "--out", tmp_path / "out", status=1))
        assert "bare.svs' has no mpp" in line.replace("': has", "' has")
        assert "--slide-mpp" in line
        program("tile", tmp_path / "bare.svs", "--out", tmp_path / "out", "--slide-mpp", 0.5, "--size", 128)
        assert TileStore(tmp_path / "out/bare.tiles.zarr").attributes["slide"]["mpp_source"] == "option"

    def test_no_tissue(self, program: Run, failure: Failure, tmp_path: Path) -> None:
        import tifffile

        white = np.full((1024, 1024, 3), 244, np.uint8)
        resolution = (20_000.0, 20_000.0)
        tifffile.imwrite(
            tmp_path / "glass.tif", white, tile=(256, 256), photometric="rgb", resolution=resolution, resolutionunit=3
        )
        line = failure(program("tile", tmp_path / "glass.tif", "--out", tmp_path / "out", status=1))
        assert "no tissue was found" in line
        assert not list((tmp_path / "out").glob("*.zarr*"))

    def test_unwritable_output(self, program: Run, failure: Failure, cohort: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        line = failure(program("tile", cohort, "--out", tmp_path / "file" / "out", status=1))
        assert "cannot be written" in line
        assert "choose another --out" in line

    def test_unknown_setting_names_the_nearest(
        self, program: Run, failure: Failure, stores: Path, tmp_path: Path
    ) -> None:
        arguments = ("pretrain", stores, "--out", tmp_path / "run", "--set", "run.epoch=3")
        line = failure(program(*arguments, status=1))
        assert "'run.epoch' is not known; did you mean 'epochs'?" in line
        assert not (tmp_path / "run").exists()

    def test_store_of_another_version(self, program: Run, failure: Failure, stores: Path, tmp_path: Path) -> None:
        copy = tmp_path / "patient01-slide1.tiles.zarr"
        shutil.copytree(stores / copy.name, copy)
        meta = json.loads((copy / "zarr.json").read_text())
        meta["attributes"]["simtriplet"]["version"] = "2.0"
        (copy / "zarr.json").write_text(json.dumps(meta))
        line = failure(program("index", copy, status=1))
        assert "format version 2.0" in line

    def test_no_labels_and_a_single_patient(self, program: Run, failure: Failure, cohort: Path, tmp_path: Path) -> None:
        slide = cohort.parent / "patient01-slide1.svs"
        program("tile", slide, "--out", tmp_path / "bare", "--mpp", 1.0, "--size", 64)
        program("embed", tmp_path / "bare", "--encoder", "random:resnet18:32")
        line = failure(program("evaluate", tmp_path / "bare", "--out", tmp_path / "r", status=1))
        assert "label" in line
        annotation = cohort.parent / "annotations/patient01-slide1.geojson"
        program("tile", slide, "--out", tmp_path / "one", "--mpp", 1.0, "--size", 64, "--annotations", annotation)
        program("embed", tmp_path / "one", "--encoder", "random:resnet18:32")
        line = failure(program("evaluate", tmp_path / "one", "--out", tmp_path / "r", status=1))
        assert "patient" in line
        assert not (tmp_path / "r").exists()

    def test_pretrain_without_index(self, program: Run, failure: Failure, cohort: Path, tmp_path: Path) -> None:
        slide = cohort.parent / "patient01-slide1.svs"
        program("tile", slide, "--out", tmp_path / "bare", "--mpp", 1.0, "--size", 64)
        line = failure(program("pretrain", tmp_path / "bare", "--out", tmp_path / "run", "--preset", "quick", status=1))
        assert "simtriplet index" in line

    @pytest.mark.parametrize(
        "arguments",
        [
            ("tile",),
            ("tile", "x.svs"),
            ("tile", "x.svs", "--out", "o", "--codec", "png"),
            ("index", "x", "--rule", "nearest"),
            ("nonsense",),
        ],
    )
    def test_wrong_usage_is_status_2(self, program: Run, arguments: tuple[str, ...], tmp_path: Path) -> None:
        program(*arguments, status=2, cwd=tmp_path)


def test_one_bad_slide_does_not_stop_the_others(program: Run, failure: Failure, cohort: Path, tmp_path: Path) -> None:
    for name in ("patient01-slide1.svs", "patient02-slide1.svs"):
        shutil.copy(cohort.parent / name, tmp_path)
    (tmp_path / "bad.svs").write_bytes(b"II*\0 not really")
    line = failure(program("tile", tmp_path, "--out", tmp_path / "out", "--mpp", 1.0, "--size", 64, status=1))
    assert "1 of 3 slides failed" in line
    with (tmp_path / "out/tile-summary.csv").open() as file:
        status = {row["slide_id"]: (row["status"], row["reason"]) for row in csv.DictReader(file)}
    assert status["patient01-slide1"] == status["patient02-slide1"] == ("ok", "")
    assert status["bad"][0] == "failed"
    assert str(tmp_path) not in status["bad"][1]
