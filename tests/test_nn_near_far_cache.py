"""A model that generates through near/far caches does what it does over all tokens."""

import contextlib
import functools
import io
import json
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
from helpers import near_far
from model_files import VOCABULARY, load_decoder
from test_nn_llama import TINY, random_tokens, tiny_weights

import icecore
from icecore import nn
from icecore._files import replacing

TOKENS = random_tokens(400)
#: Of the three key heads of TINY.
METRIC = np.exp2(np.linspace(-2, 2, 3 * 8)).reshape(3, 8)
OPTIONS = {"k": 24, "window": 32, "sinks": 4, "last_exact": 0}


def random_weights():
    return tiny_weights(nn.LlamaConfig(**vars(TINY) | {"context_length": 1000}))


def over_all(query, key, value, *, layer, metric=METRIC):
    return near_far(query, key, value, causal=True, block=32, k=24, sinks=4, cell_size=16, moments=metric).out[0]


@pytest.mark.parametrize("chunks", [[400], [1] * 60 + [340], [300] + [1] * 100])
def test_passes_in_chunks_equal_one_pass(chunks):
    weights = random_weights()
    cache, hidden, first = nn.NearFarCache(**OPTIONS, metric=METRIC), [], 0
    for count in chunks:
        hidden.append(nn.forward(weights, TOKENS[first : first + count], attention=over_all, cache=cache))
        first += count
        assert cache.length == first
    np.testing.assert_allclose(np.concatenate(hidden), nn.forward(weights, TOKENS, attention=over_all), atol=2e-4)


def test_generating_with_everything_near_is_generating_exactly():
    weights = random_weights()
    options = {"max_new_tokens": 12, "cache": nn.NearFarCache(k=10**6, window=8)}
    assert nn.generate(weights, TOKENS[:100], **options) == nn.generate(weights, TOKENS[:100], max_new_tokens=12)


@pytest.mark.parametrize("last_exact", [0, 7, 100, 500])
def test_the_last_queries_of_a_prompt_attend_exactly(last_exact):
    """Of the first pass; 100 by default."""
    rng = np.random.default_rng(0)
    query, key, value = (2 * rng.standard_normal((heads, 400, 8), np.float32) for heads in (6, 3, 3))
    cache = nn.NearFarCache(**OPTIONS | {"last_exact": last_exact})
    near = over_all(query, key, value, layer=0)
    out = cache.attend(over_all, 0, query, key, value)
    exact = icecore.attention(query, key, value, causal=True)
    expected = np.where(np.arange(400)[:, None] < 400 - last_exact, near, exact)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert np.abs(near - exact)[:, -50:].max() > 1e-2
    if last_exact == 100:
        usual = nn.NearFarCache(**{name: value for name, value in OPTIONS.items() if name != "last_exact"})
        np.testing.assert_array_equal(usual.attend(over_all, 0, query, key, value), out)
    with pytest.raises(ValueError, match="last_exact must be at least 0, got -1"):
        nn.NearFarCache(last_exact=-1)
    with pytest.raises(TypeError):
        nn.NearFarCache(last_exact=0.5)


@pytest.mark.parametrize("options", [OPTIONS, {"tolerance": 0.1, "window": 32}], ids=["k", "tolerance"])
def test_a_fork_goes_on_as_its_cache_would_have(options):
    weights, cache = random_weights(), nn.NearFarCache(**options)
    nn.forward(weights, TOKENS[:200], attention=over_all, cache=cache)
    forks = [cache.fork() for _ in range(2)]
    hidden = [nn.forward(weights, TOKENS[200:300], cache=forks[0]), nn.forward(weights, TOKENS[300:], cache=cache)]
    np.testing.assert_array_equal(nn.forward(weights, TOKENS[200:300], cache=forks[1]), hidden[0])
    assert cache.length == forks[0].length == 300
    again = nn.NearFarCache(**options)
    nn.forward(weights, TOKENS[:200], attention=over_all, cache=again)
    np.testing.assert_array_equal(nn.forward(weights, TOKENS[300:], cache=again), hidden[1])


def test_what_a_prompt_asks_for_is_known_when_it_is_continued():
    """Its queries say how far to open: a first step does not open all, as that of a cache which saw none does."""
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((heads, 1500, 8), np.float32) for heads in (6, 3, 3))
    key = 2 * rng.standard_normal((12, 8), np.float32)[rng.integers(12, size=(3, 1500))] + 0.3 * key
    cache = nn.NearFarCache(tolerance=0.1, window=64)
    cache.attend(nn.exact_attention, 0, query[:, :-1], key[:, :-1], value[:, :-1])
    cache.advance(1499)
    out = cache.attend(nn.exact_attention, 0, query[:, -1:], key[:, -1:], value[:, -1:])
    layer = cache._layers[0]
    info = layer.attend(query[:, -1:], return_info=True)[1]
    assert info.near_keys.mean() < 0.7 * layer.stats["sealed"]
    exact = icecore.attention(query[:, -1:], key, value)
    assert np.linalg.norm(out - exact) < 0.2 * np.linalg.norm(exact)


def test_an_interrupted_pass_leaves_the_cache_as_it_was():
    weights = random_weights()
    cache, calls = nn.NearFarCache(**OPTIONS), []

    def interrupted(query, key, value, *, layer):
        calls.append(layer)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return over_all(query, key, value, layer=layer)

    with pytest.raises(KeyboardInterrupt):
        nn.forward(weights, TOKENS[:50], attention=interrupted, cache=cache)
    assert cache.length == 0
    again = nn.forward(weights, TOKENS[:50], attention=over_all, cache=cache)
    np.testing.assert_allclose(again, nn.forward(weights, TOKENS[:50], attention=over_all), atol=1e-5)


def test_sliding_layers_see_their_window():
    cache = nn.NearFarCache(**OPTIONS)
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((2, 60, 8), np.float32) for _ in range(3))
    outs = []
    for rows in (slice(0, 40), slice(40, 60)):
        outs.append(cache.attend(nn.exact_attention, 0, query[:, rows], key[:, rows], value[:, rows], window=7))
        cache.advance(rows.stop - rows.start)
    expected = icecore.attention(query, key, value, causal=True, window=7)
    np.testing.assert_allclose(np.concatenate(outs, axis=1), expected, atol=1e-5)


# ---- Files ----


def prompt_cache(weights):
    cache = nn.NearFarCache(dtype="bfloat16", **OPTIONS)
    return cache, [nn.forward(weights, TOKENS[:200] % VOCABULARY, cache=cache), *step_by_step(weights, cache, 200, 220)]


def step_by_step(weights, cache, first, end):
    return [nn.forward(weights, TOKENS[i : i + 1] % VOCABULARY, cache=cache) for i in range(first, end)]


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("opener", [nn.NearFarCache.load, nn.NearFarCache.view])
def test_a_saved_prompt_is_continued_with_the_same_bits(tmp_path, family, opener):
    weights = load_decoder(tmp_path, family, max_position_embeddings=400)
    cache, _ = prompt_cache(weights)
    cache.save(tmp_path / "cache")
    expected = np.concatenate(step_by_step(weights, cache, 220, 300))
    for _ in range(2):  # a prompt is opened as often as one likes
        opened = opener(tmp_path / "cache")
        assert opened.length == 220
        np.testing.assert_array_equal(np.concatenate(step_by_step(weights, opened, 220, 300)), expected)
    opened.save(tmp_path / "cache")  # over the file that it reads
    assert opener(tmp_path / "cache").length == 300
    assert sorted(p.name for p in (tmp_path / "cache").parent.iterdir() if p.name.startswith(".")) == []


def test_a_save_that_fails_leaves_the_old_folder(tmp_path, monkeypatch):
    weights = load_decoder(tmp_path, "llama", max_position_embeddings=400)
    cache, _ = prompt_cache(weights)
    folder = tmp_path / "saved" / "cache"
    folder.parent.mkdir()
    cache.save(folder)

    def fail(*_, **__):
        raise OSError("no space left")

    step_by_step(weights, cache, 220, 221)
    for module, name in ((np, "savez"), (icecore.KVCache, "save")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            with pytest.raises(OSError, match="no space left"):
                cache.save(folder)
        assert [*folder.parent.iterdir()] == [folder]
        assert nn.NearFarCache.load(folder).length == 220
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(FileExistsError, match="other is there and is not a saved cache"):
        cache.save(tmp_path / "other")


def test_a_first_save_that_fails_leaves_nothing(tmp_path, monkeypatch):
    cache = nn.NearFarCache(k=24)
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(np, "savez", lambda *_, **__: 1 / 0)
    for name in ("new", "empty"):
        with pytest.raises(ZeroDivisionError):
            cache.save(tmp_path / name)
    assert [*tmp_path.rglob("*")] == [tmp_path / "empty"]
    monkeypatch.undo()
    cache.save(tmp_path / "empty")
    assert nn.NearFarCache.load(tmp_path / "empty").length == 0


@pytest.mark.parametrize("there", ["", "lock", "save-0123456789abcdef", "temporary"])
def test_a_first_save_beside_one_that_has_just_begun(tmp_path, there):
    """Whatever the other process has made of its folder so far."""
    folder = tmp_path / "cache"
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        if there == "temporary":
            stack.enter_context(contextlib.suppress(KeyboardInterrupt))
            stack.enter_context(replacing(folder / "cache.json"))
        elif there.startswith("save"):
            (folder / there).mkdir()
        elif there:
            (folder / there).touch()
        nn.NearFarCache(k=24).save(folder)
        if there == "temporary":
            raise KeyboardInterrupt  # it is not to be put in place
    assert nn.NearFarCache.load(folder).length == 0


def test_folders_that_do_not_fit(tmp_path):
    weights = load_decoder(tmp_path, "gemma3_text", max_position_embeddings=400)
    cache, _ = prompt_cache(weights)
    cache.save(tmp_path / "cache")
    about = json.loads((tmp_path / "cache" / "cache.json").read_text())
    for change in ({"version": 1}, {"length": 221}, {"options": 3}, {"layers": None}, {"length": "many"}, {"last_exact": -1}):
        (tmp_path / "cache" / "cache.json").write_text(json.dumps(about | change))
        with pytest.raises(ValueError, match="cache is not a usable cache folder: "):
            nn.NearFarCache.view(tmp_path / "cache")
    for folder in ("..", "save-0", 3, f"save-{'0' * 16}"):
        (tmp_path / "cache" / "cache.json").write_text(json.dumps(about | {"folder": folder}))
        with pytest.raises(ValueError, match="cache is not a usable cache folder: "):
            nn.NearFarCache.load(tmp_path / "cache")
    (tmp_path / "cache" / "cache.json").write_text(json.dumps(about))
    sliding = tmp_path / "cache" / about["folder"] / "sliding.npz"
    sliding.write_bytes(sliding.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cache is not a usable cache folder: "):
        nn.NearFarCache.load(tmp_path / "cache")


#: save(path, length): a cache of three layers. In processes of their own, so that threads of this one do not matter.
SAVE = """
import os, sys, time
import numpy as np
from icecore import nn
def save(path, length):
    held, cache = np.full((1, length, 8), length, np.float32), nn.NearFarCache(k=24)
    for layer in range(3):
        cache.attend(lambda q, k, v, *, layer: q, layer, held, held, held)
    cache.advance(length)
    cache.save(path)
"""


def test_files_of_two_caches_are_never_mixed_whoever_saves_and_loads(tmp_path):
    path = tmp_path / "cache"
    turns = "end = time.time() + 2\nwhile time.time() < end:\n    for length in (600, 610): save(sys.argv[1], length)"
    savers = [subprocess.Popen([sys.executable, "-c", SAVE + turns, str(path)]) for _ in range(2)]
    loads = 0
    while loads < 30 or savers[0].poll() is None:
        if not loads and not (path / "cache.json").exists():
            assert savers[0].poll() is None
            continue
        cache = nn.NearFarCache.load(path)
        assert {len(layer) for layer in cache._layers.values()} == {cache.length}
        loads += 1
    assert [saver.wait() for saver in savers] == [0, 0]
    assert sorted(entry.name[:5] for entry in path.iterdir()) == ["cache", "lock", "save-"]
    assert [*tmp_path.iterdir()] == [path]


def test_first_saves_at_once(tmp_path):
    """Of two processes, one fails in every turn and removes what it made."""
    turns = """
import json, pathlib
dumps, own = json.dumps, int(sys.argv[1])
for turn in range(40):
    path = pathlib.Path(sys.argv[2]) / f"cache{turn}"
    path.with_suffix(f".{own}").touch()
    while not path.with_suffix(f".{1 - own}").exists(): pass
    json.dumps = dumps if turn % 2 == own else lambda *_: 1 / 0
    try: save(path, 10)
    except ZeroDivisionError: pass
"""
    savers = [subprocess.Popen([sys.executable, "-c", SAVE + turns, str(own), str(tmp_path)]) for own in range(2)]
    assert [saver.wait() for saver in savers] == [0, 0]
    for turn in range(40):
        assert nn.NearFarCache.load(tmp_path / f"cache{turn}").length == 10


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", range(5))
def test_a_process_that_dies_while_it_saves_leaves_a_whole_cache(tmp_path, number, after):
    """Before or after it has renamed one of its five files."""
    path, dying = tmp_path / "cache", f"""
replace, calls = os.replace, []
def dying(source, target):
    calls.append(target)
    if len(calls) == {number + 1} and not {after}: os._exit(9)
    replace(source, target)
    if len(calls) == {number + 1}: os._exit(9)
save(sys.argv[1], 600)
os.replace = dying
save(sys.argv[1], 610)
"""
    assert subprocess.run([sys.executable, "-c", SAVE + dying, str(path)], check=False).returncode == 9
    assert nn.NearFarCache.load(path).length == (610 if number == 4 and after else 600)


@pytest.mark.parametrize("metric", [METRIC, METRIC[:, :, None] * np.eye(8)], ids=["diagonal", "full"])
def test_after_truncation_another_text_follows(metric):
    weights, other = random_weights(), random_tokens(350)[::-1]
    attention = functools.partial(over_all, metric=metric)
    cache = nn.NearFarCache(**OPTIONS, metric=metric)
    nn.forward(weights, TOKENS, attention=attention, cache=cache)
    cache.truncate(200)
    assert cache.length == 200
    hidden = nn.forward(weights, other, attention=attention, cache=cache)
    expected = nn.forward(weights, np.concatenate([TOKENS[:200], other]), attention=attention)
    np.testing.assert_allclose(hidden, expected[200:], atol=2e-4)
    with pytest.raises(ValueError, match=r"length must lie in 0\.\.550, the tokens held, got 551"):
        cache.truncate(551)


@pytest.mark.parametrize(
    "change",
    [
        {"length": -1},
        {"length": float("inf")},
        {"length": 10**30},
        {"length": [[]]},
        {"layers": [0.5]},
        {"layers": [-1]},
        {"version": [[]]},
        {"options": {"tolerance": 0.1, "no option": 3}, "length": None},
        {"plan": 3},
        {"plan": {}},
        {"last_exact": float("inf")},
        {"layers": [10**300]},
        {"layers": [-1]},
    ],
)
def test_settings_of_a_folder_that_cannot_be_are_refused(tmp_path, change):
    path = saved_with_sliding(tmp_path)
    about = json.loads((path / "cache.json").read_text())
    (path / "cache.json").write_text(json.dumps(about | change))
    with pytest.raises(ValueError, match="cache is not a usable cache folder: "):
        nn.NearFarCache.load(path)


@pytest.mark.parametrize("options", [{"k": 0.5}, {"k": 0}, {"k": 8, "window": "3"}, {"k": 8, "dtype": "x"}], ids=str)
def test_options_that_no_layer_can_have_are_refused_although_there_is_no_layer(tmp_path, options):
    path = saved_with_sliding(tmp_path)
    about = json.loads((path / "cache.json").read_text())
    (path / "cache.json").write_text(json.dumps(about | {"layers": [], "options": options}))
    with pytest.raises(ValueError, match="cache is not a usable cache folder: "):
        nn.NearFarCache.load(path)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tolerance": 2}, ValueError, "tolerance must be above 0 and below 1, got 2"),
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"foo": 1}, TypeError, "unexpected keyword argument 'foo'"),
        ({"batch": 2}, TypeError, "unexpected keyword argument 'batch'"),
        ({"plan": 3}, TypeError, "plan must be a Plan, as calibrate returns it, got int"),
    ],
)
def test_wrong_arguments_are_refused_at_once(options, error, message):
    with pytest.raises(error, match=message):
        nn.NearFarCache(**options)


def test_numbers_of_numpy_are_kept_as_numbers(tmp_path):
    cache = nn.NearFarCache(k=np.int64(24), window=np.int32(32), sinks=np.uint8(4), seed=np.int64(3))
    nn.forward(random_weights(), TOKENS[:50], cache=cache)
    cache.save(tmp_path / "cache")
    assert nn.NearFarCache.load(tmp_path / "cache").length == 50
    nn.NearFarCache(tolerance=np.float32(0.02)).save(tmp_path / "empty")


def test_options_that_later_passes_would_not_have_are_refused():
    query = np.zeros((3, 1, 8), np.float32)
    with pytest.raises(TypeError, match="NearFarCache has no 'softcap'; expected window= alone"):
        nn.NearFarCache(**OPTIONS).attend(None, 0, query, query, query, softcap=50.0)


def test_truncation_to_no_number_of_tokens_is_refused():
    cache = nn.NearFarCache(**OPTIONS)
    nn.forward(random_weights(), TOKENS[:50], cache=cache)
    with pytest.raises(TypeError, match="length must be an integer, got float"):
        cache.truncate(1.5)
    assert cache.length == 50


def test_a_cache_of_another_model_is_refused_where_a_window_slides():
    cache = nn.NearFarCache(**OPTIONS)
    nn.forward(random_weights(), TOKENS[:50], cache=cache)
    rows = np.zeros((2, 1, 8), np.float32)
    with pytest.raises(ValueError, match="layer 0 holds 0 of 50 tokens: the cache is of another model"):
        cache.attend(nn.exact_attention, 0, rows, rows, rows, window=8)


def test_what_is_no_cache_is_refused():
    with pytest.raises(TypeError, match="cache must be a KeyValueCache or a NearFarCache, got int"):
        nn.generate(random_weights(), TOKENS[:50], max_new_tokens=3, cache=3)


def saved_with_sliding(tmp_path, length=40):
    """A saved cache of a layer that sees all and one with a window."""
    cache, rows = nn.NearFarCache(k=8), np.random.default_rng(0).standard_normal((2, length, 8), np.float32)
    for layer, options in enumerate(({}, {"window": 7})):
        cache.attend(nn.exact_attention, layer, rows, rows, rows, **options)
    cache.advance(length)
    cache.save(tmp_path / "cache")
    return tmp_path / "cache"


def zip_of(compression=zipfile.ZIP_STORED, **arrays):
    """The bytes of an .npz file of raw .npy files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in arrays.items():
            archive.writestr(f"{name}.npy", data)
    return file.getvalue()


def npy(shape, count, dtype="<f4"):
    """A .npy file whose header tells of `shape` and that holds `count` numbers."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": dtype})
    return file.getvalue() + bytes(4 * count)


@pytest.mark.parametrize(
    "arrays",
    [
        {"1.keys": npy((10**6, 10**6, 8), 10)},
        {"1.keys": npy((-1, 1, 8), 8)},
        {"1.keys": npy((8,), 8)},
        {"1.keys": npy((1, 1, 8), 8, "O")},
        {"1.keys": npy((2, 40, 8), 640)},
        {"1.keys": npy((2, 40, 8), 640), "1.values": npy((2, 39, 8), 624)},
        {"1.keys": npy((2, 3, 8), 48), "1.values": npy((2, 3, 8), 48)},
        {"one.keys": npy((2, 40, 8), 640), "one.values": npy((2, 40, 8), 640)},
        {"1.keys": b"", "1.values": b""},
        {"compression": zipfile.ZIP_DEFLATED, "1.keys": npy((2, 40, 8), 640), "1.values": npy((2, 40, 8), 640)},
    ],
)
def test_rows_of_sliding_layers_that_cannot_be_are_refused_before_there_is_memory_for_them(tmp_path, arrays):
    path = saved_with_sliding(tmp_path)
    (file,) = path.glob("save-*/sliding.npz")
    file.write_bytes(zip_of(**arrays))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="cache is not a usable cache folder: "):
            nn.NearFarCache.load(path)
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("text", ["[" * 10**5, '{"length": ' * 10**5, "", "3", "\0"])
def test_a_cache_may_be_saved_over_a_damaged_one(tmp_path, text):
    path = saved_with_sliding(tmp_path)
    (path / "cache.json").write_text(text)
    with pytest.raises(ValueError, match="cache is not a usable cache folder: "):
        nn.NearFarCache.load(path)
    assert nn.NearFarCache.load(saved_with_sliding(tmp_path, 30)).length == 30


def test_a_cache_without_a_layer_of_the_model_is_refused_when_it_is_used(tmp_path):
    path = saved_with_sliding(tmp_path)
    about = json.loads((path / "cache.json").read_text())
    (path / "cache.json").write_text(json.dumps(about | {"layers": []}))
    cache, rows = nn.NearFarCache.load(path), np.ones((2, 1, 8), np.float32)
    with pytest.raises(ValueError, match="layer 0 holds 0 of 40 tokens"):
        cache.attend(nn.exact_attention, 0, rows, rows, rows)


def test_a_cache_that_is_not_there(tmp_path):
    for opener in (nn.NearFarCache.load, nn.NearFarCache.view):
        with pytest.raises(FileNotFoundError):
            opener(tmp_path / "absent")
