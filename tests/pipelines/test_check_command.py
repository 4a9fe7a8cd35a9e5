"""`check` tells what is damaged and how to make it again, and what it prints does make it again."""

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from simtriplet.pretrain.encoder import load_encoder, save_encoder
from simtriplet.wsi.check import check_store
from simtriplet.wsi.store import TABLE, TileStore

Run = Callable[..., "subprocess.CompletedProcess[str]"]
SLIDE = "patient01-slide1"


@pytest.fixture(scope="module")
def made(program: Run, cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one store: annotated, indexed twice, embedded."""
    folder = tmp_path_factory.mktemp("made")
    manifest = folder / "one.csv"
    lines = cohort.read_text().splitlines()
    row = next(line for line in lines if SLIDE in line)
    manifest.write_text(f"{lines[0]}\n{row.replace(SLIDE + '.svs', str(cohort.parent / SLIDE) + '.svs', 1)}\n")
    options = ("--mpp", 1.0, "--size", 48, "--stride", 40, "--codec", "jpeg", "--jpeg-quality", 80, "--min-tissue", 0.4)
    labels = ("--annotations", cohort.parent / "annotations", "--background", "rest", "--context-mpp", 2.0)
    program("tile", manifest, "--out", folder / "out", *options, *labels)
    store = folder / "out" / f"{SLIDE}.tiles.zarr"
    program("index", store, "--rule", "ring", "--inner-um", 30, "--radius-um", 90, "--name", "ring", "--any-tissue")
    program("embed", store, "--encoder", "random:resnet18:32", "--name", "net", "--precision", "fp32")
    program("index", store, "--rule", "knn", "--k", 4, "--similar-to", "X_net", "--min-similarity", 0.25)
    return folder


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(data)


def run_printed(said: str, cwd: Path) -> list[str]:
    """Run the commands that were printed as a shell does; return them."""
    commands = [
        line.strip() for line in said.splitlines() if line.startswith("  ") and not line.strip().startswith("#")
    ]
    shell = f'simtriplet() {{ "{sys.executable}" -m simtriplet.pipelines "$@"; }}\nset -e\n' + "\n".join(commands)
    subprocess.run(["bash", "-c", shell], check=True, cwd=cwd, capture_output=True, timeout=600)
    return commands


@pytest.mark.parametrize(
    ("part", "steps"),
    [
        (f"{TABLE}/obsm/X_net/zarr.json", ["embed"]),
        (f"{TABLE}/obsp/ring_connectivities/indices/c/0", ["index"]),
        ("zarr.json", ["printf", "tile", "index", "embed", "index"]),
    ],
)
def test_what_is_printed_repairs_the_store(
    program: Run, cohort: Path, made: Path, tmp_path: Path, part: str, steps: list[str]
) -> None:
    shutil.copytree(made / "out", tmp_path / "out")
    path = tmp_path / "out" / f"{SLIDE}.tiles.zarr"
    whole = TileStore(made / "out" / path.name)
    flip(path / part)
    sources = (
        "--slides",
        cohort.parent,
        "--annotations",
        cohort.parent / "annotations",
        "--encoder",
        "random:resnet18:32",
    )
    ended = program("check", path, "--repair", *sources, status=1)
    assert "1 of 1 stores are damaged; see the commands above" in ended.stderr
    commands = run_printed(ended.stdout, tmp_path)
    assert [command.replace("simtriplet ", "").split()[0] for command in commands] == steps
    assert program("check", path).stdout == f"{path.name}: ok\n"
    store = TileStore(path)
    assert np.array_equal(store.images.read(np.arange(len(store))), whole.images.read(np.arange(len(whole))))
    assert np.array_equal(store.base_xy(), whole.base_xy())
    assert store.patient_id == whole.patient_id != store.slide_id
    labels, before = store.labels(), whole.labels()
    assert labels is not None
    assert before is not None
    assert labels.names().tolist() == before.names().tolist()
    np.testing.assert_allclose(store.features("net"), whole.features("net"), rtol=1e-4, atol=1e-5)
    for name in ("ring", "spatial"):
        assert np.array_equal(store.neighbours(name).indices, whole.neighbours(name).indices)
        assert store.neighbours(name).rule["params"] == whole.neighbours(name).rule["params"]
    assert store.attributes["tiles_id"] == whole.attributes["tiles_id"]
    assert store.neighbours("ring").rule["pairs_id"] == whole.neighbours("ring").rule["pairs_id"], "runs can go on"


def test_what_a_store_does_not_know_is_named(program: Run, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "out", tmp_path / "out")
    path = tmp_path / "out" / f"{SLIDE}.tiles.zarr"
    flip(path / "images/thumbnail/0/c/0/0/0")
    said = program("check", path, "--repair", status=1).stdout
    assert "array images/thumbnail/0: is damaged" in said
    assert f"# SLIDE is the file of slide {SLIDE}; pass --slides" in said
    assert "--annotations ANNOTATIONS" in said
    assert "--encoder random:resnet18:32" in said


def test_features_are_repaired_by_the_encoder_that_they_are_of(program: Run, made: Path, tmp_path: Path) -> None:
    """Of several sets of features each has its own; another encoder's would be put in their place unseen."""
    shutil.copytree(made / "out", tmp_path / "out")
    path = tmp_path / "out" / f"{SLIDE}.tiles.zarr"
    program("embed", path, "--encoder", "random:resnet18:48", "--name", "other", "--precision", "fp32")
    (run := tmp_path / "run").mkdir()
    torch.manual_seed(1)
    untaught = load_encoder("random:resnet18:32")
    torch.nn.init.normal_(next(untaught.backbone.parameters()))
    save_encoder(run, untaught.backbone, dataclasses.replace(untaught.info, objective="simtriplet"))
    program("embed", path, "--encoder", run, "--name", "learnt", "--precision", "fp32")
    for name in ("net", "other", "learnt"):
        flip(path / TABLE / f"obsm/X_{name}/c/0/0")

    def encoders(*given: object) -> dict[str, str]:
        said = program("check", path, "--repair", *given, status=1).stdout
        lines = [line.split() for line in said.splitlines() if line.startswith("  simtriplet embed ")]
        return {words[words.index("--name") + 1]: words[words.index("--encoder") + 1] for words in lines}

    untrained = {"net": "random:resnet18:32", "other": "random:resnet18:48"}
    assert encoders() == {**untrained, "learnt": "ENCODER"}
    assert encoders("--encoder", "random:resnet34:32") == {**untrained, "learnt": "ENCODER"}
    assert encoders("--encoder", "random:resnet34:32", "--encoder", run) == {**untrained, "learnt": str(run)}


def test_one_store_that_cannot_be_opened_does_not_hide_the_others(program: Run, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "out", tmp_path / "out")
    (tmp_path / "out" / "a.tiles.zarr").mkdir()
    ended = program("check", tmp_path / "out", status=1)
    assert "a.tiles.zarr: store" in ended.stdout
    assert f"{SLIDE}.tiles.zarr: ok" in ended.stdout
    assert "1 of 2 stores are damaged; check --repair tells" in ended.stderr


def test_tiles_of_another_program_are_imported_again(program: Run, cohort: Path, tmp_path: Path) -> None:
    """Not tiled by this program's own lattice and tissue, which would be other tiles; and their features with them."""
    h5py = pytest.importorskip("h5py", reason="the extra interop is not installed")
    coords = np.array([(x, y) for x in range(7, 1400, 96) for y in range(3, 1100, 96)])
    with h5py.File(tmp_path / f"{SLIDE}.h5", "w") as file:
        file.create_dataset("coords", data=coords).attrs.update({"patch_size": 96, "patch_level": 0, "name": SLIDE})
        file["features"] = coords.astype(np.float32)
    asked = ("--out", tmp_path / "out", "--codec", "jpeg", "--jpeg-quality", 70, "--features", "uni")
    labels = ("--annotations", cohort.parent / "annotations", "--background", "rest")
    program("import", tmp_path / f"{SLIDE}.h5", "--slides", cohort, *asked, *labels)
    path = tmp_path / "out" / f"{SLIDE}.tiles.zarr"
    whole = shutil.copytree(path, tmp_path / "whole" / path.name)
    sources = ("--slides", cohort.parent, "--annotations", cohort.parent / "annotations")
    for part, steps in (("obs/x/c/0", ["replace", "skip"]), ("obsm/X_uni/c/0/0", ["skip"])):
        flip(path / TABLE / part)
        said = program("check", path, "--repair", *sources, status=1).stdout
        imports = [line.split() for line in said.splitlines() if line.startswith("  simtriplet import ")]
        assert [words[words.index("--existing") + 1] for words in imports] == steps
        assert f"# COORDINATES is the file of the other program; its name was {SLIDE}.h5" in said
        (path / TABLE / part).write_bytes((whole / TABLE / part).read_bytes())
    flip(path / TABLE / part)
    run_printed(said.replace("COORDINATES --", f"{tmp_path / SLIDE}.h5 --"), tmp_path)
    assert check_store(path) == []
    before, after = TileStore(whole), TileStore(path)
    assert np.array_equal(after.base_xy(), before.base_xy())
    assert np.array_equal(after.images.read(np.arange(len(after))), before.images.read(np.arange(len(before))))
    assert after.labels().names().tolist() == before.labels().names().tolist()  # type: ignore[union-attr]
    assert np.array_equal(after.features("uni"), before.features("uni"))
    assert after.patient_id == before.patient_id == "patient01"
