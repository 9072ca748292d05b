"""KVCache: the keys and values of one layer, for decoding by near/far attention."""

from __future__ import annotations

import io

import numpy as np

from icecore import _array_file, _native
from icecore._arrays import check_out, check_scores, integer, native_dtype, native_view, plain, widened
from icecore._cache_attend import attend_rows
from icecore._cache_file import FILE, parameters_of, read
from icecore._cache_lock import CacheLock
from icecore._cache_parameters import check_parameters, native_options
from icecore._info import join_infos
from icecore._lengths import check_lengths, own_rows
from icecore._runtime import threads_for_call

#: Of the core.
MAX_TOKENS = 2**31 - 1
#: Numbers from here on become infinite when they are rounded.
OVERFLOW = {"float16": 65520.0, "bfloat16": float.fromhex("0x1.FFp127"), "int4": 2.0**125}
#: So many tokens at most are kept as float32 until their offset is known (csrc/cache/offset.c).
_LOOKED_AT = 64


class KVCache:
    """Keys and values of one attention layer, for decoding at long context.

    Tokens are appended; queries of the newest tokens attend to all before them by near/far attention, as ``attention(...,
    causal=True)`` over all tokens would, without reading them all. The newest one to two windows of tokens and the first
    `sinks` are kept as they came and attended exactly; the others lie in sealed segments of which a query opens what it needs.

    Parameters
    ----------
    num_kv_heads : int
    dim : int
        Of queries and keys, 1 to 576.
    value_dim : int, optional
        Of values, 1 to 576; default `dim`.
    dtype : {"float32", "float16", "bfloat16", "int8", "int4"}
        Storage. Sums are in float32 always. bfloat16 halves the memory and what a step reads. int8 takes a third of float32's:
        tokens in sealed segments are rounded to 8 bits, 16 neighbouring numbers of a key or a value under one scale, once and
        for all; the newest tokens and the sinks are bfloat16. int4 takes a fifth: as int8, with 4 bits for each number of the
        Hadamard transform of such 16. Keys with a large offset are held otherwise: see Notes.
    k : int, optional
        Near-field keys of each query, as in `attention`.
    tolerance : float, optional
        Instead of k, as in `attention`. Default where neither is given: 0.02.
    plan : LayerPlan, optional
        Instead of k, tolerance, window and sinks: ``plan[layer]`` of what `calibrate` found. Where its key heads differ, the
        cache takes the longest window and the smallest cells of them for all, and near/far attention for every one.
    window : int
        At least so many of the last tokens, and at most twice as many, are attended exactly. Default 512.
    sinks : int
        First tokens that always are. Default 16.
    metric : array_like, (num_kv_heads, dim, dim) or (num_kv_heads, dim), optional
        As in `attention`: ``query_metric(queries, num_kv_heads)`` of a text the model has read, say. Default: of each segment
        the queries that stood at its keys, as they came to `attend` or `append`; where none came, its own keys.
    seed : int
        Of the cells. The same tokens in the same cache give the same bits for any number of threads.
    batch : int, optional
        That many sequences: all arrays then have a first axis of that length. Sequences may have different numbers of tokens
        (`lengths=` of `append` and `attend`), and each is, bit for bit, what it would be in a cache of its own.

    Notes
    -----
    Prefill in chunks: ``append`` the chunk, then ``attend`` its queries; or compute attention over the prompt by `attention`,
    and append its keys, values and queries. A cache that saw the same queries forms the same cells, whatever the chunks, up to
    rounding (`attention` rounds float32 to bfloat16 on some machines; a cache does what its dtype says).

    With a tolerance the cache measures how far to open: queries that it has seen are attended exactly as well. In a prompt
    these are some of each window of tokens that is sealed; in decoding one in 50 to 150 tokens (half as many where 32 windows
    are sealed, a third where 64 are), soon after it came. Where their error is far above the tolerance the text has changed,
    and what older ones told counts for little; until then rows may be off by more. Until it has seen the queries of eight
    tokens the cache opens everything. What it found is kept by `fork`, `save`, `load` and `view`. `AttentionInfo.error` is what
    was measured so far.

    A segment that the next window will need is built a little at each call of `attend`; no merge shows as a pause. Where
    many tokens were appended without a query, the first `attend` seals them all.

    Keys that share a large offset, such as the bias of Qwen 2's projections, lose too much by rounding to 16 or 8 bits. A cache
    looks at its first 64 tokens (with windows below 32, two windows). Where a component's root mean square is 24 times what it
    varies from token to token, sealed keys are rounded less the mean of their cell, anew by each merge, and the newest tokens,
    the sinks and the summaries are float32. Until 64 tokens are there they are float32 in any case.

    NaN and inf in keys and values propagate as in `attention`. With int8 and int4, once sealed, they are NaN, and so are the
    others of the 16 numbers they share a scale with.

    Memory: the keys and values in `dtype`, about a tenth for summaries (int8: an eighth for scales, a seventh for summaries;
    int4: a quarter, nearly a half), and while a merge is prepared the merged segment (at most 2048 tokens or two sevenths of
    all) once more. From 8192 tokens on that is never more than 1.55 times the keys and values (int8: 0.51 times those of
    float32, int4: 0.36), with a large offset 1.65 times (0.56, 0.45), where `dim` and `value_dim` are at least 32 and multiples
    of 16. int8 and int4 pay for other widths up to the next multiple. Narrower heads pay more for summaries: of 16 up to 1.62
    times (0.54, 0.39), with a large offset 1.7 (0.6, 0.5); of 8 1.75 times (0.66, 0.66), of 4 2.2 times (0.97, 1.2).
    Time of a step: about that of window + near keys + summaries (`AttentionInfo`).

    Thread safety: calls on one cache, a batch included, wait for each other. Forks are caches of their own. Methods release the
    interpreter's lock. A signal handler that uses a cache which is at work in its thread gets a RuntimeError, and so does a
    forked process that uses one which was at work in another thread when it was forked.

    References
    ----------
    .. [1] IceFormer: Accelerated Inference with Long-Sequence Transformers on CPUs, ICLR 2024, arXiv 2405.02842.
    .. [2] QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs, NeurIPS 2024, arXiv 2404.00456, of the transform before 4 bits.
    """

    def __init__(self, num_kv_heads, dim, *, value_dim=None, dtype="float32", k=None, tolerance=None, plan=None,
                 window=None, sinks=None, metric=None, seed=0, batch=None):
        parameters = check_parameters(
            num_kv_heads, dim, value_dim, dtype, k, tolerance, plan, window, sinks, metric, seed, batch,
        )
        options = native_options(parameters)
        self._set(parameters, [_native.Cache.create(options) for _ in range(parameters["batch"] or 1)])

    def _set(self, parameters, sequences):
        """The attributes: `parameters`, which `attend_rows` and `parameters_of` read too, and what there is."""
        self.__dict__.update(parameters)
        self._sequences, self._alone = sequences, CacheLock().held

    def _lengths(self):
        return [sequence.state()["length"] for sequence in self._sequences]

    def _state(self):
        states = [sequence.state() for sequence in self._sequences]
        largest = {name: max(state[name] for state in states) for name in states[0]}
        return largest | {"bytes": sum(state["bytes"] for state in states)}

    def __len__(self):
        """Tokens appended, evicted ones included: the position of the next one. Of a batch, those of the longest sequence."""
        with self._alone():
            return max(self._lengths())

    @property
    def lengths(self):
        """Tokens appended to each sequence, ndarray of int64, (batch,), or (1,) where there is no batch."""
        with self._alone():
            return np.array(self._lengths())

    def __repr__(self):
        budget = f"k={self.k}" if self.tolerance is None else f"{'plan, ' * (self.plan is not None)}tolerance={self.tolerance}"
        of = f"{self.num_kv_heads} heads, {self.dim}-d {self.dtype}" + ("" if self.batch is None else f", batch={self.batch}")
        with self._alone():
            shortest, longest = min(self._lengths()), max(self._lengths())
        held = f"{longest} tokens" if shortest == longest else f"{shortest} to {longest} tokens"
        return f"<icecore.KVCache: {held}, {of}, {budget}>"

    @property
    def nbytes(self):
        """Memory held, in bytes; parts that are shared with forks count in each."""
        return self.stats["bytes"]

    @property
    def stats(self):
        """A dictionary: ``length``, ``evicted``, ``held`` tokens (not evicted), ``first_query`` (queries may stand at this
        token and after it), ``sealed`` (tokens before this one lie in segments), ``segments`` of a head, ``open`` tokens
        (attended exactly), ``bytes``. Of a batch the largest number of any sequence, and the bytes of all."""
        with self._alone():
            return self._state()

    # ---- Tokens ----

    def append(self, keys, values, queries=None, *, lengths=None, padding_side="right"):
        """Append tokens.

        Parameters
        ----------
        keys : array_like, ([batch,] num_kv_heads, n, dim)
            float32, float16 or bfloat16 (or its bits as uint16); rounded to the cache's dtype (int8 and int4:
            to bfloat16). Copied.
        values : array_like, ([batch,] num_kv_heads, n, value_dim)
            Same dtype.
        queries : array_like, ([batch,] H, n, dim), optional
            The tokens' queries, H a multiple of num_kv_heads, same dtype: of a prompt that is not attended from this cache, for
            the metric and for measuring. Those that come to `attend` need not come here.
        lengths : array_like of integers, (batch,), optional
            How many of the n tokens each sequence gets, from 0 on; the other rows are padding and never read. Default: all.
        padding_side : {"right", "left"}
            Where padding lies: behind a sequence's tokens, or before them.

        Raises
        ------
        TypeError, ValueError
            A dtype or a shape that does not fit, or a finite number that storage in float16 or bfloat16 would make infinite;
            the cache is as it was, every sequence of it.
        MemoryError
            The cache is as it was.
        """
        keys = self._checked(keys, "keys", self.num_kv_heads, self.dim)
        values = self._checked(values, "values", self.num_kv_heads, self.value_dim)
        if values.dtype != keys.dtype:
            raise TypeError(f"values has dtype {values.dtype}, but keys has {keys.dtype}; expected one dtype")
        if values.shape[2] != keys.shape[2]:
            self._refuse_counts(values, "values", keys)
        if queries is not None:
            queries = self._checked(queries, "queries", None, self.dim)
            self._check_heads(queries)
            if queries.dtype != keys.dtype:
                raise TypeError(f"queries has dtype {queries.dtype}, but keys has {keys.dtype}; expected one dtype")
            if queries.shape[2] != keys.shape[2]:
                self._refuse_counts(queries, "queries", keys)
            queries = native_view(queries) if queries.size else None
        rows = self._own_rows(lengths, padding_side, keys, "keys")
        with self._alone():
            self._append(keys, values, queries, rows)

    def _append(self, keys, values, queries, rows):
        before, sequences = self._lengths(), self._sequences
        for length, own in zip(before, rows, strict=True):
            count = own.stop - own.start
            if count > MAX_TOKENS - length:
                raise ValueError(f"keys has {count} tokens, the cache {length}; expected at most {MAX_TOKENS} together")
        dtype, key_rows, value_rows = native_dtype(keys.dtype), native_view(keys), native_view(values)
        # what a sequence rounds as it grows, and what it knows of queries, truncate does not bring back
        if len(sequences) > 1 and (queries is not None or min(before) < _LOOKED_AT):
            sequences = [sequence.fork() for sequence in sequences]
        try:
            for i, (sequence, own) in enumerate(zip(sequences, rows, strict=True)):
                if own.start < own.stop:
                    part = slice(i, i + 1), slice(None), own
                    sequence.append(dtype, key_rows[part], value_rows[part], None if queries is None else queries[part])
        except BaseException as error:
            for sequence, length in zip(sequences, before, strict=True):
                if sequence.state()["length"] > length:
                    sequence.truncate(length, 1)
            if isinstance(error, OverflowError):
                self._refuse_overflow({"keys": keys, "values": values}, rows)
            raise
        self._sequences = sequences

    def attend(self, queries, *, lengths=None, padding_side="right", scale=None, softcap=None, sink_logits=None,
               alibi_slopes=None, return_lse=False, return_info=False, out=None, num_threads=None):
        """Attention of the newest tokens' queries to all tokens up to their own.

        Parameters
        ----------
        queries : array_like, ([batch,] H, n, dim)
            Of the last n tokens appended; H a multiple of num_kv_heads. float32, float16 or bfloat16 (or its bits as uint16).
        lengths : array_like of integers, (batch,), optional
            How many of the n rows are a sequence's own: queries of its last so many tokens, from 0 on. The other rows are
            padding and never read, and their result is 0, their lse -inf. Default: all.
        padding_side : {"right", "left"}
            Where padding lies: behind a sequence's queries, or before them.
        scale : float, optional
            Default ``1 / sqrt(dim)``.
        softcap, sink_logits
            As in `attention`; with a tolerance the same in all calls, since earlier ones measure for later ones.
        alibi_slopes : array_like of float, (H,), optional
            As in `attention`, of positions in the sequence. Attention is then exact, and all tokens stay as they came (int8 and
            int4: as bfloat16): O(length) a step. For a cache that attends with slopes alone; near/far attention with ALiBi is
            `attention`'s.
        return_lse, return_info, out, num_threads
            As in `attention`.

        Returns
        -------
        out : ndarray, ([batch,] H, n, value_dim), dtype of the queries
        lse : ndarray of float32, ([batch,] H, n)
            Only with return_lse.
        info : AttentionInfo
            Only with return_info.

        Raises
        ------
        TypeError
            As in `attention`.
        ValueError
            As in `attention`; also where queries reach back behind what is sealed (``stats["first_query"]``): what such a query
            must not see has been mixed into cells. Attend to a chunk before appending the next. With alibi_slopes, where a call
            without them has sealed tokens.
        MemoryError
            The cache holds the tokens it held. Part of a chunk longer than a window may be sealed, as after Ctrl-C: `truncate`
            to its beginning and `append` it again to attend to it once more.
        """
        threads = threads_for_call(num_threads) or 0
        queries = self._checked(queries, "queries", None, self.dim)
        scores = check_scores(scale, softcap, sink_logits, queries.shape[1], self.dim, alibi_slopes)
        self._check_heads(queries)
        rows = self._own_rows(lengths, padding_side, queries, "queries")
        batch, heads, count, _ = queries.shape
        result = np.zeros((batch, heads, count, self.value_dim), queries.dtype)
        outer = result.shape[self.batch is None : 3]
        if out is not None:
            check_out(out, _Outputs((*outer, self.value_dim), queries.dtype), {"queries": queries})
        with self._alone():
            lse, info = attend_rows(self, queries, scores, rows, result, return_lse, return_info, threads)
        result = result.reshape(*outer, self.value_dim)
        if out is not None:
            out[...] = result
        returned = [result if out is None else out]
        if return_lse:
            returned.append(lse.reshape(outer))
        if return_info:
            returned.append(join_infos(info, (batch, heads, count), outer))
        return returned[0] if len(returned) == 1 else tuple(returned)

    def keys(self):
        """The keys of all tokens held, in their order.

        Returns
        -------
        ndarray of float32, ([batch,] num_kv_heads, stats["held"], dim)
            A copy, O(n). Row i is token i; behind evicted tokens the sinks come first, then the tokens from where `evict` has
            said on. In a batch zeros follow those of a sequence that holds fewer than others. float32 storage
            gives the bits that were appended, shorter storage what it rounded them to: sealed tokens to `dtype` (with a large
            offset less the mean of their cell), the others as Notes say.

        Raises
        ------
        MemoryError
            The cache is as it was.
        """
        return self._stored("keys", self.dim)

    def values(self):
        """The values of all tokens held, ([batch,] num_kv_heads, stats["held"], value_dim): as `keys`."""
        return self._stored("values", self.value_dim)

    def _stored(self, part, width):
        with self._alone():
            held = [sequence.state()["held"] for sequence in self._sequences]
            stored = np.zeros((len(held), self.num_kv_heads, max(held), width), np.float32)
            for sequence, count, rows in zip(self._sequences, held, stored, strict=True):
                own = rows if count == max(held) else np.empty((self.num_kv_heads, count, width), np.float32)
                sequence.read(**{"keys": None, "values": None, part: own})
                rows[:, :count] = own
        return stored[0] if self.batch is None else stored

    def truncate(self, n, *, num_threads=None):
        """Forget all tokens but the first n: roll rejected ones back.

        A few tokens cost nothing. Where the truncated cache ends more than an eighth of a window before the last sealed
        window would be due, segments are sealed anew: what `append` and `attend` of n tokens would have given. With int8 and
        int4 some tokens then come back to bfloat16, as they were rounded.

        Parameters
        ----------
        n : int, or array_like of integers, (batch,)
            Of every sequence, or of each its own.

        Raises
        ------
        ValueError
            n is negative or more than there are, or some of the tokens that would remain were evicted; the cache is as it was,
            every sequence of it.
        """
        threads = threads_for_call(num_threads) or 0
        with self._alone():
            kept = self._of_each(n, "n")
            for sequence, (name, count) in zip(self._sequences, kept, strict=True):
                state = sequence.state()
                if count > state["length"]:
                    raise ValueError(f"{name} must be at most the {state['length']} tokens there are, got {count}")
                if self.sinks < count < state["evicted"]:
                    expected = f"at least {state['evicted']}, or at most sinks={self.sinks}"
                    raise ValueError(f"{name}={count} would leave evicted tokens; expected {expected}")
            # all sequences or none, whatever interrupts
            truncated = [sequence.fork() for sequence in self._sequences] if len(self._sequences) > 1 else self._sequences
            for sequence, (_, count) in zip(truncated, kept, strict=True):
                sequence.truncate(count, threads)
            self._sequences = truncated

    def _of_each(self, number, name):
        """[(name for messages, number)] of every sequence, by one number for all or one of each."""
        if np.ndim(number) == 0:
            return [(name, integer(number, name, 0))] * len(self._sequences)
        numbers = plain(number, name)
        if numbers.dtype.kind not in "iu":
            raise TypeError(f"{name} has dtype {numbers.dtype}; expected integers")
        if numbers.shape != (len(self._sequences),):
            raise ValueError(f"{name} has shape {numbers.shape}; expected ({len(self._sequences)},), one for each sequence")
        names = [f"{name}[{i}]" for i in range(len(numbers))]
        return [(own, integer(count, own, 0)) for own, count in zip(names, numbers.tolist(), strict=True)]

    def evict(self, before):
        """Forget tokens before token `before`, the sinks aside: a sliding history.

        Whole segments go, so some of these tokens may stay for a while; they never come back. Positions stay what they are. A
        cache that attends with alibi_slopes has no segments, and forgets nothing.

        Parameters
        ----------
        before : int, or array_like of integers, (batch,)
            Of every sequence, or of each its own.

        Returns
        -------
        int, or ndarray of int64, (batch,)
            Tokens before this one are forgotten now: in every sequence, or where `before` is an array in each.
        """
        with self._alone():
            bounds = self._of_each(before, "before")
            evicted = [sequence.fork() for sequence in self._sequences]
            forgotten = [sequence.evict(bound) for sequence, (_, bound) in zip(evicted, bounds, strict=True)]
            self._sequences = evicted
        return min(forgotten) if np.ndim(before) == 0 else np.array(forgotten)

    # ---- Copies ----

    def fork(self):
        """A cache of the same tokens that goes its own way: a beam, a shared prompt.

        What there is, is shared and never changed; the first to append where both stood goes on in place, the other copies its
        open tokens (at most two windows). O(number of segments), whatever the length.
        """
        with self._alone():
            return self._with([sequence.fork() for sequence in self._sequences])

    def reorder(self, beam_indices):
        """Replace sequence i by a fork of sequence ``beam_indices[i]``; the batch becomes as long as `beam_indices`.

        Raises
        ------
        ValueError
            No batch, or an index outside it; the cache is as it was.
        """
        if self.batch is None:
            raise ValueError("reorder needs a cache of several sequences; expected KVCache(..., batch=n)")
        chosen = np.asarray(beam_indices)
        if chosen.dtype.kind not in "iu" or chosen.ndim != 1 or not chosen.size:
            raise ValueError(f"beam_indices must be a flat sequence of at least one integer, got {beam_indices!r}")
        with self._alone():
            if chosen.min() < 0 or chosen.max() >= self.batch:
                raise ValueError(f"beam_indices must lie in 0..{self.batch - 1}, got {chosen.min()}..{chosen.max()}")
            self._sequences = [self._sequences[i].fork() for i in chosen]
            self.batch = len(self._sequences)

    def _with(self, sequences):
        new = object.__new__(type(self))
        new._set(self.__dict__, sequences)
        return new

    # ---- Keeping it ----

    def save(self, path):
        """Write to a file (safetensors): first under a temporary name beside it, then renamed.

        The file holds the tokens as they are when the call begins; the cache may be used meanwhile. Segments that sequences of
        a batch share are written once. A segment in the making is not saved; it begins anew in the loaded cache.
        """
        kept = self.fork()
        _array_file.save(FILE, parameters_of(kept), kept._give, path)

    @classmethod
    def load(cls, path):
        """Read a saved cache into memory.

        With k it goes on as the saved one would have, with the same bits on the same instruction set. (Where one multiplies
        bfloat16 and the other does not, means are converted.) With a tolerance it keeps the thresholds; what is measured from
        then on, and `AttentionInfo.error`, begin anew.

        Raises
        ------
        ValueError
            If the file is not a saved cache, is damaged (by its checksum, and by `validate`'s rules), or is of another version.
        """
        return cls._read(_array_file.contents(path), path, own=True)

    @classmethod
    def view(cls, path):
        """Map a saved cache: opens in milliseconds, is read from the file as it is used, and goes on like any other.

        What is sealed stays in the file, tokens that come are kept in memory. The header's checksum and every number that leads
        to memory are checked here; the data's checksum is not (`load` checks it). The file must not be written while the view
        or a fork of it lives; `save` over it is safe, since that makes a new file.

        Raises
        ------
        ValueError
            As `load`.
        """
        return cls._read(_array_file.mapped(path), path, own=False)

    @classmethod
    def _read(cls, data, path, own):
        """The cache of a file's bytes, as `read`."""
        new = object.__new__(cls)
        new._set(*read(data, path, own))
        return new

    def _give(self, take):
        with self._alone():
            _native.Cache.write(self._sequences, take)

    def __reduce__(self):
        buffer = io.BytesIO()
        kept = self.fork()
        _array_file.write(FILE, parameters_of(kept), kept._give, buffer)
        return _unpickle, (type(self), buffer.getvalue())

    # ---- Checks ----

    def validate(self):
        """Check the whole structure: every token in one place, cells and parents without gaps. O(n).

        Returns
        -------
        True

        Raises
        ------
        ValueError
            Naming what is wrong. Only a damaged file behind a `view`, or a defect of icecore, can cause it.
        """
        with self._alone():
            for sequence in self._sequences:
                fault = sequence.validate()
                if fault is not None:
                    raise ValueError(f"the cache is damaged: {fault}")
            return True

    def _refuse_overflow(self, arrays, rows):
        """ValueError that names the first finite number which storage would make infinite, of those in `rows`."""
        stored = "bfloat16" if self.dtype == "int8" else self.dtype
        for name, array in arrays.items():
            numbers = widened(array)
            large = np.isfinite(numbers) & (np.abs(numbers) >= OVERFLOW[stored])
            for of_sequence, own in zip(large, rows, strict=True):
                of_sequence[:, : own.start] = of_sequence[:, own.stop :] = False
            if large.any():
                at = tuple(int(i) for i in np.argwhere(large)[0])
                raise ValueError(f"{name} holds {numbers[at]:.6g}, which {stored} cannot hold; expected magnitudes below "
                                 f"{OVERFLOW[stored]:.6g}") from None

    def _refuse_counts(self, array, name, keys):
        shape, expected = (checked.shape if self.batch is not None else checked.shape[1:] for checked in (array, keys))
        raise ValueError(f"{name} has shape {shape}, but keys has {expected}; expected as many tokens")

    def _own_rows(self, lengths, padding_side, array, name):
        """The slice of each sequence's own rows of a checked array."""
        batch, _, rows, _ = array.shape
        lengths = check_lengths(lengths, padding_side, batch, rows, name)
        return [slice(0, rows)] * batch if lengths is None else [own_rows(length, rows, padding_side) for length in lengths]

    def _check_heads(self, queries):
        heads = queries.shape[1]
        if heads % self.num_kv_heads:
            raise ValueError(f"queries has {heads} heads; expected a multiple of num_kv_heads={self.num_kv_heads}")
        if self.plan is not None and heads != self.plan.query_heads:
            raise ValueError(f"queries has {heads} heads; expected the plan's {self.plan.query_heads}")

    def _checked(self, array, name, heads, width):
        """Four-dimensional: (batch, heads, tokens, width)."""
        array = plain(array, name)
        if native_dtype(array.dtype) is None:
            raise TypeError(f"{name} has dtype {array.dtype}; expected float32, float16 or bfloat16 (or its bits as uint16)")
        leading = 0 if self.batch is None else 1
        expected = f"({'batch, ' * leading}{heads or 'heads'}, tokens, {width})"
        if array.ndim != 3 + leading or array.shape[-1] != width or (heads and array.shape[leading] != heads):
            raise ValueError(f"{name} has shape {array.shape}; expected {expected}")
        if leading and len(array) != self.batch:
            raise ValueError(f"{name} has shape {array.shape}; expected {expected} with batch={self.batch}")
        return array if leading else array[None]


def _unpickle(cls, data):
    return cls._read(np.frombuffer(bytearray(data), np.uint8), "pickled data", own=True)


class _Outputs:
    """What `check_out` asks of a problem."""

    def __init__(self, out_shape, dtype):
        self.out_shape, self.dtype = out_shape, dtype
