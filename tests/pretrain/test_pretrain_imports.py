"""The trainer on a machine that has torch, torchvision, numpy, zarr, safetensors and google_crc32c, and nothing else."""

import subprocess
import sys

BLOCKED = ["scipy", "shapely", "cv2", "openslide", "tiffslide", "tifffile", "imagecodecs", "dask", "distributed"]
BLOCKED += ["click", "sklearn", "tomli_w", "rich", "matplotlib", "anndata", "pandas"]

PROGRAM = """
import sys

BLOCKED = set({blocked!r})

class Blocker:
    # Hides packages, so that they are as missing as if they had never been installed. A finder that raises would
    # break importlib.util.find_spec, by which torch looks for some of them.
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in BLOCKED else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Blocker(finder) for finder in sys.meta_path]
for name in sorted(BLOCKED):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(name + " is not blocked")
from pathlib import Path
from simtriplet.wsi.store import open_stores
from simtriplet.pretrain import load_encoder, load_settings, pretrain

small = ["data.image_size_px=32", "model.backbone=resnet18", "model.projector_dim=16", "model.predictor_dim=8"]
run = ["run.max_steps=2", "run.batch_size=4", "run.device=cpu", "run.threads=1", "optimiser.warmup_epochs=0"]
result = pretrain(open_stores([{store!r}]), load_settings(preset="paper", overrides=small + run), Path({out!r}))
assert result.steps == 2
assert load_encoder(result.out).info.steps == 2
assert not BLOCKED & set(sys.modules), BLOCKED & set(sys.modules)
"""

LAZY = """
import sys
import simtriplet.pretrain
assert "torch" not in sys.modules
from simtriplet.pretrain import load_settings
assert load_settings(preset="quick").objective.name
assert "torch" not in sys.modules
"""


def test_the_trainer_trains_without_the_slide_libraries(store_factory, tmp_path):
    store, out = store_factory(), tmp_path / "run"
    program = PROGRAM.format(blocked=BLOCKED, store=str(store.path), out=str(out))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (out / "settings.json").exists()
    assert (out / "encoder.safetensors").exists()


def test_settings_can_be_read_without_loading_torch():
    done = subprocess.run([sys.executable, "-c", LAZY], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
