"""The notebook runs from top to bottom, and the example programs do what they say."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from simtriplet.wsi import SyntheticSlideSpec, TileStore, draw_slide

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def run(folder: Path, script: str, *arguments: object, status: int = 0) -> str:
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300, check=False)
    assert ended.returncode == status, ended.stderr
    return ended.stderr if status else ended.stdout


@pytest.mark.slow
def test_examples_tile_train_and_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    spec = SyntheticSlideSpec(width_px=1024, height_px=1024, region_um=160.0, tissue_fraction=0.6, n_pieces=1)
    draw_slide(tmp_path / "one.svs", spec)
    said = run(tmp_path, "tile_and_index.py", "one.svs", "--size", 64)
    store = TileStore(tmp_path / "stores" / "one.tiles.zarr")
    assert "1024 x 1024 px, 0.5 um" in said
    assert f"ok: {len(store)} tiles, {store.neighbours().n_pairs} pairs" in said
    assert "skipped" in run(tmp_path, "tile_and_index.py", "one.svs", "--size", 64)
    coarser = run(tmp_path, "tile_and_index.py", "one.svs", "--slide-mpp", 1, "--mpp", 2, "--size", 64, "--out", "two")
    assert "ok: " in coarser
    assert TileStore(tmp_path / "two" / "one.tiles.zarr").base_mpp == 1
    said = run(tmp_path, "own_training_loop.py", "stores", "--steps", 2, "--size", 32, "--batch-size", 8)
    assert "step 2: loss" in said
    encoder = torchvision.models.resnet18()
    encoder.fc = torch.nn.Identity()
    encoder.load_state_dict(torch.load(tmp_path / "encoder.pt", weights_only=True))
    said = run(tmp_path, "own_training_loop.py", "stores", "--batch-size", len(store) + 1, status=2)
    assert f"{len(store)} tiles do not fill a batch of {len(store) + 1}; pass a smaller --batch-size" in said
    said = run(tmp_path, "find_similar_tiles.py", "stores", "--tile", 3, "--k", 2)
    assert said.startswith("tile 3 at ")
    assert "cosine 1.0000" in said.splitlines()[0]
    strip = np.asarray(Image.open(tmp_path / "similar.png"))
    assert strip.shape == (64, 3 * 64, 3)
    assert np.array_equal(strip[:, :64], store.images.read(np.array([3]))[0])


def test_notebook_holds_no_output_and_names_no_machine() -> None:
    notebook = json.loads((EXAMPLES / "from_slide_to_features.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the kernel's own packages
def test_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="the extra dev is not installed")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(EXAMPLES / "from_slide_to_features.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    with client.setup_kernel():
        for place, cell in enumerate(notebook.cells):
            client.execute_cell(cell, place)
        for place, cell in enumerate(notebook.cells):  # run again from the top it finds what is there
            if any(call in cell.source for call in ("tile_slide(", "index_store(", "pretrain(")):
                again = {**cell, "source": cell.source.replace("run.max_steps=30", "run.max_steps=1")}
                client.execute_cell(nbformat.from_dict(again), place)
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "of the pairs are of one class" in printed
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 2
    assert (tmp_path / "notebook-work" / "run" / "encoder.safetensors").exists()
