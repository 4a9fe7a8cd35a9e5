"""A reader's folder, with everything that the pages name, and the blocks of code on a page."""

import csv
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from simtriplet.evaluate import embed_store, evaluate_features, fit_result_head, save_head
from simtriplet.pretrain import load_encoder, load_settings, pretrain
from simtriplet.wsi import (
    SlideJob,
    SyntheticSlideSpec,
    TileRequest,
    TileStore,
    TilingSpec,
    draw_cohort,
    index_store,
    open_stores,
    read_geojson,
    tile_slide,
)
from simtriplet.wsi.tile_request import LabelSpec

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])

TINY_RUN = (
    "data.image_size_px=32",
    "model.backbone=resnet18",
    "model.projector_dim=16",
    "model.predictor_dim=8",
    "run.batch_size=8",
    "run.max_steps=2",
    "run.device=cpu",
)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block of a page: its language and text."""

    page: str
    language: str
    text: str


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page; files that it shows are examples, with tests of their own."""
    found = re.findall(r"^```(\w+)[^\n]*\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    name = page.relative_to(ROOT).as_posix()
    return [Block(name, language, text) for language, text in found if not text.startswith("--8<--")]


@pytest.fixture(scope="session")
def pages() -> list[Path]:
    return PAGES


@pytest.fixture(scope="session")
def read_blocks() -> Callable[[Path], list[Block]]:
    return blocks_of


@pytest.fixture(scope="session")
def tiny_run() -> tuple[str, ...]:
    return TINY_RUN


@pytest.fixture(scope="session")
def reader_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slides of four patients, their stores with index and features, a run, a head: what a reader has who came this far."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("reader")
    spec = SyntheticSlideSpec(
        width_px=1024,
        height_px=1024,
        region_um=160.0,
        tissue_fraction=0.6,
        n_pieces=1,
        classes=("epithelium", "stroma"),
    )
    draw_cohort(folder / "slides", n_patients=4, slides_per_patient=1, spec=spec, seed=5)
    shutil.move(folder / "slides" / "annotations", folder / "annotations")
    _write_tables(folder)
    request = TileRequest(TilingSpec(mpp=0.5, size_px=128), labels=LabelSpec())
    for slide in sorted((folder / "slides").glob("*.svs")):
        regions = read_geojson(folder / "annotations" / f"{slide.stem}.geojson")
        job = SlideJob(slide, slide.stem, patient_id=slide.stem.partition("-")[0], regions=tuple(regions))
        tile_slide(job, folder / "stores", request)
        index_store(TileStore(folder / "stores" / f"{slide.stem}.tiles.zarr"))
    stores, run = open_stores([folder / "stores"]), folder / "runs" / "first"
    pretrain(stores, load_settings(preset="quick", overrides=TINY_RUN), run)
    shutil.rmtree(run / "checkpoints")  # 0.4 GB, which no page asks for
    for name in ("simtriplet", "simsiam"):
        shutil.copytree(run, folder / "runs" / name)
    for name, source in {"simtriplet": run, "simsiam": "random:resnet18:32", "random": "random:resnet18:32"}.items():
        encoder = load_encoder(source)
        for store in stores:
            embed_store(store, encoder, name=name)
    _write_coordinates(folder)
    save_head(folder / "head.json", fit_result_head(evaluate_features(open_stores([folder / "stores"]), "simtriplet")))
    return folder


def _write_tables(folder: Path) -> None:
    """Write the manifest, the labels and the lists of patients that the pages name."""
    slides = sorted((folder / "slides").glob("*.svs"))
    patients = [slide.stem.partition("-")[0] for slide in slides]
    with (folder / "slides.csv").open("w", newline="") as file:
        rows = zip(slides, patients, strict=True)
        csv.writer(file).writerows(
            [("path", "patient_id"), *((f"slides/{slide.name}", patient) for slide, patient in rows)]
        )
    with (folder / "labels.csv").open("w", newline="") as file:
        rows = zip(slides, patients, "abab", strict=True)
        csv.writer(file).writerows(
            [("slide_id", "patient_id", "diagnosis"), *((slide.stem, patient, label) for slide, patient, label in rows)]
        )
    (folder / "test-patients.txt").write_text(f"{patients[0]}\n")


def _write_coordinates(folder: Path) -> None:
    """Write the tiles' places as CLAM and TRIDENT do, with features."""
    try:
        import h5py
    except ImportError:  # the commands that read them are then skipped
        return
    for store in open_stores([folder / "stores"]):
        features = store.features("simtriplet")
        side = {"patch_size": store.size_px, "name": store.slide_id}
        of_clam, of_trident = side | {"patch_level": 0}, side | {"patch_size_level0": round(store.base_size_px)}
        for place, attributes in {
            f"clam/patches/{store.slide_id}.h5": of_clam,
            f"clam/features/h5_files/{store.slide_id}.h5": {},
            f"trident/patches/{store.slide_id}_patches.h5": of_trident,
            f"trident/features/{store.slide_id}.h5": of_trident,
        }.items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(folder / place, "w") as file:
                file.create_dataset("coords", data=store.base_xy()).attrs.update(attributes)
                if "features" in place:
                    file["features"] = features
