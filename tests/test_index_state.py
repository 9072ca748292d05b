"""Any sequence of operations leaves an index that a dictionary of vectors agrees with."""

import io

import numpy as np
import pytest
from helpers import VARIANTS, assert_nearest, assert_present, index_bytes
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import icecore
from icecore import _array_file
from icecore._index import FILE

DIM = 5

seeds = st.integers(0, 2**32)


def draw_vectors(seed, count):
    """Around few centers, some far out and some in the same place."""
    generator = np.random.default_rng(seed)
    centers = generator.standard_normal((6, DIM)) * [[1], [1], [1], [5], [0], [0.1]]
    spread = generator.choice([0, 0.3, 0.3, 1], (count, 1))
    return (centers[generator.integers(6, size=count)] + spread * generator.standard_normal((count, DIM))).astype(np.float32)


class Model(RuleBasedStateMachine):
    """`vectors`: {id: vector}, what the index should hold."""

    options: dict
    removed = Bundle("removed")

    @initialize(seed=seeds, count=st.sampled_from([0, 3, 1023, 1500, 4000]))
    def begin(self, seed, count):
        self.index = icecore.Index(DIM, seed=seed, **self.options)
        self.vectors, self.next_id = {}, 0
        self.add(seed, count)

    def pick(self, seed, count):
        ids = np.array(sorted(self.vectors), np.int64)
        return np.random.default_rng(seed).permutation(ids)[:count]

    def take(self, ids, vectors):
        self.vectors |= dict(zip(ids.tolist(), vectors, strict=True))
        self.next_id = max(self.next_id, *(int(ids.max(initial=-1)) + 1, 0))

    @rule(seed=seeds, count=st.sampled_from([1, 2, 30, 500, 1024, 1200, 2600]))
    def add(self, seed, count):
        vectors = draw_vectors(seed, count)
        ids = self.index.add(vectors)
        np.testing.assert_array_equal(ids, np.arange(self.next_id, self.next_id + count))
        self.take(ids, vectors)

    @rule(seed=seeds, count=st.integers(1, 400))
    def add_one_at_a_time(self, seed, count):
        for vector in draw_vectors(seed, count):
            self.take(self.index.add(vector), vector[None])

    @rule(seed=seeds, count=st.sampled_from([1, 40, 1300]))
    def add_with_ids(self, seed, count):
        ids = np.random.default_rng(seed).integers(-5000, 50000, count)
        ids = np.array(sorted({*ids.tolist()} - self.vectors.keys()), np.int64)
        vectors = draw_vectors(seed, len(ids))
        self.index.add(vectors, ids)
        self.take(ids, vectors)

    @rule(seed=seeds, count=st.sampled_from([1, 40, 1300]))
    def replace(self, seed, count):
        ids = np.concatenate([self.pick(seed, count), np.arange(self.next_id, self.next_id + count // 2)])
        vectors = draw_vectors(seed, len(ids))
        self.index.add(vectors, ids, replace=True)
        self.take(ids, vectors)

    @rule(seed=seeds, count=st.sampled_from([1, 10]))
    def replace_one_twice(self, seed, count):
        ids = np.append(self.pick(seed, count), self.next_id)
        with pytest.raises(ValueError, match=f"ids holds {ids[0]} more than once"):
            self.index.add(draw_vectors(seed, len(ids) + 1), np.append(ids, ids[0]), replace=True)

    @rule(seed=seeds, count=st.sampled_from([1, 300]))
    def discard(self, seed, count):
        ids = self.pick(seed, count)
        assert self.index.discard(np.concatenate([ids, [self.next_id], ids])) == len(ids)
        for id in ids.tolist():
            del self.vectors[id]

    @rule(seed=seeds, count=st.sampled_from([1, 10]), twice=st.booleans())
    def add_what_is_there(self, seed, count, twice):
        """Nothing is added when one id is present or repeated."""
        ids = np.arange(self.next_id, self.next_id + count)
        extra = ids[:1] if twice else self.pick(seed, 1)
        if len(extra):
            with pytest.raises(ValueError, match=f"ids holds {extra[0]}"):
                self.index.add(draw_vectors(seed, count + 1), np.append(ids, extra))

    @rule(target=removed, seed=seeds, count=st.sampled_from([0, 1, 7, 300, 2000]))
    def remove(self, seed, count):
        ids = self.pick(seed, count)
        self.index.remove(ids)
        for id in ids.tolist():
            del self.vectors[id]
        return ids

    @rule(seed=seeds, count=st.integers(1, 300))
    def remove_one_at_a_time(self, seed, count):
        for id in self.pick(seed, count).tolist():
            del self.index[id]
            del self.vectors[id]

    @rule(seed=seeds, twice=st.booleans())
    def remove_what_is_not_there(self, seed, twice):
        ids = self.pick(seed, 5)
        if twice and len(ids):
            with pytest.raises(ValueError, match=f"ids holds {ids[0]} more than once"):
                self.index.remove(np.append(ids, ids[0]))
        else:
            with pytest.raises(KeyError, match=f"id {self.next_id} is not"):
                self.index.remove(np.append(ids, self.next_id))

    @rule(ids=removed, seed=seeds)
    def bring_back(self, ids, seed):
        ids = np.array([id for id in ids.tolist() if id not in self.vectors], np.int64)
        vectors = draw_vectors(seed, len(ids))
        self.index.add(vectors, ids)
        self.take(ids, vectors)

    @rule()
    def compact(self):
        self.index.compact()
        stats = self.index.stats
        assert stats["removed"] == stats["merging"] == 0
        assert stats["segments"] == 0 or (stats["segments"], stats["open"]) == (1, 0)

    @rule(capacity=st.integers(0, 10000))
    def reserve(self, capacity):
        self.index.reserve(capacity)

    @rule()
    def copy(self):
        self.index = self.index.copy()

    @rule()
    def save_and_load(self):
        file = io.BytesIO()
        _array_file.write(FILE, self.index._parameters, self.index._native.write, file)
        assert file.getvalue() == index_bytes(self.index)
        data = np.frombuffer(bytearray(file.getvalue()), np.uint8)
        view = icecore.Index._read(data, "memory", verify=True)
        assert view.validate()
        queries = draw_vectors(0, 4)
        if self.vectors:
            for a, b in zip(view.search(queries, 6), self.index.search(queries, 6), strict=True):
                np.testing.assert_array_equal(a, b)
        self.index = view.copy()

    @precondition(lambda self: len(self.vectors) > 3000)
    @rule()
    def clear(self):
        self.index.clear()
        self.vectors, self.next_id = {}, 0

    @precondition(lambda self: self.vectors)
    @rule(seed=seeds, count=st.integers(1, 40), k=st.integers(1, 12), filtered=st.booleans())
    def search(self, seed, count, k, filtered):
        queries, index = draw_vectors(seed, count), self.index
        ids = np.array(sorted(self.vectors))
        vectors = np.stack([self.vectors[id] for id in ids.tolist()])
        allowed = np.arange(len(ids)) % 3 == 1 if filtered else np.ones(len(ids), bool)
        options = {"filter": ids[allowed]} if filtered else {}
        assert_nearest(
            index.search(queries, k, exact=True, **options), ids[allowed], vectors[allowed], queries, k, index.metric
        )
        all_cells = index.search(queries, k, field_of_view=10**6, retrieve=10**6, **options)
        assert_nearest(all_cells, ids[allowed], vectors[allowed], queries, k, index.metric)
        found = index.search(queries, k, **options)
        assert_present(found, index, queries)
        assert np.isin(found.ids, [-1, *ids[allowed]]).all()

    @invariant()
    def agrees(self):
        if not hasattr(self, "index"):
            return
        index = self.index
        assert index.validate()
        assert len(index) == len(self.vectors)
        ids = np.array(sorted(self.vectors), np.int64)
        np.testing.assert_array_equal(np.sort(index.ids), ids)
        if len(ids):
            np.testing.assert_array_equal(index[ids], np.stack([self.vectors[id] for id in ids.tolist()]))
        stats = index.stats
        assert stats["next_id"] == self.next_id
        assert stats["count"] + stats["removed"] <= stats["slots"]
        assert stats["open"] < 1024
        assert stats["merging"] <= stats["segments"] < 30


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_sequence(variant):
    machine = type("Machine", (Model,), {"options": VARIANTS[variant]})
    run_state_machine_as_test(machine, settings=settings(max_examples=40, stateful_step_count=30, deadline=None))
