"""Which path a call takes: the cost formula by hand, the file of measured costs, and what `tune` writes."""

import dataclasses
import json
import math
import os
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
from helpers import NATIVE_BFLOAT16, inputs

import icecore
from icecore import _cost_model, _native, _tune, _tuning_file
from icecore.__main__ import main
from icecore._cost_model import COEFFICIENTS, SHIPPED, CostModel, count_work, expected_near_keys, expected_nodes
from icecore.selectors import PDCI

COSTS = CostModel(
    product_float32=2.0, product_bfloat16=1.0, product_thirds=1.5, weight=10.0, query=3.0, rounded=4.0, node=20.0, choice=5.0,
    near_float32=7.0, near_bfloat16=6.0, measured=9.0, distance=0.5, sealed=0.25, sealed_row=30.0,
)
WORK = _cost_model.Work(
    width=8, dim=3, heads=2, threads=4, causal=True, bfloat16=False, stored_bfloat16=False, thirds=False, counted=True,
    queries=5.0, pairs=1000.0, window_pairs=400.0, nodes=50.0, near_pairs=60.0, sealed_pairs=600.0, measured_pairs=0.0,
    sampled_pairs=70.0, distances=700.0, sealed_rows=80.0,
)
BY_TOLERANCE = dataclasses.replace(WORK, counted=False, near_pairs=0.0, measured_pairs=90.0)


@pytest.fixture
def tuning_file(tmp_path, monkeypatch):
    """A file of this test's own; what was read before is forgotten, and again at the end."""
    file = tmp_path / "folder" / "tuning.json"
    monkeypatch.setenv("ICECORE_TUNING", str(file))
    monkeypatch.setattr(_tuning_file, "_models", None)
    return file


# ---- The formula ----


def test_the_prediction_by_hand():
    exact = 1000 * (8 * 2 + 10) + 5 * 8 * 3
    sealing = 700 * 3 * 0.5 + 80 * (8 * 0.25 + 30)
    attending = 450 * (8 * 2 + 10) + 50 * (20 + 5) + 60 * 8 * 7 + 5 * 8 * 3
    assert COSTS.exact_seconds(WORK) == pytest.approx(1e-9 * exact / 4)
    assert COSTS.sealing_seconds(WORK) == pytest.approx(1e-9 * sealing)
    assert COSTS.attending_seconds(WORK) == pytest.approx(1e-9 * attending)
    predicted = COSTS.predict(WORK)
    assert predicted == pytest.approx({"exact": 1e-9 * exact / 4, "near_far": 1e-9 * (sealing + attending) / 4})


def test_bfloat16_and_tolerance_by_hand():
    work = dataclasses.replace(WORK, bfloat16=True, stored_bfloat16=True, counted=False)
    assert COSTS.exact_seconds(work) == pytest.approx(1e-9 * (1000 * (8 * 1 + 10) + 5 * 8 * 3) / 4)
    assert COSTS.attending_seconds(work) == pytest.approx(1e-9 * (450 * (8 + 10) + 50 * 20 + 60 * 8 * 6 + 5 * 8 * 7))
    thirds = dataclasses.replace(WORK, thirds=True)  # of exact attention alone
    assert COSTS.exact_seconds(thirds) == pytest.approx(1e-9 * (1000 * (8 * 1.5 + 10) + 5 * 8 * 3) / 4)
    assert COSTS.attending_seconds(thirds) == COSTS.attending_seconds(WORK)


def test_the_rounded_path_by_hand():
    """As exact attention of bfloat16, with rounding, and sampled rows both ways."""
    work = dataclasses.replace(BY_TOLERANCE, stored_bfloat16=True)
    sampled = 70 * (8 * (2 + 1) + 2 * 10)
    expected = 1e-9 * (1000 * (8 + 10) + 5 * 8 * 3 + 5 * 8 * 4 + sampled)
    for threads in (1, 4, 100):
        assert COSTS.rounded_seconds(dataclasses.replace(work, threads=threads)) == pytest.approx(expected / threads)
    assert COSTS.predict(work)["rounded"] == COSTS.rounded_seconds(work)
    for other in ({"bfloat16": True}, {"stored_bfloat16": False}, {"counted": True}):
        assert "rounded" not in COSTS.predict(dataclasses.replace(work, **other))


def choice(exact, near_far, rounded=None, trial=0.0, **changes):
    class Model:
        def predict(self, work):
            return {"exact": exact, "near_far": near_far} | ({} if rounded is None else {"rounded": rounded})

        def trial_seconds(self, work):
            return trial

    return _cost_model.choose(dataclasses.replace(BY_TOLERANCE, **changes), Model())


def test_the_choice():
    assert choice(10, 9.5) == "exact"  # not faster by enough
    assert choice(10, 9) == "near_far"
    assert choice(10, 9, sealed_pairs=0.0) == "exact"
    assert choice(10, 5, trial=1.6) == "near_far"
    assert choice(10, 5, trial=1.7) == "exact"  # a trial would cost too much
    assert choice(10, 5, trial=1.7, counted=True) == "near_far"
    assert choice(10, 5, rounded=9.5, trial=1.7) == "exact"  # nor is rounding faster by enough
    assert choice(10, 5, rounded=4) == "rounded"
    assert choice(10, 5, rounded=6) == "near_far"
    # 6 / 4 may be gained where (6 + trial) / 6 may be lost
    assert choice(10, 4, rounded=6, trial=2.9) == "near_far"
    assert choice(10, 4, rounded=6, trial=3.1) == "rounded"


@pytest.mark.parametrize("causal", [False, True])
def test_the_choice_does_not_depend_on_the_threads(causal):
    """Although few key heads keep few threads busy while keys are sealed."""
    rng, paths = np.random.default_rng(3), set()
    for _ in range(200):
        work = dataclasses.replace(
            BY_TOLERANCE, causal=causal, heads=1, stored_bfloat16=bool(rng.integers(2)), counted=bool(rng.integers(2)),
            **{name: 10 ** rng.uniform(0, 4) for name in ("sealed_rows", "nodes", "near_pairs", "measured_pairs", "distances")},
        )
        chosen = {_cost_model.choose(dataclasses.replace(work, threads=threads), COSTS) for threads in (1, 2, 7, 64)}
        assert len(chosen) == 1
        paths |= chosen
    assert paths == {"exact", "near_far", "rounded"}


def test_a_model_to_use_is_of_its_own_thread():
    """And whoever leaves first takes nobody else's away."""
    before, entered, left = _cost_model.model_in_force(), threading.Event(), threading.Event()

    def other():
        with _cost_model.use(COSTS):
            entered.set()
            left.wait()

    thread = threading.Thread(target=other)
    with _cost_model.use(_cost_model.NearFarAlways()):
        thread.start()
        entered.wait()
        assert isinstance(_cost_model.model_in_force(), _cost_model.NearFarAlways)
    left.set()
    thread.join()
    assert _cost_model.model_in_force() is before


def test_what_a_trial_costs_by_hand():
    """Sealing, of which a causal call whose heads turn out to be exact does a third, and measuring."""
    sealing, measuring = COSTS.sealing_seconds(WORK), 1e-9 * 90 * 8 * 9
    assert COSTS.trial_seconds(BY_TOLERANCE) == pytest.approx((sealing / 3 + measuring) / 4)
    before = dataclasses.replace(BY_TOLERANCE, causal=False)
    assert COSTS.trial_seconds(before) == pytest.approx((sealing + measuring) / 2)
    thirds = dataclasses.replace(BY_TOLERANCE, thirds=True)  # in which its exact heads are not multiplied
    slower = 1e-9 * 1000 * 8 * (2 - 1.5) / 4
    assert COSTS.trial_seconds(thirds) == pytest.approx((sealing / 3 + measuring) / 4 + slower)


def test_prices_are_by_a_key_of_exact_attention():
    exact = 8 * 2 + 10
    plain = {"near_price": 8 * 7 / exact, "node_price": (8 * 2 + 10 + 20) / exact, "rounded_price": 1}
    assert COSTS.prices(WORK) == pytest.approx(plain)
    assert COSTS.prices(dataclasses.replace(WORK, thirds=True)) == pytest.approx(plain)  # not by that of exact attention alone
    rounded = dataclasses.replace(WORK, stored_bfloat16=True)
    shorter = {"near_price": 8 * 6 / exact, "node_price": (8 + 10 + 20) / exact, "rounded_price": (8 + 10) / exact}
    assert COSTS.prices(rounded) == pytest.approx(shorter)
    given = dataclasses.replace(rounded, bfloat16=True)
    same = {"near_price": 8 * 6 / (8 + 10), "node_price": (8 + 10 + 20) / (8 + 10), "rounded_price": 1}
    assert COSTS.prices(given) == pytest.approx(same)


def test_near_far_with_a_tolerance_takes_no_longer_than_exact_attention_on_rounded_numbers():
    """Causal calls whose numbers are rounded for it: where all heads turn out to be exact so, after a trial."""
    work = dataclasses.replace(BY_TOLERANCE, stored_bfloat16=True, nodes=1e9)
    assert COSTS.near_far_seconds(work) == pytest.approx(COSTS.rounded_seconds(work) + COSTS.trial_seconds(work))
    for other in ({"bfloat16": True}, {"causal": False}, {"counted": True}):
        assert COSTS.near_far_seconds(dataclasses.replace(work, **other)) > 1


def test_sealing_is_shared_by_key_heads_only():
    before = dataclasses.replace(WORK, causal=False)  # all is sealed, then attended
    sealing, attending = COSTS.sealing_seconds(WORK), COSTS.attending_seconds(WORK)
    assert COSTS.near_far_seconds(before) == pytest.approx(sealing / 2 + attending / 4)
    beside = dataclasses.replace(WORK, heads=1, distances=1e6)
    assert COSTS.near_far_seconds(beside) == pytest.approx(COSTS.sealing_seconds(beside))


@pytest.mark.parametrize("cost", [-1.0, math.nan, math.inf, "1", None, True])
def test_a_cost_is_a_number(cost):
    with pytest.raises(ValueError, match="node must be a finite number, at least 0"):
        dataclasses.replace(COSTS, node=cost)


def test_shipped_costs_cover_all_instruction_sets():
    assert set(SHIPPED) >= {"scalar", "avx2", "avx512", "avx512_bf16", "amx", "neon"}
    for model in SHIPPED.values():
        assert min(model.product_float32, model.product_bfloat16, model.near_float32) > 0
    assert all(SHIPPED[isa].near_bfloat16 > 0 for isa in NATIVE_BFLOAT16)


# ---- Counting ----


def work_of(queries, keys, window, sinks, **options):
    settings = {"causal": window is not None, "bfloat16": False, "stored_bfloat16": False, "thirds": False}
    settings |= {"k": 10, "tolerance": None, "cell_size": 16, "threads": 1}
    return count_work((2, 6, queries, 5, keys, 7), 3, window=window, sinks=sinks, **(settings | options))


def counted_by_loop(queries, keys, window, sinks):
    """(pairs, window pairs, near pairs at k=10, sealed rows) of one head: query by query, block by block."""
    pairs = in_window = near = rows = 0
    done = None
    for position in range(keys - queries, keys):
        if position < 0:
            continue
        blocks = max(position // window - 1, 0)
        sealed = max(blocks * window - sinks, 0)
        pairs += position + 1
        in_window += position + 1 - sealed
        near += min(10 + 0.9 * 16, sealed)
        if blocks != done:  # a stack at first, then the segment that ends with the new block
            begin = 0 if done is None else blocks - (blocks & -blocks)
            rows += max(blocks * window - max(begin * window, sinks), 0)
        done = blocks
    return pairs, in_window, near, rows


@pytest.mark.parametrize(("queries", "keys"), [(200, 200), (1, 200), (37, 200), (250, 200), (3, 5), (1, 1)])
@pytest.mark.parametrize(("window", "sinks"), [(16, 0), (16, 5), (1, 0), (30, 70), (512, 16)])
def test_causal_counts(queries, keys, window, sinks):
    work = work_of(queries, keys, window, sinks)
    pairs, in_window, near, rows = counted_by_loop(queries, keys, window, sinks)
    assert (work.width, work.dim, work.heads, work.queries) == (12, 5, 6, 12 * queries)
    assert work.pairs == 12 * pairs
    assert work.window_pairs == pytest.approx(12 * in_window)
    assert work.sealed_pairs == pytest.approx(12 * (pairs - in_window))
    assert work.near_pairs == pytest.approx(12 * near)
    assert work.sealed_rows == 6 * rows
    assert work.sampled_pairs == pytest.approx(work.pairs * min(24, queries) / queries)  # 48 rows of 2 query heads
    assert (work.nodes > 1) == (near > 0)


def test_counts_both_ways():
    work = work_of(40, 1000, None, 8)
    assert work.pairs == 12 * 40 * 1000
    assert work.window_pairs == 12 * 40 * 8
    assert work.near_pairs == pytest.approx(12 * 40 * 24.4)
    assert work.nodes == pytest.approx(12 * 40 * 992 / 16 * (17 / 16 - math.exp(-4 * 2048 / 992)))
    assert work.distances == pytest.approx(6 * 992 * 2 * (992 / 256 + 16))
    assert work.sealed_rows == 6 * 992


@pytest.mark.parametrize("window", [None, 50])
def test_with_a_tolerance_near_far_is_counted_at_its_cheapest(window):
    """Which keys are near is not known: parents alone are scored, and some rows are attended exactly as well.

    Causal: those of the first block, which nothing was measured for, are exact.
    """
    by_k, work = (work_of(300, 1000, window, 8, **options) for options in ({}, {"k": 1, "tolerance": 0.1}))
    assert (by_k.counted, by_k.measured_pairs) == (True, 0)
    assert (work.counted, work.near_pairs) == (False, 0)
    assert work.nodes == pytest.approx(work.sealed_pairs / 256)
    exact = 0 if window is None else 12 * 50 * (13 * 50 - 8)
    assert work.window_pairs == by_k.window_pairs + exact
    assert work.sealed_pairs == by_k.sealed_pairs - exact
    for name in ("pairs", "distances", "sealed_rows"):
        assert getattr(work, name) == getattr(by_k, name)
    # 16 queries of both heads when 13 blocks of 50 are sealed, 6 of them after each of the next three; the last for none
    measured = 48 * 2 * 992 if window is None else 32 * 642 + 12 * (692 + 742 + 792)
    assert work.measured_pairs == 6 * measured


@pytest.mark.parametrize("length", [100, 200])
def test_a_prompt_is_exact_until_rows_that_see_two_sealed_blocks_are_measured(length):
    work = work_of(length, length, 50, 0, tolerance=0.1)
    assert work.sealed_pairs == 0
    assert work_of(201, 201, 50, 0, tolerance=0.1).sealed_pairs == 12 * 150


def test_near_keys_and_nodes_to_be_expected():
    sealed = np.array([0.0, 1.0, 100.0, 1e6])
    for k in (1, 30, 10**9):
        near, nodes = expected_near_keys(sealed, k, 16), expected_nodes(sealed, k, None, 16)
        assert np.all((near >= 0) & (near <= sealed))
        assert np.all((nodes >= 0) & (nodes <= sealed * 17 / 256 + 1e-6))
        assert np.all(expected_nodes(sealed, k, 0.1, 16) <= nodes)
    assert expected_near_keys(1e6, 30, 16) == pytest.approx(30 + 0.9 * 16)


def test_as_what_numbers_are_multiplied(isa):
    native = isa in NATIVE_BFLOAT16
    for bfloat16, rounding in ((False, False), (False, True), (True, False)):
        found = _cost_model.multiplied(64, 32, 300, bfloat16=bfloat16, rounding=rounding)
        stored = native and (bfloat16 or rounding)
        assert found == {"bfloat16": bfloat16, "stored_bfloat16": stored, "thirds": isa == "amx" and not bfloat16}
    assert not _cost_model.multiplied(64, 32, 100, bfloat16=False, rounding=True)["thirds"]
    odd = _cost_model.multiplied(33, 31, 300, bfloat16=False, rounding=True)
    assert odd == {"bfloat16": False, "stored_bfloat16": False, "thirds": False}


# ---- The choice ----


class Says(_cost_model.NearFarAlways):
    def __init__(self, exact, near_far, trial=0.0):
        self.predicted, self.trial = {"exact": exact, "near_far": near_far}, trial

    def predict(self, work):
        return self.predicted

    def trial_seconds(self, work):
        return self.trial


@pytest.mark.parametrize("options", [{"k": 20}, {"tolerance": 0.1}])
@pytest.mark.parametrize(("near_far", "path"), [(0.8, "near_far"), (0.95, "exact"), (1.2, "exact")])
def test_the_model_drives_the_path(options, near_far, path):
    arrays = inputs((2, 300, 8), (1, 300, 8), 8)
    with _cost_model.use(Says(1.0, near_far)):
        _, info = icecore.attention(*arrays, return_info=True, **options)
        assert info.path == path
        assert info.predicted == {"exact": 1.0, "near_far": near_far}
        assert "1000.00 ms exact" in str(info) and f"{1000 * near_far:.2f} ms near/far" in str(info)
        # all of it within the window: nothing is far
        assert icecore.attention(*arrays, return_info=True, causal=True, **options)[1].path == "exact"


def test_a_tolerance_is_tried_where_that_costs_little():
    """A sixth of exact attention's time at most may go to finding out that nothing is gained; k needs no trial."""
    arrays = inputs((2, 300, 8), (1, 300, 8), 8)
    for trial, path in ((0.15, "near_far"), (0.17, "exact")):
        with _cost_model.use(Says(1.0, 0.5, trial)):
            assert icecore.attention(*arrays, return_info=True, tolerance=0.1)[1].path == path
            assert icecore.attention(*arrays, return_info=True, k=20)[1].path == "near_far"


@pytest.mark.parametrize("options", [{}, {"k": 300}, {"selector": PDCI(20)}])
def test_no_prediction_where_there_is_no_choice(options):
    arrays = inputs((2, 300, 8), (1, 300, 8), 8)
    with _cost_model.use(Says(0.0, 1.0)):
        _, info = icecore.attention(*arrays, return_info=True, **options)
    assert info.predicted is None
    assert "no choice" in str(info)


@pytest.mark.parametrize("shape", [((2, 0, 8), (1, 300, 8)), ((2, 5, 8), (1, 0, 8))])
@pytest.mark.parametrize("causal", [True, False])
def test_nothing_to_predict(shape, causal):
    _, info = icecore.attention(*inputs(*shape, 8), tolerance=0.1, causal=causal, return_info=True)
    assert info.predicted is None
    assert info.path == "exact"
    assert str(info).startswith("path: exact")


def test_the_text_has_the_figures():
    with _cost_model.use(Says(1.0, 0.5)):
        _, info = icecore.attention(*inputs((2, 300, 8), (1, 300, 8), 8), k=20, return_info=True)
    lines = dict(line.split(": ", 1) for line in str(info).splitlines())
    assert lines["near keys per query"] == f"median {np.median(info.near_keys):.0f}, max {info.near_keys.max()}"
    assert lines["captured mass"] == f"median {np.median(info.captured_mass):.4f}, min {info.captured_mass.min():.4f}"
    bound = info.missed_mass_bound
    assert lines["missed-mass bound"] == f"median {np.median(bound):.4f}, max {bound.max():.4f}"
    scored = f"median {np.median(info.summaries):.0f}, max {info.summaries.max()}"
    assert lines["cells and parents scored per query"] == scored
    assert lines["share of the visible keys read per query"] == f"mean {info.visited_fraction.mean():.1%}"
    error = f"mean {info.error.mean():.4f}, max {info.error.max():.4f} (from 32 rows per head)"
    assert lines["measured error per head"] == error
    split = ", ".join(f"{name} {1e3 * info.seconds[name]:.2f} ms" for name in ("sealing", "attending", "measuring"))
    assert lines["time, all threads together"] == split


def test_visited_fraction_counts_what_is_read():
    arrays, options = inputs((2, 500, 8), (1, 500, 8), 8), {"tolerance": 0.2, "return_info": True}
    with _cost_model.use(_cost_model.NearFarAlways()):
        _, info = icecore.attention(*arrays, **options)
        _, causal = icecore.attention(*arrays, causal=True, window=50, sinks=3, **options)
        assert icecore.attention(*arrays, selector=PDCI(20), return_info=True)[1].visited_fraction is None
    np.testing.assert_allclose(info.visited_fraction, (info.near_keys + info.summaries) / 500, rtol=1e-6)
    cache = icecore.KVCache(1, 8, tolerance=0.2, window=50, sinks=3)
    cache.append(*arrays[1:])
    for position, of_query in enumerate(causal.visited_fraction.T):
        open_begin = max(position // 50 - 1, 0) * 50
        exact = position + 1 - open_begin + (3 if open_begin else 0)
        near, summaries = (a[:, position] for a in (causal.near_keys, causal.summaries))
        np.testing.assert_allclose(of_query, (exact + near + summaries) / (position + 1), rtol=1e-6)
    of_cache = cache.attend(arrays[0], return_info=True)[1]
    seen = np.arange(1, 501)
    others = of_cache.visited_fraction * seen - of_cache.near_keys - of_cache.summaries
    expected = causal.visited_fraction * seen - causal.near_keys - causal.summaries
    np.testing.assert_allclose(others, expected, atol=1e-3)


# ---- The file ----


def test_round_trip(tuning_file, isa):
    assert _cost_model.model_in_force() == SHIPPED[isa]
    assert _tuning_file.save(COSTS, isa, 2) == tuning_file
    assert _cost_model.model_in_force() == COSTS
    assert str(tuning_file) in _cost_model.origin()
    other = dataclasses.replace(COSTS, node=1.0)
    _tuning_file.save(other, "another", 2)
    _tuning_file.save(other, isa, 2)  # in the place of the first
    assert _cost_model.model_in_force() == other
    assert len(json.loads(tuning_file.read_text())["entries"]) == 2
    assert [path.name for path in tuning_file.parent.iterdir()] == [tuning_file.name]


def test_entries_of_other_machines_and_versions_stay_and_are_not_used(tuning_file, monkeypatch):
    isa = _native.isa()
    with monkeypatch.context() as patch:
        patch.setattr(_tuning_file, "processor", lambda: "another processor")
        _tuning_file.save(COSTS, isa, 2)
    with monkeypatch.context() as patch:
        patch.setattr(icecore, "__version__", "0.0.0")
        _tuning_file.save(COSTS, isa, 2)
    assert _cost_model.model_in_force() == SHIPPED[isa]
    _tuning_file.save(dataclasses.replace(COSTS, node=1.0), isa, 2)
    assert len(json.loads(tuning_file.read_text())["entries"]) == 3


def entry(**changes):
    own = {**_tuning_file.key(_native.isa()), "threads": 1, "model": dataclasses.asdict(COSTS)}
    return json.dumps({"icecore tuning": 1, "entries": [own | changes]})


BAD_FILES = {
    "empty": lambda: b"",
    "not JSON": lambda: b"{",
    "not text": lambda: b"\xff\xfe\x00",
    "another file": lambda: b'{"name": "something"}',
    "a list": lambda: b"[1, 2]",
    "another format": lambda: b'{"icecore tuning": 2, "entries": []}',
    "no entries": lambda: b'{"icecore tuning": 1}',
    "entries of another type": lambda: b'{"icecore tuning": 1, "entries": [3]}',
    "deep": lambda: b"[" * 100000,
    "no model": lambda: entry(model=None).encode(),
    "a cost missing": lambda: entry(model={"node": 1.0}).encode(),
    "a cost too many": lambda: entry(model=dataclasses.asdict(COSTS) | {"more": 1.0}).encode(),
    "a cost that is none": lambda: entry(model=dataclasses.asdict(COSTS) | {"node": None}).encode(),
    "a cost that is NaN": lambda: entry(model=dataclasses.asdict(COSTS) | {"node": math.nan}).encode(),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_brings_one_warning_and_the_shipped_costs(tuning_file, name):
    tuning_file.parent.mkdir()
    tuning_file.write_bytes(BAD_FILES[name]())
    arrays = inputs((2, 300, 8), (1, 300, 8), 8)
    with pytest.warns(UserWarning, match="icecore cannot use .*tuning.json.*python -m icecore tune"):
        icecore.attention(*arrays, k=20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, info = icecore.attention(*arrays, k=20, return_info=True)
    multiplied = _cost_model.multiplied(8, 8, 600, bfloat16=False, rounding=True)
    work = count_work((1, 2, 300, 8, 300, 8), 1, causal=False, **multiplied, k=20, tolerance=None, window=None, sinks=0,
                      cell_size=16, threads=icecore.get_num_threads())
    assert info.predicted == SHIPPED[_native.isa()].predict(work)
    _tuning_file.save(COSTS, _native.isa(), 2)  # and it can be written anew
    assert _cost_model.model_in_force() == COSTS


def test_a_folder_in_the_place_of_the_file(tuning_file):
    tuning_file.mkdir(parents=True)
    with pytest.warns(UserWarning, match="icecore cannot use"):
        assert _cost_model.model_in_force() == SHIPPED[_native.isa()]
    with pytest.raises(OSError):
        _tuning_file.save(COSTS, _native.isa(), 2)
    assert [path.name for path in tuning_file.parent.iterdir()] == [tuning_file.name]


def test_off(tuning_file, monkeypatch, capsys):
    _tuning_file.save(COSTS, _native.isa(), 2)
    monkeypatch.setenv("ICECORE_TUNING", "off")
    assert _tuning_file.path() is None
    assert _cost_model.model_in_force() == SHIPPED[_native.isa()]
    assert "off" in _cost_model.origin()
    with pytest.raises(OSError, match="ICECORE_TUNING is off"):
        _tuning_file.save(COSTS, _native.isa(), 2)
    assert main(["tune"]) == 1
    assert "ICECORE_TUNING is off" in capsys.readouterr().err


def test_where_the_file_is(monkeypatch, tmp_path):
    monkeypatch.setenv("ICECORE_TUNING", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert _tuning_file.path() == tmp_path / "icecore" / "tuning.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    assert _tuning_file.path() == tmp_path / "home" / ".cache" / "icecore" / "tuning.json"


def test_the_file_is_read_once(tuning_file, monkeypatch):
    loads = []
    original = _tuning_file._load
    monkeypatch.setattr(_tuning_file, "_load", lambda model_type: loads.append(1) or original(model_type))
    threads = [threading.Thread(target=_cost_model.model_in_force) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1


# ---- The command ----


def test_tune_writes_a_file_that_is_then_in_force(tuning_file, capsys):
    command = [sys.executable, "-m", "icecore", "tune", "--seconds", "0.01", "--threads", "1"]
    environment = {**os.environ, "ICECORE_TUNING": str(tuning_file)}
    for _ in range(4):  # one round on a busy machine may make no sense, and is refused
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        if "would cost nothing" not in done.stderr:
            break
        assert done.returncode == 1
        assert not tuning_file.exists()
    assert done.returncode == 0, done.stderr
    assert str(tuning_file) in done.stdout
    for text in ("1 thread,", "4096 tokens, d=64, causal", "near/far with k=128, d=64, not causal:", *COEFFICIENTS):
        assert text in done.stdout
    model = _cost_model.model_in_force()
    assert model != SHIPPED[_native.isa()]
    assert min(model.product_float32, model.product_bfloat16, model.near_float32) > 0
    main(["info"])
    assert f"measured here ({tuning_file})" in capsys.readouterr().out


def test_fit_finds_the_costs_of_made_up_times():
    cases = []
    for tokens, dim, causal in [(600, 8, False), (900, 24, False), (1700, 8, True), (2100, 24, True), (5000, 16, False)]:
        arrays = tuple(np.zeros((heads, tokens, dim), np.float32) for heads in (_tune.HEADS, _tune.KEY_HEADS, _tune.KEY_HEADS))
        for options in [*_tune.NEAR_FAR, _tune.UNROUNDED, _tune.MEASURED]:
            for stored in (False, True):
                work = _tune.expected_work(arrays, causal, options)
                work = dataclasses.replace(work, stored_bfloat16=stored, bfloat16=stored, thirds=not stored and dim == 16)
                near_far, parts = COSTS.near_far_seconds(work), (COSTS.sealing_seconds(work), COSTS.measuring_seconds(work))
                cases.append(_tune.Case(arrays, causal, options, work, *parts, [near_far]))
                cases.append(_tune.Case(arrays, causal, {}, work, 0.0, 0.0, [COSTS.exact_seconds(work)]))
    found = _tune.fit(cases)
    for name in COEFFICIENTS:
        assert getattr(found, name) == pytest.approx(getattr(COSTS, name), rel=1e-3), name


@pytest.mark.parametrize("arguments", [["--seconds", "0"], ["--seconds", "nan"], ["--threads", "0"], ["--threads", "x"]])
def test_wrong_arguments_of_tune(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["tune", *arguments])
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err
