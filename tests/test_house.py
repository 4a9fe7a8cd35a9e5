"""The house's own promises: one list of dependencies, the two commands, nothing of this or that machine."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from simtriplet.pretrain.export import EXPORTERS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def environment() -> dict[str, Any]:
    loaded = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert isinstance(loaded, dict)
    return loaded


def test_conda_takes_the_package_by_pip_and_repeats_none_of_its_dependencies(
    environment: dict[str, Any], project: dict[str, Any]
) -> None:
    plain = [item for item in environment["dependencies"] if isinstance(item, str)]
    by_pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    assert by_pip == ["--editable ."]
    assert f"python{project['requires-python']}" in plain
    assert {re.split(r"[<>=]", item)[0] for item in plain} == {"python", "openslide", "pip"}


def test_torch_pair_has_lower_bounds_and_no_pin(project: dict[str, Any]) -> None:
    bounds = {re.split(r"[<>=]", item)[0]: item for item in project["dependencies"]}
    assert bounds["torch"] == "torch>=2.11"
    assert bounds["torchvision"] == "torchvision>=0.26"
    assert bounds["zarr"] == "zarr>=3.1"
    assert not [item for item in project["dependencies"] if "==" in item]


def test_every_package_that_the_code_imports_is_declared(project: dict[str, Any]) -> None:
    named = {"cv2": "opencv-python-headless", "openslide": "openslide-python", "sklearn": "scikit-learn"}
    named |= {"PIL": "pillow", "google_crc32c": "google-crc32c", "tomli_w": "tomli-w"}
    optional = {"numcodecs", "tensorboard"}  # comes with zarr; an extra
    declared = {re.split(r"[<>=]", item)[0] for item in project["dependencies"]}
    imported = set()
    for package in ("wsi", "pretrain", "evaluate", "pipelines"):
        for file in (ROOT / package).glob("*.py"):
            found = re.findall(r"^\s*(?:import|from) ([a-zA-Z_0-9]+)", file.read_text(), re.MULTILINE)
            imported |= set(found) - set(sys.stdlib_module_names) - {"simtriplet"} - optional
    assert {named.get(name, name) for name in imported} <= declared
    unused = declared - {named.get(name, name) for name in imported}
    # openslide-bin is the C library; the rest must be used
    assert unused <= {"openslide-bin", "dask"}


def test_what_the_trainer_can_do_with_has_an_extra_and_is_tested(project: dict[str, Any]) -> None:
    """Packages it looks for only where they are wanted: an extra each, all of them in what `make test` installs."""
    extras = project["optional-dependencies"]
    named = {name: {re.split(r"[<>=]", item)[0] for item in extras[name]} for name in ("timm", "export", "tensorboard")}
    assert named["timm"] == {"timm"}
    assert named["tensorboard"] == {"tensorboard"}
    needed = {name for exporter in EXPORTERS.values() for name in exporter.needs}
    assert named["export"] == needed | {"onnxruntime"}  # what runs the file
    (installed,) = (item for item in extras["dev"] if item.startswith("simtriplet["))
    assert set(re.split(r"[\[\],]", installed)[1:-1]) == {*named, "parquet", "docs"}
    assert "[dev,interop]" in (ROOT / "Makefile").read_text()


def test_readme_gives_the_two_commands_and_the_makefile_has_them() -> None:
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for command in ("demo", "test"):
        assert f"make {command}" in readme
        assert re.search(rf"^{command}:", makefile, re.MULTILINE)
    assert "environment.yml" in readme
    assert "make test" in (ROOT / ".ci/run").read_text()


@pytest.mark.parametrize("package", ["wsi", "pretrain", "evaluate", "pipelines"])
def test_packages_are_flat_and_typed(package: str) -> None:
    folder = ROOT / package
    assert (folder / "py.typed").exists()
    assert [path.name for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"] in (
        [],
        ["presets"],
        ["browser"],
    )


@pytest.mark.parametrize("package", ["wsi", "pretrain", "evaluate"])
def test_type_checkers_see_the_names_that_come_on_first_use(package: str) -> None:
    """`__getattr__` makes every name Any; the imports that only a type checker runs must be the same names."""
    module = importlib.import_module(f"simtriplet.{package}")
    (checked,) = [
        node for node in ast.parse((ROOT / package / "__init__.py").read_text()).body if isinstance(node, ast.If)
    ]
    assert ast.unparse(checked.test) == "TYPE_CHECKING"
    imported = {
        alias.name: str(node.module).removeprefix(f"simtriplet.{package}.")
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == module._HOMES
    assert sorted(imported) == sorted(module.__all__)


def test_installed_packages_are_found_under_the_project_name_only() -> None:
    code = "import simtriplet.wsi, simtriplet.pretrain, simtriplet.evaluate, simtriplet.pipelines, importlib.util as u;"
    code += "print([n for n in ('wsi', 'pretrain', 'pipelines') if u.find_spec(n)])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=True)
    assert ended.stdout.strip() == "[]"


def test_the_table_of_settings_is_that_of_the_code() -> None:
    ended = subprocess.run([sys.executable, ROOT / "docs" / "make_settings.py", "--check"], check=False)
    assert ended.returncode == 0, "run python docs/make_settings.py"
