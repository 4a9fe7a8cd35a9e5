"""What is said of label files that spreadsheets save, and of columns that are not there."""

import pytest

from simtriplet.evaluate.label_file import read_label_file
from simtriplet.wsi.errors import AnnotationError

TEXT = "slide_id,kind,patient_id\ns1,benign,A\ns2,tumour,B\n"


@pytest.mark.parametrize(("sign", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_another_delimiter_is_named_with_its_cure(tmp_path, sign, name):
    file = tmp_path / "labels.csv"
    file.write_text(TEXT.replace(",", sign))
    with pytest.raises(AnnotationError, match=f"has {name} between its cells; save it with commas"):
        read_label_file(file, label_column="kind")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"label_column": "label"},
            "has no column 'label'; it has slide_id, kind, patient_id: name one with --label-col",
        ),
        ({"label_column": "kind", "patient_column": "case"}, "has no column 'case'.*: name one with --patient-column"),
    ],
)
def test_a_missing_column_names_the_option(tmp_path, options, said):
    file = tmp_path / "labels.csv"
    file.write_text(TEXT)
    assert len(read_label_file(file, label_column="kind", patient_column="patient_id")) == 2
    with pytest.raises(AnnotationError, match=said):
        read_label_file(file, **options)


def read(tmp_path, *labels, patients=None):
    file = tmp_path / "labels.csv"
    patients = patients or [f"p{number}" for number in range(len(labels))]
    rows = [f"s{number},{label},{patients[number]}" for number, label in enumerate(labels)]
    file.write_text("\n".join(["slide_id,kind,patient_id", *rows, ""]))
    return read_label_file(file, label_column="kind")


@pytest.mark.parametrize("label", ["nan", "NaN", "<NA>", "#N/A", "null"])
def test_what_other_programs_write_for_nothing_is_no_class_and_no_patient(tmp_path, label):
    with pytest.raises(AnnotationError, match=f"line 3: '{label}' is what some programs write for no label; leave"):
        read(tmp_path, "benign", label, "tumour")
    with pytest.raises(AnnotationError, match=f"line 4: '{label}' is what some programs write for no patient"):
        read(tmp_path, "benign", "benign", "tumour", patients=["a", "b", label])
    assert [row.label for row in read(tmp_path, "benign", "", "tumour")] == ["benign", None, "tumour"]


@pytest.mark.parametrize("label", ["NA", "n/a", "None"])
def test_what_may_be_a_class_or_nothing_is_told_once(tmp_path, caplog, label):
    assert [row.label for row in read(tmp_path, "benign", label, label)] == ["benign", label, label]
    (record,) = caplog.records
    assert f"line 3: {label!r} is taken for a class" in record.getMessage()
    with pytest.raises(AnnotationError, match=f"line 3: '{label}' is what some programs write for no patient"):
        read(tmp_path, "benign", "tumour", patients=["a", label])


def test_one_number_in_two_ways_is_no_two_classes(tmp_path, caplog):
    with pytest.raises(AnnotationError, match=r"the classes '1' and '1\.0' are one number; write it in one way"):
        read(tmp_path, "0", "1", "1.0")
    assert len(read(tmp_path, "0", "1", "1", "inf", "infiltrating")) == 5
    assert not caplog.records


def test_classes_that_differ_in_case_are_told(tmp_path, caplog):
    assert len(read(tmp_path, "Tumour", "tumour", "stroma")) == 3
    (record,) = caplog.records
    assert "'Tumour' and 'tumour' are taken for two classes" in record.getMessage()
