"""Files are read as written; what is wrong with one is said with its line."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from lightning_gaudi.data.labels import are_numbers, collect_label_names, read_labels
from lightning_gaudi.data.reading import read_table
from lightning_gaudi.errors import ConfigurationError


def test_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\\u2028b", "n": 1}\r\n\n{"text": "ü", "n": [2]}', "utf-8")
    table = read_table(str(path))
    assert table.rows == [{"text": "a\u2028b", "n": 1}, {"text": "ü", "n": [2]}]
    assert table.place(1) == f"{path}, line 3"
    assert table.column("n") == [1, [2]]


def test_csv(tmp_path):
    path = tmp_path / "a.CSV"
    path.write_bytes(
        b'\xef\xbb\xbftext,n\r\n"a, ""b""\r\nc",1\r\n\r\nd,\r\n' + b"x" * 200_000 + b",2"
    )
    limit = csv.field_size_limit()
    table = read_table(path)
    assert table.rows[:2] == [{"text": 'a, "b"\r\nc', "n": "1"}, {"text": "d", "n": ""}]
    assert len(table.rows[2]["text"]) == 200_000
    assert table.lines == [3, 5, 6]
    assert csv.field_size_limit() == limit, "the process's own limit was changed"


def test_text_lines_are_rows(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("eins\r\n\nzwei\u2028drei\x0bvier\n".encode())
    table = read_table(path, text_column="body")
    assert table.column("body") == ["eins", "", "zwei\u2028drei\x0bvier"]
    assert table.lines == [1, 2, 3]
    (tmp_path / "empty.txt").write_bytes(b"")
    assert len(read_table(tmp_path / "empty.txt")) == 0


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a.jsonl, line 2 is no JSON: Expecting value"),
        ("a.jsonl", b'\n["a"]\n', r"a.jsonl, line 2 is a JSON list, not an object"),
        ("a.csv", b"", r"a.csv, line 1 is no header: \[\]"),
        ("a.csv", b"text,text\n", r"a.csv, line 1 is no header: \['text', 'text'\]"),
        ("a.csv", b"text,\na,b\n", r"a.csv, line 1 is no header: \['text', ''\]"),
        ("a.csv", b'text,n\n"a\nb",1\nc\n', r"a.csv, line 4 has 1 columns, but the header has 2"),
        ("a.csv", b"text,n\na,1,2\n", r"a.csv, line 2 has 3 columns"),
        ("a.csv", b'text,n\n"a" b,1\n', r"a.csv, line 2 is no CSV"),
        ("a.txt", b"fine\nna\xefve\n", r"a.txt, line 2 is not UTF-8: byte 0xef at position 7"),
        ("a.tsv", b"text\n", r"suffix '.tsv' is unknown. Known are .jsonl, .csv, .txt"),
    ],
)
def test_wrong_files(tmp_path, name, content, text):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=text):
        read_table(tmp_path / name)


def test_no_file(tmp_path):
    with pytest.raises(ConfigurationError, match=r"cannot read /.*no.txt: there is no such file"):
        read_table(tmp_path / "no.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(ConfigurationError, match="it is a folder"):
        read_table(tmp_path / "folder.txt")


def labels(tmp_path, values, names=None, suffix="jsonl"):
    path = tmp_path / f"labels.{suffix}"
    if suffix == "csv":
        path.write_text("label,x\n" + "".join(f"{value},\n" for value in values))
    else:
        path.write_text("".join(json.dumps({"label": value}) + "\n" for value in values))
    return read_labels(read_table(path), "label", names).values


@pytest.mark.parametrize(
    ("values", "names", "expected"),
    [
        ([2, 0, True], None, [2, 0, 1]),
        (["b", "a"], ["a", "b"], [1, 0]),
        ([1, "a"], ["a", "b"], [1, 0]),
        ([0.5, 1], None, [0.5, 1.0]),
        ([[1, 0], [0, 0.5]], None, [[1.0, 0.0], [0.0, 0.5]]),
        ([["c", "a"], []], ["a", "b", "c"], [[1, 0, 1], [0, 0, 0]]),
    ],
    ids=["classes", "names", "mixed", "numbers", "lists", "lists_of_names"],
)
def test_labels(tmp_path, values, names, expected):
    found = labels(tmp_path, values, names)
    assert found.tolist() == expected
    is_whole = not isinstance(expected[0], list) and all(isinstance(v, int) for v in expected)
    assert found.dtype == ("int64" if is_whole else "float32")


@pytest.mark.parametrize(
    ("values", "names", "expected"),
    [
        (["1", "0"], None, [1, 0]),
        (["1", "0.5"], None, [1.0, 0.5]),
        (["b", "1"], ["1", "b"], [1, 0]),
        (["2", "1"], ["1", "2"], [1, 0]),
        (['"[1, 0]"', '"[0, 1]"'], None, [[1, 0], [0, 1]]),
    ],
    ids=["classes", "numbers", "names", "names_like_numbers", "lists"],
)
def test_labels_in_csv(tmp_path, values, names, expected):
    assert labels(tmp_path, values, names, "csv").tolist() == expected


def test_a_name_like_a_number_is_no_class_s_number(tmp_path):
    names = ["1", "b", "c", "d"]
    for values in (["1", "3"], ["3"]):
        with pytest.raises(ConfigurationError, match=r"label '3' .* is not one of label_names"):
            labels(tmp_path, values, names, "csv")
    assert labels(tmp_path, ["1", "3"], ["a", "b", "c", "d"], "csv").tolist() == [1, 3]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_whole_numbers_among_numbers_to_predict(tmp_path, suffix):
    path = tmp_path / f"train.{suffix}"
    path.write_text({"csv": "y\n2.5\n-1\n", "jsonl": '{"y": 2.5}\n{"y": -1}\n'}[suffix])
    assert are_numbers(read_table(path), "y")
    path.write_text({"csv": "y\n2\n-1\n", "jsonl": '{"y": 2}\n{"y": -1}\n'}[suffix])
    assert not are_numbers(read_table(path), "y")
    with pytest.raises(ConfigurationError, match=r"label -1 .* training file has a decimal point"):
        read_labels(read_table(path), "y", None)
    found = read_labels(read_table(path), "y", None, as_numbers=True)
    assert found.values.tolist() == [2.0, -1.0]
    assert np.isnan(found.ignored)


@pytest.mark.parametrize(
    ("values", "names", "text"),
    [
        ([0, None], None, r"label in .*labels.jsonl, line 2 is missing: 'label' is None"),
        (["a", "c"], ["a", "b"], r"label 'c' .*line 2 is not one of label_names \['a', 'b'\]"),
        ([0, 2], ["a", "b"], r"label 2 .*line 2 is not one of label_names"),
        ([0, -1], None, r"label -1 .*line 2 is not a whole number of 0 or more"),
        (["a"], None, r"labels such as 'a' in .*line 1 are names.*Give label_names"),
        ([0.5, "a"], None, r"label 'a' .*line 2 is not a number"),
        ([[1], 1], None, r"label 1 .*line 2 is not a list, as other"),
        ([[1, 0], [1]], None, r"label \[1\] .*line 2 is not a list of 2 numbers"),
        ([["a"], ["c"]], ["a", "b"], r"label 'c' .*line 2 is not one of label_names"),
        ([[1, "a"]], None, r"line 1 is not a list of numbers, or of names"),
        ([{}], None, r"label {} .*line 1 is not a whole number"),
    ],
)
def test_wrong_labels(tmp_path, values, names, text):
    with pytest.raises(ConfigurationError, match=text):
        labels(tmp_path, values, names)


def test_label_names(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"y": "b"}\n{"y": ["c", "a"]}\n')
    assert collect_label_names(read_table(path), "y") == ["a", "b", "c"]
    path.write_text('{"y": 1}\n{"y": 0}\n')
    assert collect_label_names(read_table(path), "y") is None
    path.write_text('{"y": "a"}\n{"y": 0}\n')
    with pytest.raises(ConfigurationError, match=r"label 0 .*line 2 is not a name"):
        collect_label_names(read_table(path), "y")
