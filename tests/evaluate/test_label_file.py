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
