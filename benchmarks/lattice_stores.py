"""Make tile stores without pixels: a lattice with holes, in tissue regions, in the order in which tiles are stored."""

import math
import shutil
import uuid
from pathlib import Path

import numpy as np
import numpy.typing as npt

from simtriplet.wsi.geometry import morton_order
from simtriplet.wsi.store import FORMAT_VERSION, SCHEMA
from simtriplet.wsi.zarr_files import write_array, write_group, write_mapping

SIZE_PX, MPP, BAND_ROWS = 224, 0.5, 512
_ANNDATA = {"encoding-type": "anndata", "encoding-version": "0.1.0"}
_DATAFRAME = {"encoding-type": "dataframe", "encoding-version": "0.2.0"}


def lattice_cells(n_tiles: int, *, seed: int = 0) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return (n,) rows and (n,) columns: a square of which a tenth is missing here and there, in Morton order by region."""
    side = math.ceil(math.sqrt(n_tiles / 0.9)) + 1
    cells = np.random.default_rng(seed).permutation(side * side)[:n_tiles]
    row, col = (cells // side).astype(np.int32), (cells % side).astype(np.int32)
    order = np.lexsort((morton_order(row, col), row // BAND_ROWS))
    return row[order], col[order]


def make_store(path: Path, n_tiles: int, *, seed: int = 0) -> None:
    """Write a store that holds just what indexing reads."""
    shutil.rmtree(path, ignore_errors=True)
    row, col = lattice_cells(n_tiles, seed=seed)
    centres = np.column_stack([col, row]) * float(SIZE_PX) + SIZE_PX / 2
    path.mkdir(parents=True)
    table = write_group(write_group(path / "tables", {}) / "tiles", _ANNDATA)
    columns = {"row": row, "col": col, "tissue_id": row // BAND_ROWS, "tissue_fraction": np.ones(n_tiles, np.float32)}
    write_group(table / "obs", {**_DATAFRAME, "column-order": list(columns)})
    for name, column in columns.items():
        write_array(table / "obs" / name, column)
    for name, values in {"obsm": {"spatial": centres}, "obsp": {}, "uns": {}}.items():
        write_mapping(table / name, values)
    record = {
        "schema": SCHEMA,
        "version": FORMAT_VERSION,
        "state": "complete",
        "tiles_id": uuid.uuid4().hex,
        "n_tiles": n_tiles,
        "slide": {"id": path.name.partition(".")[0], "mpp": MPP},
        "tiling": {"mpp": MPP, "size_px": SIZE_PX, "stride_px": SIZE_PX},
    }
    write_group(path, {"simtriplet": record})
