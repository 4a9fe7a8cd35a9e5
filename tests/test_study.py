"""The study, as small as it can be, from files as the challenge publishes them to the tables; numbers it gives mean nothing."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from simtriplet.wsi.annotation import read_geojson

_BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
_STUDY = _BENCHMARKS / "study.py"


def _publish(folder: Path, *, patients: int) -> None:
    """Write slides with a gland on their left, dark and striped, as the archive of GlaS holds them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(1, patients + 1):
        pixels = rng.integers(150, 230, (300, 340, 3), dtype=np.uint8)
        pixels[::4, :170] //= 2
        mask = np.zeros((300, 340), np.uint8)
        mask[:, :120], mask[:150, 120:170] = 1, 2
        Image.fromarray(pixels).save(folder / f"train_{number}.bmp")
        Image.fromarray(mask).save(folder / f"train_{number}_anno.bmp")
        grades = ("benign", " healthy") if number % 2 else (" malignant", "poorly differentiated")
        rows.append((f"train_{number}", number, *grades))
    with (folder / "Grade.csv").open("w", newline="", encoding="utf-8") as file:
        header = ("name", "patient ID", " grade (GlaS)", " grade (Sirinukunwattana et al. 2015)")
        csv.writer(file).writerows([header, *rows, ()])


def test_a_published_image_becomes_a_slide_with_outlines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(_BENCHMARKS)
    from study_glas import MPP, find_glas

    _publish(tmp_path / "published" / "Warwick QU Dataset", patients=2)
    made = find_glas(tmp_path / "published", tmp_path / "out")
    with tifffile.TiffFile(made / "slides" / "train_2.tif") as slide:
        page = slide.pages.first
        assert page.shape == (300, 340, 3)
        per_cm = page.tags["XResolution"].value
        assert 1e4 * per_cm[1] / per_cm[0] == pytest.approx(MPP, rel=1e-6)
        original = np.asarray(Image.open(tmp_path / "published" / "Warwick QU Dataset" / "train_2.bmp"))
        error = float(np.abs(page.asarray().astype(int) - original).mean())
    assert error < 6
    areas = sorted(region.area.area for region in read_geojson(made / "annotations" / "train_2.geojson"))
    assert areas == [150 * 50, 300 * 120]
    with (made / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[1] == {
        "slide_id": "train_2",
        "patient_id": "patient-02",
        "diagnosis": "malignant",
        "grade": "poorly differentiated",
    }
    assert find_glas(made, tmp_path / "other") == made
    with pytest.raises(FileNotFoundError, match=r"neither labels\.csv nor Grade\.csv"):
        find_glas(tmp_path / "out" / "glas" / "slides", tmp_path)


@pytest.mark.slow
def test_one_command_goes_from_published_files_to_tables_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    _publish(tmp_path / "published", patients=8)

    def study(*options: str) -> dict[str, object]:
        command = [sys.executable, str(_STUDY), "--data", str(tmp_path / "published"), "--out", str(tmp_path / "out")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [*command, "--scale", "tiny", "--jobs", "1", *options],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        values: dict[str, object] = json.loads((tmp_path / "out" / "tiny" / "study.json").read_text(encoding="utf-8"))
        return values

    first = study("--folds", "1")
    assert first["folds"] == 1
    text = (tmp_path / "out" / "tiny" / "study.md").read_text(encoding="utf-8")
    assert "Cut short" in text
    whole = study()
    assert whole["folds"] == 2
    tasks = whole["tasks"]
    assert isinstance(tasks, dict)
    assert set(tasks) == {"gland", "diagnosis", "grade"}
    gland = tasks["gland"]
    assert gland["n_patients"] == 8
    assert {"simsiam", "simtriplet", "vicreg2", "vicreg3", "random", "supervised", "finetuned"} == set(gland["curves"])
    assert set(gland["against"]) == {"simsiam", "supervised"}
    purity = whole["purity"]
    assert isinstance(purity, list)
    assert [row["folds"] for row in purity] == [2] * 4
    by_pairing = {row["pairing"]: row["purity"] for row in purity}
    assert by_pairing["far60"] < 0.5 < by_pairing["grid60"] < 1  # far tiles lie on the other side of the border
    runs = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "tiny" / "features").iterdir()}
    assert study() == whole
    assert runs == {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "tiny" / "features").iterdir()}
    folder = tmp_path / "out" / "tiny"
    assert {file.name for file in folder.glob("*.png")} == {
        "purity.png",
        "label_curves_gland.png",
        "label_curves_diagnosis.png",
        "label_curves_grade.png",
    }
    assert "Cut short" not in (folder / "study.md").read_text(encoding="utf-8")
