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


def test_a_file_system_without_nameless_files(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    path = tmp_path / "report.json"
    write_whole(path, b"before")
    (tmp_path / "usual").write_bytes(b"")
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode
    with pytest.raises(KeyboardInterrupt), whole_file(path) as file:
        assert len(list(tmp_path.iterdir())) == 3
        file.write(b"aft")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.json", "usual"]


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="needs Linux")
def test_what_is_half_written_has_no_name_that_a_killed_process_could_leave(tmp_path):
    with whole_file(tmp_path / "report.json") as file:
        file.write(b"content")
        file.flush()
        assert list(tmp_path.iterdir()) == []
    assert (tmp_path / "report.json").read_bytes() == b"content"


def test_the_folder_is_on_the_disk_too(tmp_path, monkeypatch):
    synced = []
    plain_fsync = os.fsync

    def fsync(handle):
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        plain_fsync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(tmp_path / "report.json", b"content")
    assert len(synced) == 2
    assert synced[1] == str(tmp_path)
