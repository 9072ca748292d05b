"""Files are replaced as a whole, whatever their names, and what killed processes left is swept."""

import os
import stat
import subprocess
import sys
import threading

import numpy as np
import pytest

import icecore
from icecore._files import replacing

LONG = [200 * "a", 255 * "a", 127 * "é"]
#: Writes half of a file, says so, and goes on when it is told to.
WRITER = """
import sys
from icecore._files import replacing
with replacing(sys.argv[1]) as file:
    file.write(b"new")
    print("written", flush=True)
    sys.stdin.readline()
"""


def write(path, contents=b"contents"):
    with replacing(path) as file:
        file.write(contents)


def begin(path):
    """A process that is writing to `path`."""
    command = [sys.executable, "-c", WRITER, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "written\n"
    return process


@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_a_file_that_is_replaced_keeps_its_mode(tmp_path, mode):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(mode)
    write(path)
    assert path.read_bytes() == b"contents"
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize("there", [True, False])
def test_a_symbolic_link_stays_one(tmp_path, there):
    """What it points at is written, in that folder."""
    (tmp_path / "other").mkdir()
    target, link = tmp_path / "other" / "file", tmp_path / "link"
    if there:
        target.write_bytes(b"old")
    link.symlink_to("other/file")
    write(link)
    assert link.is_symlink()
    assert target.read_bytes() == b"contents"
    assert [*target.parent.iterdir()] == [target]


def test_contents_are_on_the_disk_before_the_name_and_the_name_before_the_end(tmp_path, monkeypatch):
    steps, fsync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "contents")
        fsync(descriptor)

    def replaced(source, target):
        steps.append("name")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write(tmp_path / "file")
    assert steps == ["contents", "name", "folder"]


@pytest.mark.parametrize("name", LONG, ids=["200", "255", "accents"])
def test_names_may_be_as_long_as_the_system_allows(tmp_path, name):
    path = tmp_path / name
    for contents in (b"first", b"second"):
        write(path, contents)
        assert path.read_bytes() == contents
    assert [*tmp_path.iterdir()] == [path]
    index, cache = icecore.Index(2), icecore.KVCache(1, 2)
    index.add(np.ones((3, 2)))
    index.save(path)
    assert len(icecore.Index.load(path)) == 3
    cache.save(path)
    assert len(icecore.KVCache.load(path)) == 0


@pytest.mark.parametrize("open_file", [icecore.Index.load, icecore.Index.view, icecore.KVCache.load, icecore.KVCache.view])
def test_what_is_no_path_is_refused(open_file):
    with pytest.raises(TypeError, match=r"path must be a str or an os\.PathLike, got int"):
        open_file(123)


def test_what_killed_processes_left_goes_with_the_next_save(tmp_path):
    path = tmp_path / "file"
    for _ in range(3):
        process = begin(path)
        process.kill()
        process.communicate()
    left = [*tmp_path.iterdir()]
    assert len(left) == 1  # each has swept what the one before it left
    write(tmp_path / "other")
    assert left[0].exists()  # which is no file for another name
    write(path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "other"]


def test_a_file_that_is_being_written_is_not_swept(tmp_path):
    path = tmp_path / "file"
    process = begin(path)
    write(path)
    assert len([*tmp_path.iterdir()]) == 2
    process.communicate("\n", timeout=60)
    assert process.returncode == 0 and path.read_bytes() == b"new"
    assert [*tmp_path.iterdir()] == [path]


def test_threads_that_write_to_one_name_do_not_sweep_each_other(tmp_path):
    path, errors = tmp_path / "file", []

    def work(number):
        try:
            for _ in range(50):
                write(path, b"%d" % number * 1000)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert [*tmp_path.iterdir()] == [path]
    assert len({*path.read_bytes()}) == 1
