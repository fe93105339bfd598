"""Files are there whole, with the usual permissions, or not at all."""

from __future__ import annotations

import os

import pytest

from lightning_gaudi.whole_files import whole_file, write_whole


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "new" / "report.json"
    write_whole(path, b"first")
    write_whole(path, b"second")
    assert path.read_bytes() == b"second"
    assert [p.name for p in path.parent.iterdir()] == ["report.json"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    write_whole(tmp_path / "ours", b"")
    (tmp_path / "usual").write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write_whole(path, b"before")

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"after")
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_a_block_that_is_left_half_way_leaves_what_was_there(tmp_path):
    path = tmp_path / "report.json"
    write_whole(path, b"before")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as file:
        file.write(b"aft")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
