"""Saves that end badly, of killed processes and on full disks: there is the old file or the new one, and nothing else."""

import json
import os
import subprocess
import sys

import pytest
from helpers import TEST_FACTOR

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and limits of resources")

#: For each kind what holds a number, `make(number)`, and the number of what is saved at a path, `number_at(path)`; whatever is
#: not wholly of one number fails.
KINDS = """
import errno, json, os, pickle, random, resource, signal, sys, time
from pathlib import Path
import numpy as np
import icecore
from icecore import nn

def bytes_of(saved):
    "Of a file of what is loaded, which forgets a little of what the saved one knew of its queries."
    return pickle.loads(pickle.dumps(saved)).__reduce__()[1][1]

def make_index(number):
    index = icecore.Index(8)
    index.add(np.full((3000 + number, 8), number, np.float32), num_threads=1)
    return index

def index_at(path):
    index = icecore.Index.load(path)
    number = len(index) - 3000
    assert (index[index.ids] == number).all()
    return number

def make_cache(number):
    cache, rows = icecore.KVCache(2, 8, k=8, batch=2), np.full((2, 2, 1500 + number, 8), number, np.float32)
    cache.append(rows, rows)
    cache.attend(rows[:, :, -1:], num_threads=1)
    return cache

def cache_at(path):
    cache = icecore.KVCache.load(path)
    number = len(cache) - 1500
    assert bytes_of(cache) == bytes_of(make_cache(number))
    return number

def make_layers(number):
    cache, rows = nn.NearFarCache(k=8), np.full((2, 700 + number, 8), number, np.float32)
    for layer in range(4):
        options = {"window": 900} if layer == 3 else {}
        cache.attend(lambda q, k, v, **_: q.copy(), layer, rows, rows, rows, **options)
    cache.advance(700 + number)
    return cache

def layers_at(path):
    cache = nn.NearFarCache.load(path)
    number = cache.length - 700
    whole = make_layers(number)
    assert [bytes_of(layer) for layer in cache._layers.values()] == [bytes_of(layer) for layer in whole._layers.values()]
    assert all((keys == number).all() for _, (keys, _) in cache._sliding.rows())
    return number

def make_plan(number):
    head = icecore.HeadPlan("near_far", 128, 16, (0.02, 0.3), (0.01, 0.2))
    layers = {layer: icecore.LayerPlan(True, 0.05, (head,), number / 100, 1.0, 2.0, 16) for layer in range(200)}
    return icecore.Plan(0.05, 100, layers)

def plan_at(path):
    errors = {round(100 * layer.error) for layer in icecore.Plan.load(path).layers.values()}
    (number,) = errors
    return number

MAKE = {"index": make_index, "cache": make_cache, "layers": make_layers, "plan": make_plan}
AT = {"index": index_at, "cache": cache_at, "layers": layers_at, "plan": plan_at}
kind, path = sys.argv[1], Path(sys.argv[2])
make, number_at = MAKE[kind], AT[kind]

def files(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))

def left_over():
    "What lies beside the one saved thing, or in its folder."
    other = [name for name in files(path.parent) if name != path.name and not name.startswith(path.name + "/")]
    saves = [entry.name for entry in path.iterdir() if entry.name.startswith("save-")][1:] if path.is_dir() else []
    return other + saves
"""

KILLED = """
one, two = make(1), make(2)
one.save(path)
generator = random.Random(int(sys.argv[4]))
seen, maximum = [], 0
for _ in range(int(sys.argv[3])):
    child = os.fork()
    if not child:
        while True:
            two.save(path)
            one.save(path)
    time.sleep(generator.uniform(0, 0.04))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    seen.append(number_at(path))
    maximum = max(maximum, len(left_over()))
two.save(path)
print(json.dumps([seen, maximum, number_at(path), left_over()]))
"""

DISK_FULL = """
one, two = make(1), make(2)
one.save(path)
before, size = files(path.parent), max(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
refused = 0
for limit in (0, 1, 4096, size // 2, size - 1):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        two.save(path)
    except OSError as error:
        assert error.errno == errno.EFBIG, error
        assert error.filename.startswith(str(path)) and error.filename in str(error), error
        refused += 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert number_at(path) == 1
    assert files(path.parent) == before, files(path.parent)
two.save(path)
print(refused, number_at(path))
"""


def run(code, *arguments):
    command = [sys.executable, "-c", KINDS + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", ["index", "cache", "layers", "plan"])
def test_a_process_killed_while_it_saves_leaves_the_old_or_the_new(tmp_path, kind):
    path = tmp_path / "saved"
    seen, maximum, last, left = json.loads(run(KILLED, kind, path, 3 * TEST_FACTOR, os.getpid()))
    assert set(seen) <= {1, 2}
    assert maximum <= 2  # of the last one killed, and of the one before it, which was killed before it had swept
    assert (last, left) == (2, [])


@pytest.mark.parametrize("kind", ["index", "cache", "layers", "plan"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, kind):
    """A limit of the size of files stops a write in the middle, as a full disk does."""
    assert run(DISK_FULL, kind, tmp_path / "saved") == "5 2\n"


@pytest.mark.parametrize("kind", ["index", "cache", "layers", "plan"])
def test_a_first_save_to_a_full_disk_leaves_nothing(tmp_path, kind):
    code = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    make(1).save(path)
except OSError as error:
    print(error.errno == errno.EFBIG, files(path.parent))
"""
    assert run(code, kind, tmp_path / "saved") == "True []\n"
