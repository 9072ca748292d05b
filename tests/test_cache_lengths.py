"""KVCache(batch=) of sequences with different lengths: each is, bit for bit, what it is in a cache of its own."""

import signal
import time

import numpy as np
import pytest
from helpers import assert_same_bits, encode
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import icecore
from icecore import reference

HEADS, GROUP, DIM, VALUE_DIM = 2, 3, 16, 9
SMALL = {"value_dim": VALUE_DIM, "window": 16, "sinks": 3}
BUDGETS = {"k": {"k": 8}, "tolerance": {"tolerance": 0.05}, "everything": {"k": 10**6}}


def rows(random, batch, count, dtype="float32"):
    """queries, keys, values of so many tokens."""
    shapes = (batch, HEADS * GROUP, count, DIM), (batch, HEADS, count, DIM), (batch, HEADS, count, VALUE_DIM)
    return [encode(2 * random.standard_normal(shape, np.float32), dtype) for shape in shapes]


def own(length, count, side):
    """The slice of a sequence's own rows."""
    return slice(0, length) if side == "right" else slice(count - length, count)


def spoiled(array, lengths, side):
    """`array` with padding that nobody may read."""
    spoiled = np.full_like(array, np.nan) if array.dtype.kind == "f" else np.full_like(array, 0x7FC0)
    for to, given_rows, length in zip(spoiled, array, lengths, strict=True):
        kept = own(length, array.shape[2], side)
        to[:, kept] = given_rows[:, kept]
    return spoiled


def new(batch=None, dtype="float32", budget="k", **options):
    return icecore.KVCache(HEADS, DIM, batch=batch, dtype=dtype, **BUDGETS[budget], **SMALL, **options)


def ragged(lengths, budget="k", dtype="float32"):
    """A cache of sequences of these lengths, attended up to the last tokens, and each of them in a cache of its own."""
    query, key, value = rows(np.random.default_rng(0), len(lengths), max(lengths))
    cache, singles = new(len(lengths), dtype, budget), [new(dtype=dtype, budget=budget) for _ in lengths]
    cache.append(key, value, lengths=lengths)
    cache.attend(query, lengths=lengths)
    for i, (single, length) in enumerate(zip(singles, lengths, strict=True)):
        single.append(key[i, :, :length], value[i, :, :length])
        single.attend(query[i, :, :length])
    return cache, singles


# ---- As by themselves ----


class RaggedMachine(RuleBasedStateMachine):
    """A ragged batch beside a cache of its own for each sequence."""

    @initialize(
        budget=st.sampled_from(list(BUDGETS)), dtype=st.sampled_from(["float32", "float16", "bfloat16", "int8", "int4"]),
        batch=st.integers(1, 4),
    )
    def start(self, budget, dtype, batch):
        self.random, self.dtype = np.random.default_rng(0), dtype
        self.cache = new(batch, dtype, budget)
        self.singles = [new(dtype=dtype, budget=budget) for _ in range(batch)]

    @rule(data=st.data(), side=st.sampled_from(["right", "left"]), seen=st.booleans(), threads=st.sampled_from([1, 2]),
          count=st.sampled_from([1, 5, 60]), given=st.sampled_from(["float32", "bfloat16"]))
    def append_and_attend(self, data, side, seen, threads, count, given):
        lengths = [data.draw(st.integers(0, count)) for _ in self.singles]
        arrays = [spoiled(array, lengths, side) for array in rows(self.random, len(lengths), count, given)]
        query, key, value = arrays
        self.cache.append(key, value, query if seen else None, lengths=lengths, padding_side=side)
        out, lse, info = self.cache.attend(query, lengths=lengths, padding_side=side, num_threads=threads, return_lse=True,
                                           return_info=True)
        for i, (single, length) in enumerate(zip(self.singles, lengths, strict=True)):
            kept = own(length, count, side)
            one = [array[i, :, kept] for array in arrays]
            single.append(one[1], one[2], one[0] if seen else None)
            expected = single.attend(one[0], return_lse=True, return_info=True)
            assert_same_bits(out[i, :, kept], expected[0])
            assert_same_bits(lse[i, :, kept], expected[1])
            for name in ("near_keys", "captured_mass", "missed_mass_bound", "summaries", "visited_fraction"):
                assert_same_bits(getattr(info, name)[i, :, kept], getattr(expected[2], name))
            if single.tolerance is not None:
                assert_same_bits(info.error[i], expected[2].error)
                assert_same_bits(info.error_rows[i], expected[2].error_rows)
            padding = np.delete(np.arange(count), np.arange(count)[kept])
            assert not out[i][:, padding].any() and (lse[i][:, padding] == -np.inf).all()

    @rule(data=st.data())
    def truncate(self, data):
        counts = []
        for single in self.singles:
            count = data.draw(st.integers(0, len(single)))
            counts.append(count if count <= 3 or count >= single.stats["evicted"] else len(single))
        self.cache.truncate(counts)
        for single, count in zip(self.singles, counts, strict=True):
            single.truncate(count)

    @rule(share=st.floats(0, 1), together=st.booleans())
    def evict(self, share, together):
        bounds = (share * self.cache.lengths).astype(int)
        bounds = np.full_like(bounds, bounds.max()) if together else bounds
        evicted = self.cache.evict(int(bounds.max()) if together else bounds)
        own = [single.evict(bound) for single, bound in zip(self.singles, bounds, strict=True)]
        np.testing.assert_array_equal(evicted, min(own) if together else own)

    @rule(data=st.data())
    def reorder(self, data):
        chosen = data.draw(st.lists(st.integers(0, len(self.singles) - 1), min_size=1, max_size=4))
        self.cache.reorder(chosen)
        self.singles = [self.singles[i].fork() for i in chosen]

    @rule()
    def go_on_in_a_fork(self):
        self.cache = self.cache.fork()

    @invariant()
    def sequences_hold_what_they_should(self):
        singles = getattr(self, "singles", None)
        if singles is None:
            return
        np.testing.assert_array_equal(self.cache.lengths, [len(single) for single in singles])
        assert len(self.cache) == max(len(single) for single in singles)
        stats, alone = self.cache.stats, [single.stats for single in singles]
        assert all(stats[name] == max(own[name] for own in alone) for name in stats if name != "bytes")
        for read in (icecore.KVCache.keys, icecore.KVCache.values):
            stored = read(self.cache)
            for of_sequence, single in zip(stored, singles, strict=True):
                held = single.stats["held"]
                assert_same_bits(of_sequence[:, :held], read(single))
                assert not of_sequence[:, held:].any()
        assert self.cache.validate()


TestRaggedMachine = RaggedMachine.TestCase
TestRaggedMachine.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(0, 70), min_size=1, max_size=4), steps=st.integers(0, 5))
def test_it_is_attention_of_each_sequence(lengths, steps):
    """Of the float64 oracle; then some steps of decoding by all."""
    query, key, value = rows(np.random.default_rng(1), len(lengths), 75)
    cache = new(len(lengths), budget="everything")
    cache.append(key[:, :, :70], value[:, :, :70], lengths=lengths)
    outs = [cache.attend(query[:, :, :70], lengths=lengths)]
    for j in range(steps):
        step = [np.stack([array[i, :, n + j] for i, n in enumerate(lengths)])[:, :, None] for array in (query, key, value)]
        cache.append(step[1], step[2])
        outs.append(cache.attend(step[0]))
    for i, n in enumerate(lengths):
        parts = [outs[0][i, :, :n]] + [out[i] for out in outs[1:]]
        alone = (array[i : i + 1, :, : n + steps].astype(np.float64) for array in (query, key, value))
        expected = reference.attention(*alone, causal=True, scale=DIM**-0.5)[0][0]
        np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, atol=1e-5)


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_same_bits_for_any_number_of_threads(isa, budget):
    lengths, outs = [300, 1, 0, 147], []
    for threads in (1, 2, 3):
        cache, _ = ragged(lengths, budget)
        query, key, value = rows(np.random.default_rng(2), 4, 40)
        cache.append(key, value, lengths=[40, 2, 1, 40])
        outs.append(cache.attend(query, lengths=[40, 2, 0, 1], num_threads=threads))
    assert_same_bits(outs[0], outs[1])
    assert_same_bits(outs[0], outs[2])


def test_more_sequences_than_a_thread_may_read_of():
    """In one call; padding alone in some."""
    lengths = np.arange(200) % 7
    cache, singles = ragged(lengths.tolist())
    query = rows(np.random.default_rng(3), 200, 2)[0]
    own_queries = np.minimum(lengths, 2)
    out = cache.attend(query, lengths=own_queries, padding_side="left")
    for i in (0, 1, 6, 199):
        assert_same_bits(out[i, :, 2 - own_queries[i] :], singles[i].attend(query[i, :, 2 - own_queries[i] :]))


def test_one_sequence_without_its_axis():
    query, key, value = (array[0] for array in rows(np.random.default_rng(0), 1, 20))
    cache, plain = new(), new()
    cache.append(key, value, lengths=[13])
    plain.append(key[:, :13], value[:, :13])
    np.testing.assert_array_equal(cache.lengths, [13])
    assert_same_bits(cache.attend(query, lengths=[4], padding_side="left")[:, 16:], plain.attend(query[:, 16:]))


def test_out_takes_the_result_and_padding_is_0():
    cache, singles = ragged([50, 3])
    query = rows(np.random.default_rng(4), 2, 5)[0]
    out = np.full((2, 5, HEADS * GROUP, VALUE_DIM), np.nan, np.float32).swapaxes(1, 2)
    assert cache.attend(query, lengths=[5, 2], out=out) is out
    assert_same_bits(out[0], singles[0].attend(query[0]))
    assert_same_bits(out[1, :, :2], singles[1].attend(query[1, :, :2]))
    assert not out[1, :, 2:].any()


@pytest.mark.parametrize("opener", [icecore.KVCache.load, icecore.KVCache.view])
@pytest.mark.parametrize("evicts", [False, True])
def test_a_file_keeps_the_lengths(tmp_path, opener, evicts):
    cache, _ = ragged([200, 0, 90])
    if evicts:  # the first begins anew then, and has forgotten nothing
        cache.append(*(array[:, :, :100] for array in rows(np.random.default_rng(5), 3, 100)[1:]), lengths=[0, 100, 0])
        cache.attend(rows(np.random.default_rng(5), 3, 1)[0])
        assert (cache.evict([130, 80, 0]) > 3).tolist() == [True, True, False]
        cache.truncate([2, 100, 90])
    cache.save(tmp_path / "cache")
    opened = opener(tmp_path / "cache")
    np.testing.assert_array_equal(opened.lengths, cache.lengths)
    query, key, value = rows(np.random.default_rng(6), 3, 3)
    outs = []
    for one in (cache, opened):
        one.append(key, value, lengths=[1, 2, 3])
        outs.append(one.attend(query, lengths=[1, 2, 3]))
    assert_same_bits(*outs)
    assert opened.validate()


def test_it_says_its_lengths():
    cache, _ = ragged([50, 3])
    assert "3 to 50 tokens" in repr(cache) and len(cache) == 50
    assert cache.nbytes >= sum(single.nbytes for single in ragged([50, 3])[1]) * 0.9


# ---- All or nothing ----


def same(cache, before):
    return cache.stats == before.stats and (cache.lengths == before.lengths).all() and (cache.keys() == before.keys()).all()


WRONG = [
    (ValueError, r"lengths has shape \(2,\); expected \(3,\), one for each entry", {"lengths": [1, 1]}),
    (ValueError, r"lengths has shape \(\); expected \(3,\)", {"lengths": 1}),
    (ValueError, r"lengths\[1\] must be from 0 to 5, the rows of (keys|queries), got 6", {"lengths": [1, 6, 1]}),
    (ValueError, r"lengths\[2\] must be from 0 to 5, the rows of (keys|queries), got -1", {"lengths": [1, 1, -1]}),
    (TypeError, "lengths has dtype float64; expected integers", {"lengths": [1.0, 2.0, 3.0]}),
    (ValueError, "padding_side must be 'right' or 'left', got 'top'", {"padding_side": "top"}),
]


@pytest.mark.parametrize(("error", "message", "wrong"), WRONG, ids=lambda case: str(case)[:40])
def test_wrong_lengths_change_nothing(error, message, wrong):
    cache, _ = ragged([50, 3, 0])
    before = cache.fork()
    query, key, value = rows(np.random.default_rng(7), 3, 5)
    for call in (lambda: cache.append(key, value, **wrong), lambda: cache.attend(query, **wrong)):
        with pytest.raises(error, match=message):
            call()
        assert same(cache, before)


def test_what_one_sequence_cannot_do_none_does():
    cache, _ = ragged([50, 3, 0])
    cache.attend(rows(np.random.default_rng(0), 3, 1)[0], lengths=[1, 1, 0])
    before, query = cache.fork(), rows(np.random.default_rng(7), 3, 45)[0]
    for message, call in [
        ("queries has 4 rows, but sequence 1 holds 3 tokens", lambda: cache.attend(query[:, :, :4])),
        ("queries begin at token 5, but .* are sealed in sequence 0", lambda: cache.attend(query, lengths=[45, 1, 0])),
        (r"n\[2\] must be at most the 0 tokens there are, got 1", lambda: cache.truncate([50, 3, 1])),
        ("n must be at most the 3 tokens there are, got 4", lambda: cache.truncate(4)),
        (r"n has shape \(2,\); expected \(3,\), one for each sequence", lambda: cache.truncate([1, 1])),
        (r"n\[0\] must be at least 0, got -1", lambda: cache.truncate([-1, 0, 0])),
        (r"before has shape \(2,\); expected \(3,\), one for each sequence", lambda: cache.evict([1, 1])),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
        assert same(cache, before)
    with pytest.raises(TypeError, match="n has dtype float64; expected integers"):
        cache.truncate([1.0, 1.0, 0.0])


@pytest.mark.parametrize("before", [0, 100])
def test_a_number_that_storage_cannot_hold_is_named_and_padding_is_not(before):
    cache = new(3, "float16")
    _, key, value = rows(np.random.default_rng(0), 3, 100)
    if before:
        cache.append(key, value, lengths=[100, 70, 90])
    state = cache.fork()
    _, key, value = rows(np.random.default_rng(1), 3, 5)
    key[0, :, 2:] = 1e6  # padding
    value[2, 1, 1, 4] = 1e5
    with pytest.raises(ValueError, match=r"values holds 100000, which float16 cannot hold"):
        cache.append(key, value, lengths=[2, 5, 3])
    assert same(cache, state)
    cache.append(key, value, lengths=[2, 5, 1])
    np.testing.assert_array_equal(cache.lengths - state.lengths, [2, 5, 1])


def test_an_interrupted_append_appends_to_all_or_none():
    _, key, value = rows(np.random.default_rng(0), 3, 20000)
    whole = new(3)
    whole.append(key, value, lengths=[20000, 70, 19000])
    started = time.perf_counter()
    whole.fork().append(key, value, lengths=[1, 20000, 20000])
    seconds, interrupted = time.perf_counter() - started, 0
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for share in (0.2, 0.5, 0.8):
            cache = whole.fork()
            signal.setitimer(signal.ITIMER_REAL, max(share * seconds, 1e-4))
            try:
                cache.append(key, value, lengths=[1, 20000, 20000])
            except KeyboardInterrupt:
                interrupted += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert cache.lengths.tolist() in ([20000, 70, 19000], [20001, 20070, 39000])
            assert cache.validate()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert interrupted or seconds < 0.01


def test_no_memory_for_one_sequence_changes_none():
    cache, _ = ragged([50, 3, 0])
    before, (_, key, value) = cache.fork(), rows(np.random.default_rng(8), 3, 5)

    class Full:
        """The last sequence, without memory."""

        def __init__(self, sequence):
            self.sequence = sequence

        def __getattr__(self, name):
            return getattr(self.sequence, name)

        def append(self, *_):
            raise MemoryError

        def fork(self):
            return Full(self.sequence.fork())

    cache._sequences = [*cache._sequences[:2], Full(cache._sequences[2])]
    with pytest.raises(MemoryError):
        cache.append(key, value)
    cache._sequences = [*cache._sequences[:2], cache._sequences[2].sequence]
    assert same(cache, before)


def test_a_failed_append_leaves_what_queries_taught_as_it_was():
    """Of the sequences before the one that failed, too."""
    rng = np.random.default_rng(6)

    def rows(count, heads):
        return rng.standard_normal((2, heads, count, 64)).astype(np.float32)

    first, failing, rest = ((rows(n, 2), rows(n, 2), rows(n, 4)) for n in (100, 700, 2000))
    failing[0][1, 0, 650, 0] = 3.4e38  # of the second sequence, and not a number of bfloat16
    failing[2][...] *= np.exp2(np.linspace(-4, 4, 64))  # another metric
    caches = [icecore.KVCache(2, 64, dtype="bfloat16", tolerance=0.05, window=64, batch=2) for _ in range(2)]
    outs = []
    for cache, fails in zip(caches, (False, True), strict=True):
        cache.append(*first)
        cache.attend(first[2])
        if fails:
            with pytest.raises(ValueError, match="keys"):
                cache.append(*failing)
        cache.append(*rest)
        outs.append(cache.attend(rest[2]))
        outs.append(cache.attend(rest[2][:, :, -1:]))
    for before, after in zip(outs[:2], outs[2:], strict=True):
        assert_same_bits(before, after)
