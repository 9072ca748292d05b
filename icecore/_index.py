"""Index: a dynamic k-NN index."""

from __future__ import annotations

import io
import math
import numbers

import numpy as np

from icecore import _array_file, _native
from icecore._arrays import integer
from icecore._index_arguments import check_filter, check_ids, check_parameters, check_vectors, native_options, unit_vectors
from icecore._index_results import RangeResult, result_arrays, shapes_of
from icecore._index_tuning import Tuner
from icecore._runtime import threads_for_call

FILE = _array_file.Format("icecore.index", "an index", 3, {"vectors": "dim"})
#: Parents kept at each level when a search names no budget.
DEFAULT_FIELD_OF_VIEW = 16
#: P-DCI lists: candidates of each composite for each neighbour asked for, when a search names no budget.
DEFAULT_CANDIDATES = 64
#: Range search: queries at a time, and neighbours that each is first asked for.
RANGE_QUERIES, RANGE_FIRST = 256, 64
#: Of bounds that are finite: distances that are beyond it became infinite.
LARGEST = float(np.finfo(np.float32).max)


class Index:
    """A dynamic k-nearest-neighbour index: Prioritized DCI over sealed segments.

    Vectors may come and go at any time. The newest are compared exactly; the others lie in segments, trees that never change: a
    share of the vectors is promoted to parents, each vector hangs under its nearest parent, and a search keeps the best
    parents on its way down. What it finds is compared exactly before it is returned. Segments merge a little at every change,
    so that no change takes long.

    Parameters
    ----------
    dim : int
        Width of a vector, 1 to 16384.
    metric : {"ip", "l2", "cosine"}
        Largest inner product, smallest squared distance or largest cosine. For cosines vectors are stored as unit vectors; zero
        vectors, which have no direction, are refused. float16 and bfloat16 round these unit vectors: cosines are off by up to
        0.0005 and 0.004, and may exceed 1 by as much.
    num_composite : int
        0: the vectors under an opened parent are all scored in 8-bit codes, many queries at a time; the fast way. At least 1:
        that many composite indices of the published P-DCI at each parent, for few queries or very many dimensions of which few
        matter.
    num_simple : int
        Simple indices (random directions) of a composite.
    num_levels : int
        Levels of the tree, 1 to 8. 1: no parents, all vectors of a segment together.
    promotion : float, optional
        Share of a level's vectors promoted to the next. Default: ``n ** (-1 / num_levels)`` for a segment of n vectors.
    dtype : {"float32", "float16", "bfloat16"}
        Storage of the vectors. A float32 index takes 1.3 to 1.5 times the vectors' own memory from 3000 vectors of 64 numbers
        on; narrower vectors take more (of 16 numbers 1.8 times, of 2 five times), and so do fewer.
    seed : int
        At least 0: of the sampling and of the directions. Equal calls on equal seeds give equal results, for any number of
        threads.
    capacity : int
        Vectors to make room for at once, as `reserve` does.

    Notes
    -----
    Thread safety: any number of threads may search and read at the same time; a call that changes the index waits for them and
    they for it. Methods release the interpreter's lock. A signal handler or a callback that changes an index which is at work
    in its thread, or uses it while it is changed, gets a RuntimeError; so does a forked process that uses one which another
    thread was changing when it was forked.

    Complexity, for n vectors in two levels: `add` O(dim sqrt(n)) amortized, `remove` O(1), `search` O(dim sqrt(n)
    field_of_view) a query, memory O(n dim).

    References
    ----------
    Li & Malik, "Fast k-Nearest Neighbour Search via Prioritized DCI", ICML 2017, arXiv:1703.00440 (P-DCI). Mao, Ester & Li,
    "IceFormer: Accelerated Inference with Long-Sequence Transformers on CPUs", ICLR 2024, arXiv:2405.02842 (equations 4-7:
    inner product as nearest neighbour by lifting).

    Examples
    --------
    >>> index = icecore.Index(64, metric="ip")
    >>> ids = index.add(keys)
    >>> ids, scores, counts = index.search(queries, k=10)
    """

    def __init__(self, dim, *, metric="ip", num_composite=0, num_simple=7, num_levels=2, promotion=None, dtype="float32",
                 seed=0, capacity=0):
        self._parameters = check_parameters(dim, metric, num_composite, num_simple, num_levels, promotion, dtype, seed)
        self._native = _native.Index.create(native_options(self._parameters))
        if integer(capacity, "capacity", 0):
            self.reserve(capacity)

    @classmethod
    def _of(cls, native, parameters):
        index = cls.__new__(cls)
        index._native, index._parameters = native, parameters
        return index

    # ---- What it is ----

    dim = property(lambda self: self._parameters["dim"], doc="Width of a vector.")
    metric = property(lambda self: self._parameters["metric"], doc="``'ip'``, ``'l2'`` or ``'cosine'``.")
    dtype = property(lambda self: self._parameters["dtype"], doc="Storage of the vectors, by name.")

    def __len__(self):
        return self._native.state()["count"]

    def __repr__(self):
        given = {name: value for name, value in self._parameters.items() if value != _DEFAULTS.get(name, self)}
        return f"<icecore.Index {', '.join(f'{name}={value!r}' for name, value in given.items())}: {len(self)} vectors>"

    @property
    def nbytes(self):
        """Bytes of memory held; a `view` counts only what is not in the mapped file."""
        return self._native.state()["bytes"]

    @property
    def stats(self):
        """A dictionary: ``count``, ``open`` (compared exactly), ``removed`` (waiting for a merge), ``segments``, ``cells``,
        ``merging`` (segments that a pending merge will replace), ``slots``, ``next_id``, ``bytes``, ``read_only``."""
        return self._native.state()

    @property
    def ids(self):
        """Ids of all vectors, (len,) int64, in no particular order."""
        while True:
            ids = np.empty(len(self), np.int64)
            found = self._native.ids(ids)
            if found <= len(ids):
                return ids[:found]

    def __contains__(self, id):
        ids = check_ids(id, "id")
        if len(ids) != 1:
            raise ValueError(f"id has shape {np.shape(id)}; expected one integer")
        present = np.empty(1, np.uint8)
        self._native.contains(ids, present)
        return bool(present[0])

    def __iter__(self):
        return iter(self.ids.tolist())

    def __getitem__(self, id):
        """The vector of an id, (dim,) float32, or (n, dim) for an array of ids. KeyError if one is absent."""
        ids = check_ids(id, "id")
        vectors = np.empty((len(ids), self.dim), np.float32)
        self._native.get(ids, vectors)
        return vectors[0] if np.ndim(id) == 0 else vectors

    # ---- Changing it ----

    def add(self, vectors, ids=None, progress=None, *, replace=False, num_threads=None):
        """Add vectors.

        Parameters
        ----------
        vectors : (n, dim) or (dim,) array of real numbers
            Finite. Copied.
        ids : (n,) array of int, optional
            Distinct, and not in the index unless `replace` is given. Default: counting up from one above the largest ever used.
        progress : callable, optional
            Called with (vectors done, n) whenever about a thousand have been sealed, so never where few are added. An exception
            raised in it ends the call. It must not use the index.
        replace : bool
            Vectors of ids that are in the index are replaced.
        num_threads : int, optional
            Default: see `set_num_threads`. Used from about a thousand vectors on.

        Returns
        -------
        ids : (n,) int64

        Raises
        ------
        TypeError, ValueError
            For wrong shapes or dtypes, NaN or infinity, zero vectors of a cosine index, ids that are present or repeated, or a
            read-only index. Nothing is added then.

        Notes
        -----
        All or nothing, also when interrupted. A thousand vectors and more in one call become a segment of their own, so one
        call with all vectors gives an index that is faster to search than many with few; `compact` makes up for it.
        """
        rows, _ = self._checked(vectors, "vectors", self.dtype)
        if ids is not None:
            ids = check_ids(ids)
            if len(ids) != len(rows):
                raise ValueError(f"ids has {len(ids)} entries for {len(rows)} vectors; expected as many")
        elif self._native.state()["next_id"] > np.iinfo(np.int64).max - len(rows):
            raise ValueError(f"ids is None, but {np.iinfo(np.int64).max} is nearly used; expected ids to be given")
        report = None if progress is None else lambda done: progress(round(done * len(rows)), len(rows))
        first = self._native.add(rows, ids, bool(replace), report, threads_for_call(num_threads))
        if ids is None:
            ids = np.arange(first, first + len(rows), dtype=np.int64)
        return ids

    def remove(self, ids, *, num_threads=None):
        """Remove vectors by id.

        Parameters
        ----------
        ids : int or (n,) array of int
            Distinct, all in the index.
        num_threads : int, optional
            Default: see `set_num_threads`. Used from about a thousand vectors on.

        Raises
        ------
        KeyError
            If an id is absent. Nothing is removed then.
        ValueError
            If an id is repeated, or the index is read-only.
        """
        self._native.remove(check_ids(ids), False, threads_for_call(num_threads))

    __delitem__ = remove

    def discard(self, ids, *, num_threads=None):
        """Remove vectors by id, where ids may be absent or repeated; otherwise as `remove`.

        Returns
        -------
        int
            How many vectors were removed.
        """
        return self._native.remove(check_ids(ids), True, threads_for_call(num_threads))

    def clear(self):
        """Remove everything; ids given by `add` start at 0 again. ValueError where the index is read-only."""
        self._native.clear()

    def compact(self, *, num_threads=None):
        """Rebuild everything as one segment: the fastest index to search. The memory of removed vectors is given back.

        O(dim n ** 1.5) with two levels. ValueError where the index is read-only.
        """
        self._native.compact(threads_for_call(num_threads))

    def reserve(self, capacity):
        """Make room for `capacity` vectors in all, so that adding them allocates little.

        ValueError where the index is read-only.
        """
        self._native.reserve(integer(capacity, "capacity", 0))

    # ---- Searching ----

    def search(self, queries, k, *, visit=None, retrieve=None, field_of_view=None, exact=False, filter=None, exclude=None,
               out=None, num_threads=None):
        """The k best vectors for each query.

        Parameters
        ----------
        queries : (n, dim) or (dim,) array of real numbers
            Finite. Many at a time are far cheaper than one by one.
        k : int
            At least 1.
        visit : int, optional
            Open parents, best first, until the vectors under them that may be returned are this many. With P-DCI lists: pops of
            each composite, shared out over the opened parents by their size.
        retrieve : int, optional
            Candidates compared exactly; default: a quarter more than `k`, and eight times as many for queries with more
            near-duplicates than that. With P-DCI lists: of each composite; default: 64 for each of the `k` when no other budget
            is given.
        field_of_view : int, optional
            Parents kept at each level; with a filter each counts by the share of its vectors that may be returned. Default: 16
            when `visit` is not given either. With two levels (and no P-DCI lists) the default is ``sum(sqrt(m / n))`` times as
            much, over segments of m of all n vectors. By inner product and cosine half as many follow, whose typical vectors
            may score most. So does every other parent of which a vector may be among the `k` best, if directions from its mean
            are random.
        exact : bool
            Compare all vectors instead, in float32.
        filter : (m,) array of int or bool, or (n, m), optional
            Ids that may be returned, or a mask that is True at these ids. Ids that are absent do not matter. Two dimensions: a
            filter for each query, rows of ids padded with an absent one; such queries are searched one by one.
        exclude : (m,) array of int or bool, or (n, m), optional
            Ids that must not be returned, as in `filter`, from which they are taken away when both are given.
        out : SearchResult or tuple of two or three arrays, optional
            Where to put ids (int64), scores (float32) and counts (int64).
        num_threads : int, optional
            Default: see `set_num_threads`.

        Returns
        -------
        SearchResult

        Raises
        ------
        TypeError, ValueError
            For wrong shapes or dtypes, NaN or infinity, budgets below 1, an empty index.

        Notes
        -----
        Among equal scores the smaller id comes first. With `exact` the smallest ids are what is found, however many are equal:
        copies of a vector, and scores that float32 holds without rounding. Otherwise that is so of what was compared exactly;
        which of very many copies that are depends on the cells in which they lie. `tune` finds budgets for a wanted recall.
        With two levels default budgets adapt to the vectors and to each query. Independent directions of equal length have no
        structure that a tree could use: nearly all are compared then, in 8 bits.

        Vectors are compared relative to a centre and a scale, so that neither a common offset nor numbers as small as 1e-30 or
        as large as 1e37 change which are found. Their scores may lie outside float32: they become 0 or infinite. Squared
        distances are of one scale for all vectors; a query whose neighbours are far smaller or larger than that is compared
        with all vectors in float64.

        The results have `k` columns even where the index holds fewer vectors: for all of them, ask for ``k=len(index)``.

        Budgets count what may be returned, so that a filter opens more parents and keeps the recall. Where reading all that may
        be returned is less than that, it is compared exactly instead.
        """
        rows, single = self._checked(queries, "queries")
        k = integer(k, "k", 1)
        budgets = self._budgets(k, visit, retrieve, field_of_view)
        filters = [check_filter(ids, name, len(rows)) for ids, name in ((filter, "filter"), (exclude, "exclude"))]
        if len(self) == 0:
            raise ValueError("the index is empty; add vectors before searching")
        result = result_arrays(out, len(rows), k, single, rows)
        arrays = [np.atleast_1d(a).reshape(shape) for a, shape in zip(result, shapes_of(len(rows), k), strict=True)]
        self._search(rows, k, budgets | {"exact": bool(exact)}, filters, threads_for_call(num_threads), *arrays, None)
        return result

    def search_within(self, queries, bound, *, filter=None, exclude=None, num_threads=None):
        """All vectors within a bound of each query, by comparing all of them.

        Parameters
        ----------
        queries : (n, dim) or (dim,) array of real numbers
            Finite.
        bound : float
            The largest squared distance, or the smallest inner product or cosine, that is returned.
        filter, exclude : array of int or bool, optional
            As in `search`.
        num_threads : int, optional
            Default: see `set_num_threads`.

        Returns
        -------
        RangeResult

        Raises
        ------
        TypeError, ValueError
            For wrong shapes or dtypes, NaN or infinity, an empty index.

        Notes
        -----
        O(n dim) for a query, several times over where it finds more than 64.
        """
        rows, _ = self._checked(queries, "queries")
        if isinstance(bound, bool) or not isinstance(bound, numbers.Real):
            raise TypeError(f"bound must be a number, got {type(bound).__name__}")
        if bound != bound:
            raise ValueError("bound must be a number, got nan")
        if abs(bound) != math.inf:
            bound = np.float32(min(max(bound, -LARGEST), LARGEST))
        filters = [check_filter(ids, name, len(rows)) for ids, name in ((filter, "filter"), (exclude, "exclude"))]
        if len(self) == 0:
            raise ValueError("the index is empty; add vectors before searching")
        threads, found = threads_for_call(num_threads), []
        for first in range(0, len(rows), RANGE_QUERIES):
            part = slice(first, first + RANGE_QUERIES)
            own = [ids[part] if isinstance(ids, list) else ids for ids in filters]
            found += self._within(rows[part], bound, own, threads)
        counts = [len(ids) for ids, _ in found]
        ids = np.concatenate([ids for ids, _ in found] or [np.empty(0, np.int64)])
        scores = np.concatenate([scores for _, scores in found] or [np.empty(0, np.float32)])
        return RangeResult(np.cumsum([0, *counts], dtype=np.int64), ids, scores)

    def _within(self, rows, bound, filters, threads):
        """[(ids, scores)] of each query; those that find as many as they asked for ask for more."""
        found, pending, k = [None] * len(rows), np.arange(len(rows)), RANGE_FIRST
        while len(pending):
            k = min(k, max(len(self), 1))
            own = [[ids[q] for q in pending] if isinstance(ids, list) else ids for ids in filters]
            ids, scores, counts = result_arrays(None, len(pending), k, False, rows)
            self._search(rows[pending], k, {"exact": True}, own, threads, ids, scores, counts, None)
            inside = (scores <= bound if self.metric == "l2" else scores >= bound).sum(axis=1)
            for q, own_ids, own_scores, count in zip(pending, ids, scores, inside, strict=True):
                found[q] = own_ids[:count].copy(), own_scores[:count].copy()
            pending = pending[inside == k] if k < len(self) else pending[:0]
            k *= 8
        return found

    def _checked(self, vectors, name, dtype="float32"):
        """As check_vectors, of length one where the metric is of directions alone."""
        cosine = self.metric == "cosine"
        rows, single = check_vectors(vectors, self.dim, name, "float32" if cosine else dtype)
        return (unit_vectors(rows, name) if cosine else rows), single

    def _search(self, rows, k, budgets, filters, threads, *arrays):
        """Fills the arrays (ids, scores, counts and visited or None); a filter may be a list of one for each query."""

        def search(allowed, excluded):
            return _native.Search(k=k, **budgets, allowed=allowed, excluded=excluded, threads=threads)

        if not any(isinstance(ids, list) for ids in filters):
            self._native.search(rows, search(*filters), *arrays)
            return
        for i in range(len(rows)):
            own = search(*(ids[i] if isinstance(ids, list) else ids for ids in filters))
            part = slice(i, i + 1)
            self._native.search(rows[part], own, *(None if a is None else a[part] for a in arrays))

    def _budgets(self, k, visit, retrieve, field_of_view):
        """The core's budgets, 0 standing for no bound, and whether they may be exceeded."""
        given = {name: integer(value, name, 1) if value is not None else 0
                 for name, value in (("visit", visit), ("retrieve", retrieve), ("field_of_view", field_of_view))}
        default = visit is None and field_of_view is None
        if default:
            given["field_of_view"] = DEFAULT_FIELD_OF_VIEW
            if self._parameters["num_composite"] and retrieve is None:
                given["retrieve"] = DEFAULT_CANDIDATES * k
        return given | {"extend": default}

    def tune(self, queries, k, recall=0.95, *, filter=None, exclude=None, num_threads=None):
        """Find the cheapest budgets that reach a recall.

        Parameters
        ----------
        queries : (n, dim) array
            A sample of the queries to come; at most 1000 of them are used.
        k : int
        recall : float
            Share of the true k nearest to be found, in (0, 1]; ties count by value.
        filter, exclude : array of int or bool, optional
            As in `search`: the best budgets under a filter are others.

        Returns
        -------
        Tuning

        Raises
        ------
        TypeError, ValueError
            For wrong shapes or dtypes, no queries, a `recall` outside (0, 1], an empty index, a filter that leaves nothing.

        Notes
        -----
        Bisection of each budget in turn, the others held generous. Where no budget reaches the recall, ``budgets`` is
        ``{"exact": True}``. The index itself is not changed.
        """
        rows, _ = self._checked(queries, "queries")
        k, threads = integer(k, "k", 1), threads_for_call(num_threads)
        if isinstance(recall, bool) or not isinstance(recall, numbers.Real):
            raise TypeError(f"recall must be a number, got {type(recall).__name__}")
        if not 0 < recall <= 1:
            raise ValueError(f"recall must be in (0, 1], got {recall}")
        if len(rows) == 0:
            raise ValueError("queries is empty; expected a sample of the queries to come")
        if len(self) == 0:
            raise ValueError("the index is empty; add vectors before tuning")
        step = -(-len(rows) // 1000)
        filters = [check_filter(ids, name, len(rows)) for ids, name in ((filter, "filter"), (exclude, "exclude"))]
        filters = [ids[::step] if isinstance(ids, list) else ids for ids in filters]
        return Tuner(self, np.ascontiguousarray(rows[::step]), k, recall, filters, threads).tune()

    # ---- Keeping it ----

    def copy(self):
        """An independent copy, writable also where the index is a view."""
        return self._of(self._native.copy(), dict(self._parameters))

    def save(self, path):
        """Write to a file (safetensors): first under a temporary name beside it, then renamed.

        Merges that are under way are not saved; they begin anew in the loaded index. Removed vectors are not written; the means
        of their cells, into which they went, are: `compact` before saving finds them anew.
        """
        _array_file.save(FILE, self._parameters, self._native.write, path)

    @classmethod
    def load(cls, path):
        """Read a saved index into memory.

        Raises
        ------
        ValueError
            If the file is not a saved index, is damaged (by its checksum, and by `validate`'s rules), or is of another version.
        """
        return cls._loaded(_array_file.contents(path), path)

    @classmethod
    def view(cls, path):
        """Map a saved index: opens in milliseconds, is read from the file as it is used, and cannot be changed (`copy` can).

        The header's checksum and every number that leads to memory are checked here; the data's checksum is not (`load` checks
        it). The file must not be written while the view lives; `save` over it is safe, since that makes a new file.

        Raises
        ------
        ValueError
            As `load`.
        """
        return cls._read(_array_file.mapped(path), path, verify=False)

    @classmethod
    def _loaded(cls, data, path):
        """A writable index from a file's bytes, checked in every way."""
        index = cls._read(data, path, verify=True).copy()
        reason = index._native.validate()
        if reason is not None:
            raise ValueError(f"{path} is not a usable index file: {reason}")
        return index

    @classmethod
    def _read(cls, data, path, verify):
        try:
            parameters, arrays = _array_file.parse(FILE, data, verify)
            try:
                parameters = check_parameters(**parameters)
            except TypeError as error:
                raise _array_file.Refused(f"its parameters are not those of an index ({error})") from error
            native, reason = _native.Index.map(native_options(parameters), arrays)
            if native is None:
                raise _array_file.Refused(reason)
        except ValueError as error:
            raise ValueError(f"{path} is not a usable index file: {error}") from error
        return cls._of(native, parameters)

    def __reduce__(self):
        buffer = io.BytesIO()
        _array_file.write(FILE, self._parameters, self._native.write, buffer)
        return _unpickle, (type(self), buffer.getvalue())

    def validate(self):
        """Check the whole structure: every vector in its place, ids, codes, sorted lists. O(n dim).

        Returns
        -------
        True

        Raises
        ------
        ValueError
            Naming what is wrong. Only a damaged file behind a `view`, or a defect of icecore, can cause it.
        """
        reason = self._native.validate()
        if reason is not None:
            raise ValueError(f"the index is damaged: {reason}")
        return True


def _unpickle(cls, data):
    return cls._loaded(np.frombuffer(bytearray(data), np.uint8), "pickled data")


_DEFAULTS = Index.__init__.__kwdefaults__
