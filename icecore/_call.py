"""A checked call of some heads on its way to a path: exact, near/far, a selector, or the float64 oracle."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace

import numpy as np

from icecore import _cost_model, _native
from icecore._alibi import are_too_steep, row_constants, with_positions
from icecore._arrays import (
    NO_MASK,
    Mask,
    Problem,
    Scores,
    as_four,
    check_problem,
    check_scale,
    narrowed,
    native_problem,
    widened,
)
from icecore._info import (
    AttentionInfo,
    error_fields,
    exact_info,
    info_of,
    new_errors,
    new_report,
    visible_share,
    visited_fraction,
)
from icecore._metric import query_metric
from icecore._settings import EXACT, Settings, rounds, window_sides

#: Rows of which the error is measured for an `AttentionInfo` where k is given.
MEASURED_QUERIES = 32
#: Errors of single heads go up to so many times their tolerance. A warning says where a measured one is above that by more than
#: so many standard errors: of the hundreds of heads of a model some are measured too high.
USUAL_ERROR, STANDARD_ERRORS = 1.3, 2.0


@dataclass(slots=True)
class Call:
    """A checked call of some heads on its way to a path, which fills `out` and `lse`; arrays begin with (batch, heads, L)."""

    problem: Problem
    scores: Scores
    out: np.ndarray
    lse: np.ndarray | None = None
    causal: bool = False
    mask: Mask = NO_MASK
    threads: int = 0
    seed: int = 0
    return_info: bool = False
    settings: Settings = EXACT
    over: list = field(default_factory=list)  # (measured error, tolerance) of heads that ended above it

    def run_entries(self, entries, parts_of, last_exact=0):
        """Compute each `Entry` of the batch by itself, in the parts that `parts_of` says of its problem; as `run_parts`."""
        self.out[...] = 0
        if self.lse is not None:
            self.lse[...] = -np.inf
        infos = []
        for entry in entries:
            problem, out = self.problem.entry(entry), self.out[entry.batch, :, entry.queries]
            lse = None if self.lse is None else np.empty(out.shape[:3], np.float32)
            mask = self.mask.part(queries=entry.queries, keys=entry.keys, batch=entry.batch)
            call = replace(self, problem=problem, out=out, lse=lse, mask=mask, over=[])
            own = call.run_parts(parts_of(problem), min(last_exact, out.shape[2]))
            infos += [((entry.batch, heads, entry.queries), info) for (_, heads, _), info in own]
            if lse is not None:
                self.lse[entry.batch, :, entry.queries] = lse
            self.over += call.over
        return infos

    def run_parts(self, parts, last_exact=0):
        """Compute each of `parts` (query heads, key heads, Settings), the last so many queries exactly; an info of each, behind
        its place in the arrays of all."""
        every = slice(None)
        if len(parts) == 1:
            self.settings = parts[0][2]
            return [((every, every, every), self._run_to_end(last_exact))]
        infos = []
        for query_heads, key_heads, settings in parts:
            call = self._part(self.problem.part(query_heads, key_heads), settings, heads=query_heads)
            infos.append(((every, query_heads, every), call._run_to_end(last_exact)))
            if self.lse is not None:
                self.lse[:, query_heads] = call.lse
            self.over += call.over
        return infos

    def _part(self, problem, settings, heads=slice(None), queries=slice(None)):
        out = self.out[:, heads, queries]
        lse = None if self.lse is None else np.empty(out.shape[:3], np.float32)
        mask, scores = self.mask.part(heads, queries), self.scores.part(heads)
        return replace(self, problem=problem, scores=scores, settings=settings, out=out, lse=lse, mask=mask, over=[])

    def _run_to_end(self, last_exact):
        info = self.run()
        return self._attend_last(last_exact, info) if last_exact and self.settings.is_approximate else info

    def run(self):
        """Take the path that the settings name, or exact attention where near/far does not pay; an `AttentionInfo` or None."""
        s, p, predicted = self.settings, self.problem, None
        if p.is_double:
            info = self._reference()
        elif s.selector is not None:
            info = self._selected()
        elif s.is_exact:
            info = self._exact(s.window, s.sinks)
        else:
            path, slopes = "exact", self.scores.alibi_slopes
            if p.query.size and p.key.size:
                path, predicted = self._choose()
            if path == "exact" or (slopes is not None and are_too_steep(slopes, p.key.shape[2])):
                info = self._exact(None, 0)
            elif path == "rounded":
                info = self._rounded()
            else:
                info = self._near_far() if slopes is None else self._near_far_by_position()
        return replace(info, predicted=predicted) if self.return_info else None

    def _attend_last(self, count, info):
        """Attend the last `count` queries exactly, in the place of what is there; the info of all."""
        end = slice(-count, None)
        last = self._part(self.problem.last(count), EXACT, queries=end)
        own = last.run()
        if self.lse is not None:
            self.lse[:, :, end] = last.lse
        if info is None:
            return None
        for name, rows in (("near_keys", own.near_keys), ("captured_mass", own.captured_mass), ("missed_mass_bound", 0.0),
                           ("summaries", 0), ("visited_fraction", 1.0)):
            if getattr(info, name) is not None:
                getattr(info, name)[:, :, end] = rows
        return info

    def _native(self, sinks=0, window=None):
        return native_problem(self.problem, self.out, self.lse, self.scores, self.mask, causal=self.causal, sinks=sinks,
                              sides=window_sides(window), threads=self.threads)

    def _exact(self, window, sinks):
        _native.attend_exact(self._native(sinks, window))
        return self._exact_info(window, sinks) if self.return_info else None

    def _selected(self):
        selector, near = self.settings.selector, np.empty(self.problem.shape[:3], np.int32) if self.return_info else None
        selector._attend(self._native(), self.seed, near)
        return AttentionInfo(selector.name, near, np.full(near.shape, np.nan, np.float32)) if self.return_info else None

    def _choose(self):
        """The path that is expected to take the least work, and, where that is asked for, the expected seconds of each."""
        work, model = self._work(), _cost_model.model_in_force()
        if self.mask.ranges is not None:  # exact attention reads no key outside of them
            work = replace(work, pairs=work.pairs * visible_share(self.mask.ranges, self.problem.key.shape[2], self.causal))
        return _cost_model.choose(work, model), model.predict(work) if self.return_info else None

    def _work(self):
        p, s, bfloat16 = self.problem, self.settings, self.problem.native_dtype == _native.BFLOAT16
        _, heads, queries, dim, _, value_dim = p.shape
        multiplied = _cost_model.multiplied(dim, value_dim, queries * (heads // p.key.shape[1]), bfloat16=bfloat16,
                                            rounding=rounds(s.tolerance))
        if self.scores.alibi_slopes is not None:
            multiplied["stored_bfloat16"] = False
        return _cost_model.count_work(
            p.shape, p.key.shape[1], causal=self.causal, **multiplied, k=s.k, tolerance=s.tolerance, window=s.window,
            sinks=s.sinks, cell_size=s.cell_size, threads=self.threads or _native.default_threads(),
        )

    def _rounded(self):
        report = new_errors(self.problem.shape[:3])
        _native.attend_rounded(self._native(), self._options(), _native.Report(**report))
        self._note_errors(report["error"], report["standard_error"])
        if not self.return_info:
            return None
        return replace(self._exact_info(None, 0), path="rounded", **error_fields(report))

    def _near_far(self):
        s, shape = self.settings, self.problem.shape[:3]
        report = new_report(shape) | {"seconds": np.empty(3)} if self.return_info else {}
        if self.return_info and s.tolerance is None and self.lse is None:
            self.lse = np.empty(shape, np.float32)  # its error counts, too
        if s.tolerance is not None:
            report |= new_errors(shape)
        _native.attend_near_far(self._native(s.sinks), self._options(), _native.Report(**report))
        if s.tolerance is not None:
            self._note_errors(report["error"], report["standard_error"])
        if not self.return_info:
            return None
        if s.tolerance is None and s.head_threshold is None:
            report |= self._errors_of_rows()
        near, summaries, keys = report["near_count"], report["summaries"], self.problem.key.shape[2]
        visited = visited_fraction(near, summaries, keys, self.causal, s.window, s.sinks)
        return info_of(report, visited)

    def _near_far_by_position(self):
        """With ALiBi: the same on queries and keys that have their places as one more component (`_alibi`)."""
        p, slopes, is_short = self.problem, self.scores.alibi_slopes, self.problem.dtype.itemsize == 2
        placed = with_positions(p, self.scores.scale, slopes)
        out = np.empty(self.out.shape, placed.dtype) if is_short else self.out
        call = replace(self, problem=placed, scores=Scores(1.0), settings=replace(self.settings, rounded=False), out=out)
        info = call._reference() if p.is_double else call._near_far()
        self.over, self.lse = call.over, call.lse
        if is_short:
            self.out[...] = narrowed(out, p.dtype)
        if self.lse is not None:
            self.lse += row_constants(slopes, p.query.shape[2])
        return info

    def _options(self):
        s = self.settings
        prices = {} if s.tolerance is None else _cost_model.model_in_force().prices(self._work())
        return _native.NearFar(
            near_keys=s.k, tolerance=s.tolerance or 0.0, head_tolerance=s.head_tolerance,
            head_threshold=s.head_threshold, moments=s.metric, rounding=s.rounded and rounds(s.tolerance),
            block=s.window or 1, cell_size=s.cell_size, head_cell_size=s.head_cell_size, seed=self.seed, **prices,
        )

    def _errors_of_rows(self):
        """As `new_errors`, filled: by attending sampled rows exactly; of rows that have far keys."""
        p, (batch, heads, queries) = self.problem, self.problem.shape[:3]
        offset = p.key.shape[2] - queries
        first = min(max(0, 2 * self.settings.window - offset), queries) if self.causal else 0
        rows = np.unique(np.linspace(first, queries - 1, MEASURED_QUERIES).astype(int)) if first < queries else np.empty(0, int)
        distance, size = np.zeros((batch, heads, len(rows))), np.zeros((batch, heads, len(rows)))
        for i, row in enumerate(rows):
            one = slice(row, row + 1)
            keys = row + 1 + offset if self.causal else None
            out, lse = np.empty_like(self.out[:, :, one]), np.empty((batch, heads, 1), np.float32)
            mask = self.mask.part(queries=one, keys=slice(keys))
            exact = Call(p.row(row, keys), self.scores, out, lse, mask=mask, threads=self.threads)
            exact.run()
            truth, own = (widened(a)[:, :, 0].astype(np.float64) for a in (exact.out, self.out[:, :, one]))
            with np.errstate(invalid="ignore", over="ignore"):
                mass = np.expm1(np.float64(self.lse[:, :, row]) - exact.lse[:, :, 0])
            size[..., i] = np.linalg.norm(truth, axis=-1)
            distance[..., i] = np.hypot(np.linalg.norm(own - truth, axis=-1), 0.5 * size[..., i] * np.nan_to_num(mass))
        with np.errstate(invalid="ignore", divide="ignore"):
            error = distance.sum(axis=-1) / size.sum(axis=-1)
            standard = np.sqrt(((distance - error[..., None] * size) ** 2).sum(axis=-1)) / size.sum(axis=-1)
        rows = np.full((batch, heads), len(rows), np.int32)
        return {"error": error.astype(np.float32), "standard_error": standard.astype(np.float32), "error_rows": rows}

    def _note_errors(self, error, standard_error):
        s = self.settings
        tolerance = np.broadcast_to(s.tolerance if s.head_tolerance is None else s.head_tolerance, error.shape)
        with np.errstate(invalid="ignore"):
            over = error - STANDARD_ERRORS * standard_error > USUAL_ERROR * tolerance
        self.over = list(zip(error[over].tolist(), tolerance[over].tolist(), strict=True))

    def _reference(self):
        """In float64, where nobody waits for speed: a tolerance is kept by exact attention."""
        from icecore import reference

        p, s = self.problem, self.settings
        if self.scores.alibi_slopes is not None and not s.is_exact:
            return self._near_far_by_position()
        scores = self.scores.given() | {"causal": self.causal}
        options = scores | {"sinks": s.sinks, "attn_mask": self.mask.given, "key_ranges": self.mask.ranges}
        if s.selector is not None:
            out, lse, near = s.selector._oracle(p.query, p.key, p.value, self.seed, **scores)
            info = AttentionInfo("reference", near.astype(np.int32), np.full(near.shape, np.nan, np.float32))
        elif s.is_exact or s.tolerance is not None:
            window, sinks = (s.window, s.sinks) if s.is_exact else (None, 0)
            out, lse = reference.attention(p.query, p.key, p.value, window=window, **options | {"sinks": sinks})
            info = self._exact_info(window, sinks) if self.return_info else None
        else:
            out, lse, near, mass = reference.near_far_attention(
                p.query, p.key, p.value, k=s.k, moments=self._moments(), block=s.window or 1, seed=self.seed,
                cell_size=s.cell_size if s.head_cell_size is None else s.head_cell_size,
                **options,
            )
            info = AttentionInfo("reference", near, mass)
        self.out[...] = out
        if self.lse is not None:
            self.lse[...] = lse
        return info if info is None else replace(info, path="reference")

    def _moments(self):
        if self.settings.metric is not None or self.causal:
            return self.settings.metric
        return query_metric(self.problem.query, self.problem.key.shape[1])

    def _exact_info(self, window, sinks):
        return exact_info(self.problem.shape, self.causal, window, sinks, self.mask)


def warn_of_errors(over):
    """One warning where heads ended above their tolerance by more than the measurement can be wrong."""
    if over:
        error, tolerance = max(over, key=lambda pair: pair[0] / pair[1])
        heads = "1 head ended above its tolerance" if len(over) == 1 else f"{len(over)} heads ended above their tolerances"
        warnings.warn(
            f"{heads}: at worst a measured error of {error:.3g} where {tolerance:.3g} "
            "was asked for; a smaller tolerance or exact attention keeps them within it", RuntimeWarning, stacklevel=3,
        )


def attend_by(query, key, value, settings, *, causal, return_info=False):
    """Attention of one sequence by given settings: (out, info); for measurements."""
    problem = check_problem(query, key, value)
    out = as_four(np.empty(problem.out_shape, problem.dtype))
    scores = Scores(check_scale(None, problem.query.shape[-1]))
    call = Call(problem, scores, out, causal=causal, return_info=return_info, settings=settings)
    return out[0], call.run()
