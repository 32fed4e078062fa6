"""Files appear whole or not at all, with the permissions of the umask; one process writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mace_polmp.errors import InputError
from mace_polmp.files import digest, locked, make_folder, replacing, write_bytes


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    write_bytes(path, b"old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_bytes(b"half of the n")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_are_those_of_the_umask(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write_bytes(tmp_path / "a", b"x")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode


def test_what_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/b: cannot be written .Not a directory"):
        write_bytes(tmp_path / "file" / "b", b"")
    with pytest.raises(InputError, match="file: the folder cannot be made"):
        make_folder(tmp_path / "file")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_is_one_line(tmp_path):
    with (
        pytest.raises(InputError, match="a: cannot be written: the disk is full; free some"),
        replacing(tmp_path / "a"),
        open("/dev/full", "wb") as file,
    ):
        file.write(b"x" * 100000)
    assert not list(tmp_path.iterdir())


def test_a_lock_ends_with_its_process(tmp_path):
    path = tmp_path / ".lock"
    code = (
        "import sys; from mace_polmp.files import locked\nwith locked(sys.argv[1], 'it'):\n    {}"
    )
    start = [sys.executable, "-c", code.format("print(1, flush=True); sys.stdin.read()"), path]
    holder = subprocess.Popen(start, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    holder.stdout.readline()
    with (
        pytest.raises(
            InputError, match=f"the run is in use by another process .number {holder.pid}"
        ),
        locked(path, "the run"),
    ):
        pass
    holder.kill()
    holder.wait()
    with locked(path, "the run"):
        pass


def test_digests_compare_contents(tmp_path):
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (digest(tmp_path / name) for name in "abc")
    assert a == b != c


def test_links_stay_links_and_devices_devices(tmp_path):
    """What they point to is replaced; what is no file is written to."""
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    write_bytes(tmp_path / "link.txt", b"new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"
    write_bytes("/dev/null", b"new")
    assert not Path("/dev/null").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.txt", "real.txt"]
