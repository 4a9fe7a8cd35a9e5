"""What is released: a source archive and a wheel that work on their own, hold what they need and nothing else."""

import importlib.metadata
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist, and the wheel built from that sdist, from a copy of what is under version control."""
    pytest.importorskip("build", reason="the extra dev is not installed")
    folder = tmp_path_factory.mktemp("release")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    copy = folder / "source"
    for name in listed.stdout.decode().split("\0"):
        source = ROOT / name
        if name and source.exists() and not source.is_dir():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(source.read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(copy)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    return folder / "dist"


@pytest.mark.slow
def test_wheel_holds_the_four_packages_and_their_data_only(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"simtriplet", f"simtriplet-{VERSION}.dist-info"}
    assert {name.split("/")[1] for name in names if name.startswith("simtriplet/")} == {
        "wsi",
        "pretrain",
        "evaluate",
        "pipelines",
    }
    for package in ("wsi", "pretrain", "evaluate", "pipelines"):
        assert f"simtriplet/{package}/py.typed" in names
        modules = {path.name for path in (ROOT / package).glob("*.py")}
        assert modules == {name.split("/")[2] for name in names if re.fullmatch(rf"simtriplet/{package}/\w+\.py", name)}
    presets = {f"simtriplet/pretrain/presets/{path.name}" for path in (ROOT / "pretrain" / "presets").glob("*.toml")}
    assert presets <= set(names)
    page = {f"simtriplet/evaluate/browser/{path.name}" for path in (ROOT / "evaluate" / "browser").iterdir()}
    assert len(page) > 10
    assert page <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("licenses/evaluate/browser/openseadragon.LICENSE.txt") for name in names)
    metadata = zipfile.ZipFile(wheel).read(f"simtriplet-{VERSION}.dist-info/METADATA").decode()
    assert "License-Expression: Apache-2.0 AND BSD-3-Clause" in metadata.splitlines()
    assert not [name for name in names if re.search(r"test|\.svs|\.tiff?$|shared", name)]
    assert wheel.stat().st_size < 3_000_000


@pytest.mark.slow
def test_source_archive_builds_the_wheel_and_holds_no_data(dist: Path) -> None:
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = opened.getnames()
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    wanted = {f"simtriplet-{VERSION}/{name}" for name in tracked if not name.startswith(".typing/")}
    assert len(wanted) > 500
    assert not wanted - set(names)
    assert not [name for name in names if re.search(r"\.svs$|\.tiles\.zarr|/shared/|/demo/", name)]
    assert archive.stat().st_size < 5_000_000


@pytest.mark.slow
def test_wheel_works_in_an_environment_of_its_own(dist: Path, tmp_path: Path) -> None:
    """The environment sees the packages that the wheel depends on, and of this project the wheel alone."""
    (wheel,) = dist.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    script = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    own = Path(subprocess.run([python, "-c", script], capture_output=True, text=True, check=True).stdout.strip())
    (own / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")  # whose own .pth files are not read
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--no-index",
        "--quiet",
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    program = tmp_path / "env" / "bin" / "simtriplet"

    def run(*arguments: str) -> str:
        ended = subprocess.run([program, *arguments], capture_output=True, text=True, cwd=tmp_path, check=False)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    assert run("--version").split()[-1] == VERSION
    where = subprocess.run(
        [python, "-c", "import simtriplet.wsi as w; print(w.__file__)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert where.stdout.startswith(str(tmp_path / "env"))
    draw = (
        "from pathlib import Path; from simtriplet.wsi import SyntheticSlideSpec, draw_slide;"
        "draw_slide(Path('s.svs'), SyntheticSlideSpec(width_px=1024, height_px=1024, n_pieces=1))"
    )
    subprocess.run([python, "-c", draw], check=True, cwd=tmp_path)
    run("tile", "s.svs", "--out", "stores", "--size", "64", "--codec", "jpeg")
    run("index", "stores")
    settings = ("run.max_steps=1", "run.batch_size=8", "run.device=cpu", "data.image_size_px=32")
    run(
        "pretrain",
        "stores",
        "--out",
        "run",
        "--preset",
        "quick",
        *[word for value in settings for word in ("--set", value)],
    )
    assert (tmp_path / "run" / "encoder.safetensors").exists()


def test_version_stands_in_one_place() -> None:
    assert importlib.metadata.version("simtriplet") == VERSION
    assert "version" not in yaml.safe_load((ROOT / "CITATION.cff").read_text())
    sources = [
        path for package in ("wsi", "pretrain", "evaluate", "pipelines") for path in (ROOT / package).glob("*.py")
    ]
    assert not [path for path in sources if "__version__ =" in path.read_text()]


def test_citation_names_the_paper_and_the_license() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "title", "message", "authors", "license"} <= citation.keys()
    assert citation["license"] == "Apache-2.0"
    paper = citation["preferred-citation"]
    assert paper["title"] == "SimTriplet: Simple Triplet Representation Learning with a Single GPU"
    assert paper["authors"][0]["family-names"] == "Liu"
    assert len(paper["authors"]) == 12


def test_workflow_and_hooks_run_what_contributors_run() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    makefile = (ROOT / "Makefile").read_text()
    for target in ("test", "lint", "wheel", "docs"):
        assert f"make {target}" in steps
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    linters = re.findall(r"^\t\$\(BIN\)/(.+)$", makefile.partition("\nlint:")[2].partition("\n\n")[0], re.MULTILINE)
    assert {hook["entry"].removeprefix(".venv/bin/").split()[0] for hook in hooks} == {
        line.split()[0] for line in linters
    }
