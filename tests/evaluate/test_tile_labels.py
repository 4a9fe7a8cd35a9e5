"""Labels from the stores and from CSV files, and what is said of files that do not fit."""

import json
import logging

import numpy as np
import pytest

from simtriplet.evaluate.labels import read_labels, tile_ids
from simtriplet.wsi.errors import AnnotationError, EvaluationError
from simtriplet.wsi.store import open_stores


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stores")


@pytest.fixture
def stores(folder, store_factory):
    """Three stores that no test changes, made once."""
    if not any(folder.iterdir()):
        for name in ("a", "b", "c"):
            store_factory(name, rows=2, cols=4, patient_id=f"P{name}", index=False, folder=folder)
    return open_stores([folder])


@pytest.fixture
def write(tmp_path):
    def make(text, encoding="utf-8"):
        path = tmp_path / "labels.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return make


def test_labels_of_the_stores_keep_their_classes_and_patients(stores):
    labels = read_labels(stores)
    assert labels.classes == ("dots", "stripes")
    assert labels.patients == ("Pa", "Pb", "Pc")
    for codes in labels.codes:
        np.testing.assert_array_equal(codes, [0, 0, 1, 1, 0, 0, 1, 1])


def test_stores_without_labels_are_left_out_with_one_warning(stores, store_factory, caplog):
    bare = [store_factory(f"bare{number}", rows=1, cols=3, seed=number, labels=False) for number in range(6)]
    with caplog.at_level(logging.WARNING):
        labels = read_labels([*stores, *bare])
    for codes in labels.codes[3:]:
        np.testing.assert_array_equal(codes, [-1, -1, -1])
    (said,) = [record.getMessage() for record in caplog.records if "no labels" in record.getMessage()]
    assert said.startswith("6 slides have no labels (column 'label'), their tiles are left out: bare0, bare1")
    assert said.endswith("bare4 and 1 more")


def test_a_slide_file_labels_every_tile_and_names_patients(stores, write):
    file = write("\ufeffslide_id,diagnosis,who\na,benign,X\nb,malignant,X\nc,,Y\n")
    labels = read_labels(stores, file=file, label_column="diagnosis", patient_column="who")
    assert labels.classes == ("benign", "malignant")
    assert labels.patients == ("X", "X", "Y")
    assert [set(codes.tolist()) for codes in labels.codes] == [{0}, {1}, {-1}]
    assert labels.source == "labels.csv, column 'diagnosis'"


def test_a_column_called_patient_id_is_found_without_being_named(stores, write):
    labels = read_labels(stores, file=write("slide_id,label,patient_id\na,x,7\nb,y,8\n"))
    assert labels.patients == ("7", "8", "Pc")


@pytest.mark.parametrize("by", ["id", "xy"])
def test_a_tile_file_labels_the_tiles_it_names(stores, write, by):
    store = stores[0]
    if by == "id":
        first, last = tile_ids(store)[[0, -1]]
        text = f"slide_id,tile_id,label\na,{first},x\na,{last},y\n"
    else:
        (x0, y0), (x1, y1) = store.base_xy()[[0, -1]].tolist()
        text = f"slide_id,x,y,label\na,{x0},{y0}.0,x\na,{x1},{y1},y\n"
    labels = read_labels(stores, file=write(text))
    np.testing.assert_array_equal(labels.codes[0], [0, -1, -1, -1, -1, -1, -1, 1])
    np.testing.assert_array_equal(labels.codes[1], np.full(8, -1))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("slide_id,label\n", "has a header but no rows"),
        ("slide,label\na,x\n", "has no column 'slide_id'; did you mean 'slide'"),
        ("slide_id,lable\na,x\n", "has no column 'label'; did you mean 'lable'"),
        ("slide_id;label\na;x\n", "has semicolons between its cells"),
        ("slide_id,label\naa,x\nbb,y\n", "line 2: slide 'aa' has no store here"),
        ("slide_id,label\na,x\nb,y\na,x\n", "line 4: slide 'a' is in line 2 too"),
        ("slide_id,label\na,x,z\n", "line 2: has 3 cells, the header 2"),
        ("slide_id,label,label\na,x,y\n", "two columns have the same name"),
        ("slide_id,tile_id,label\na,r0_c0,x\na,r0_c0,y\n", "line 3: tile r0_c0 of slide 'a' is in line 2 too"),
        ("slide_id,tile_id,label\na,r9_c9,x\n", "line 2: slide 'a' has no tile 'r9_c9'"),
        ("slide_id,tile_id,label\na,,x\n", "line 2: has no tile_id"),
        ("slide_id,x,label\na,0,x\n", "has one of the columns x and y"),
        ("slide_id,x,y,label\na,1.5,0,x\n", "are not whole level-0 pixels"),
        ("slide_id,x,y,label\na,nan,0,x\n", "are not whole level-0 pixels"),
        ("slide_id,label,patient_id\na,x,\n", "line 2: has no patient_id"),
        ("slide_id,tile_id,label,patient_id\na,r0_c0,x,1\na,r0_c1,y,2\n", "slide 'a' has two patients"),
        ('slide_id,label\na,"x\n', "is not a CSV file"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(stores, write, text, said):
    with pytest.raises(AnnotationError, match=r"labels\.csv'") as caught:
        read_labels(stores, file=write(text))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_of_slides_that_were_not_tiled_are_left_out_with_a_warning(stores, write, caplog):
    labels = read_labels(stores, file=write("slide_id,label\na,x\ncc,z\nb,y\naa,z\n"))
    assert labels.classes == ("x", "y")
    assert [set(codes.tolist()) for codes in labels.codes] == [{0}, {1}, {-1}]
    assert "line 3: slide 'cc' (and 1 more) has no store here; did you mean 'c'?; left out" in caplog.text


def test_a_file_that_is_not_utf8_or_not_there_is_refused(stores, write, tmp_path):
    with pytest.raises(AnnotationError, match="is not UTF-8"):
        read_labels(stores, file=write("slide_id,label\na,größe\n", "latin-1"))
    with pytest.raises(AnnotationError, match="cannot be read"):
        read_labels(stores, file=tmp_path / "none.csv")


def test_a_patient_column_that_was_asked_for_must_be_there(stores, write):
    with pytest.raises(AnnotationError, match="has no column 'who'"):
        read_labels(stores, file=write("slide_id,label\na,x\nb,y\n"), patient_column="who")


def test_fewer_than_two_classes_are_refused(stores, write, store_factory):
    with pytest.raises(EvaluationError, match=r"one class only \('x'\)"):
        read_labels(stores, file=write("slide_id,label\na,x\nb,x\n"))
    with pytest.raises(EvaluationError, match="no label; tile with --annotations"):
        read_labels([store_factory("bare", labels=False)])


def test_keeping_classes_unlabels_the_others(stores, write):
    labels = read_labels(stores, file=write("slide_id,label\na,x\nb,y\nc,z\n")).keep_classes(["z", "x"])
    assert labels.classes == ("x", "z")
    assert [set(codes.tolist()) for codes in labels.codes] == [{0}, {-1}, {1}]
    with pytest.raises(EvaluationError, match="class 'w': no tile has it"):
        labels.keep_classes(["x", "w"])
    with pytest.raises(EvaluationError, match="fewer than two"):
        labels.keep_classes(["x"])


def change_slide(store, **values):
    path = store.path / "zarr.json"
    document = json.loads(path.read_text())
    document["attributes"]["simtriplet"]["slide"].update(values)
    del document["attributes"]["simtriplet_checksum"]
    path.write_text(json.dumps(document))


def test_labels_of_whole_slides_serve_where_tiles_have_none(store_factory, tmp_path):
    stores = [store_factory(name, labels=False, index=False, folder=tmp_path / "plain") for name in ("a", "b", "c")]
    for store, label in zip(stores, ("benign", "malignant", None), strict=True):
        change_slide(store, label=label)
    labels = read_labels(open_stores([tmp_path / "plain"]))
    assert labels.classes == ("benign", "malignant")
    assert [set(codes.tolist()) for codes in labels.codes] == [{0}, {1}, {-1}]
    assert "slide" in labels.source
    with pytest.raises(EvaluationError, match=r"column 'grade' of the stores\): no label"):
        read_labels(open_stores([tmp_path / "plain"]), label_column="grade")


def test_one_slide_file_under_two_names_is_refused(store_factory, tmp_path):
    for name, fingerprint in (("a", "1"), ("b", "2"), ("copy", "1")):
        change_slide(store_factory(name, index=False, folder=tmp_path / "plain"), fingerprint=fingerprint)
    stores = open_stores([tmp_path / "plain"])
    assert len(read_labels(stores[:2]).codes) == 2
    with pytest.raises(EvaluationError, match="slides 'a' and 'copy': are made from the same file"):
        read_labels(stores)


def test_slides_whose_patients_are_not_known_are_counted(stores, store_factory, write, caplog):
    read_labels(stores)
    assert "not known" not in caplog.text
    others = [store_factory(name, index=False) for name in ("d", "e")]
    read_labels([*stores, *others])
    assert "patients of 2 of 5 labelled slides are not known: each of these" in caplog.text
    caplog.clear()
    read_labels([*stores, *others], file=write("slide_id,label,patient_id\na,x,1\nd,y,1\n"))
    assert "not known" not in caplog.text
