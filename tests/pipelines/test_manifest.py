"""Which slides a folder stands for."""

import os
import shutil
import struct
import zlib
from pathlib import Path

import pytest

from simtriplet.pipelines.manifest import collect_jobs, read_manifest
from simtriplet.wsi.dicom_frames import refuse_lying_frames
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


def test_links_are_followed_once_and_hidden_files_left_out(tmp_path: Path) -> None:
    touch(tmp_path / "real/a.svs", tmp_path / "cohort/._b.svs", tmp_path / "cohort/.Trash/c.svs")
    (tmp_path / "cohort/linked").symlink_to(tmp_path / "real")
    (tmp_path / "cohort/loop").symlink_to(tmp_path / "cohort")
    assert [job.slide_id for job in collect_jobs([tmp_path / "cohort"], recursive=True)] == ["a"]
    with pytest.raises(SlideOpenError, match="pass --recursive"):
        collect_jobs([tmp_path / "cohort"])


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
@pytest.mark.parametrize("rights", [0o000, 0o444])
def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, rights: int) -> None:
    touch(tmp_path / "open/a.svs", tmp_path / "shut/b.svs")
    (tmp_path / "shut").chmod(rights)
    try:
        with pytest.raises(SlideOpenError, match=r"folder '.*shut': cannot be read"):
            collect_jobs([tmp_path], recursive=True)
    finally:
        (tmp_path / "shut").chmod(0o755)


def test_a_folder_whose_folders_hold_the_slides_says_how(tmp_path: Path) -> None:
    touch(tmp_path / "deep/c.svs")
    with pytest.raises(SlideOpenError, match="its folders do, pass --recursive"):
        collect_jobs([tmp_path])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SlideOpenError, match="check the path"):
        collect_jobs([tmp_path / "empty"])


@pytest.fixture
def series(shared_data: Path, tmp_path: Path) -> Path:
    for name, source in (("1.dcm", "dicom-full"), ("2.dcm", "dicom-full"), ("3.dcm", "dicom-sparse")):
        shutil.copy(shared_data / f"slides/{source}.dcm", tmp_path / name)
    (tmp_path / "4.dcm").write_bytes(b"no slide, but the batch shall say so")
    return tmp_path


def test_a_dicom_series_is_one_slide(series: Path) -> None:
    assert [job.path.name for job in collect_jobs([series])] == ["1.dcm", "3.dcm", "4.dcm"]
    assert [job.path.name for job in collect_jobs(sorted(series.iterdir()))] == ["1.dcm", "3.dcm", "4.dcm"]


def test_a_manifest_must_not_list_a_series_twice(series: Path) -> None:
    (series / "slides.csv").write_text("path\n1.dcm\n2.dcm\n")
    with pytest.raises(SettingsError, match=r"slide '2': its file .*2.dcm' belongs to the DICOM series of another"):
        collect_jobs([series / "slides.csv"])


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (
            "path,patient_id,label\na.svs,Doe, John,tumour\n",
            "line 2: has more cells than the heading; put names with a comma",
        ),
        ("path,label,path\na.svs,x,b.svs\n", "two columns have the same name; rename one"),
    ],
)
def test_cells_that_would_be_taken_for_others_are_refused(tmp_path: Path, text: str, rule: str) -> None:
    (tmp_path / "slides.csv").write_text(text)
    with pytest.raises(SettingsError, match=rule):
        collect_jobs([tmp_path / "slides.csv"])


def dicom(transfer_syntax: str, body: bytes) -> bytes:
    """Return a DICOM file with the head that says how its body is written."""
    uid = transfer_syntax.encode().ljust(len(transfer_syntax) + len(transfer_syntax) % 2, b"\0")
    syntax = struct.pack("<HH2sH", 2, 0x10, b"UI", len(uid)) + uid
    return bytes(128) + b"DICM" + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(syntax)) + syntax + body


NESTED = (
    struct.pack("<HH2sHI", 8, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
) * 3000
SERIES = struct.pack("<HH2sH", 0x20, 0xE, b"UI", 4) + b"1.2\0"
DEFLATED = zlib.compressobj(9, zlib.DEFLATED, -15)


def test_files_that_are_no_dicom_slides_are_left_to_their_own_turn(tmp_path: Path) -> None:
    """What is found of a series is asked of every file before the first slide is tiled, in the process that must go on."""
    os.mkfifo(tmp_path / "pipe.dcm")
    (tmp_path / "nested.dcm").write_bytes(dicom("1.2.840.10008.1.2.1", NESTED))
    deflated = DEFLATED.compress(SERIES) + DEFLATED.flush()  # which hides how much memory it takes
    for name in ("deflated-1", "deflated-2"):
        (tmp_path / f"{name}.dcm").write_bytes(dicom("1.2.840.10008.1.2.1.99", deflated))
    for name in ("plain-1", "plain-2"):
        (tmp_path / f"{name}.dcm").write_bytes(dicom("1.2.840.10008.1.2.1", SERIES))
    found = [job.slide_id for job in collect_jobs([tmp_path])]
    assert found == ["deflated-1", "deflated-2", "nested", "pipe", "plain-1"]
    with pytest.raises(SlideOpenError, match="it is deflated as a whole, which no slide is"):
        refuse_lying_frames(tmp_path / "deflated-1.dcm")


@pytest.mark.parametrize(
    ("cells", "what"), [("nan,", "patient"), ("NA,", "patient"), (",NaN", "label"), (",null", "label")]
)
def test_what_other_programs_write_for_nothing_is_no_name(tmp_path: Path, cells: str, what: str) -> None:
    """All slides with it would be one patient's."""
    (tmp_path / "m.csv").write_text(f"path,patient_id,label\na.svs,,\nb.svs,{cells}\n")
    with pytest.raises(
        SettingsError, match=f"line 3: .* is what some programs write for no {what}; leave the cell empty"
    ):
        read_manifest(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_text("path,patient_id,label\na.svs,,NA\n")
    assert read_manifest(tmp_path / "m.csv")[0].label == "NA"
