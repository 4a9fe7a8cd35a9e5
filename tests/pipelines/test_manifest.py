"""Which slides a folder stands for."""

import shutil
from pathlib import Path

import pytest

from simtriplet.pipelines.manifest import collect_jobs
from simtriplet.wsi.errors import SettingsError, SlideOpenError


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_a_folder_is_the_slides_right_in_it(tmp_path: Path) -> None:
    touch(tmp_path / "b.svs", tmp_path / "a.TIF", tmp_path / "notes.txt", tmp_path / "deep/c.svs")
    assert [job.path.name for job in collect_jobs([tmp_path])] == ["a.TIF", "b.svs"]


def test_recursive_takes_folders_of_folders(tmp_path: Path) -> None:
    touch(tmp_path / "b.svs", tmp_path / "deep/c.svs", tmp_path / "deep/deeper/d.ndpi", tmp_path / "deep/c.dat")
    assert [job.slide_id for job in collect_jobs([tmp_path], recursive=True)] == ["b", "c", "d"]


def test_two_slides_of_one_name_in_two_folders_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "x/a.svs", tmp_path / "y/a.svs")
    with pytest.raises(SettingsError, match=r"slide id 'a': is that of both .*x/a.svs' and .*y/a.svs'"):
        collect_jobs([tmp_path], recursive=True)


def test_a_folder_whose_folders_hold_the_slides_says_how(tmp_path: Path) -> None:
    touch(tmp_path / "deep/c.svs")
    with pytest.raises(SlideOpenError, match="its folders do, pass --recursive"):
        collect_jobs([tmp_path])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SlideOpenError, match="check the path"):
        collect_jobs([tmp_path / "empty"])


def test_a_dicom_series_is_one_slide(shared_data: Path, tmp_path: Path) -> None:
    slides = shared_data / "slides"
    for name, source in (("1.dcm", "dicom-full"), ("2.dcm", "dicom-full"), ("3.dcm", "dicom-sparse")):
        shutil.copy(slides / f"{source}.dcm", tmp_path / name)
    (tmp_path / "4.dcm").write_bytes(b"no slide, but the batch shall say so")
    assert [job.path.name for job in collect_jobs([tmp_path])] == ["1.dcm", "3.dcm", "4.dcm"]
