"""The C core behind typed memoryviews: unwrap, one call without the GIL, check the status.  No logic lives here."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from icecore_c cimport *

cdef extern from "Python.h":
    int PyErr_CheckSignals() noexcept
    object PyBytes_FromStringAndSize(const char *data, Py_ssize_t size)

FLOAT32 = 0
FLOAT16 = 1
BFLOAT16 = 2
INT8 = 3

# Storage: float32 numbers, or 16-bit floats as bit patterns.
ctypedef fused element:
    float
    uint16_t

ctypedef fused index_type:
    int32_t
    int64_t


cdef int check_signals() noexcept nogil:
    with gil:
        return PyErr_CheckSignals()


icecore_set_interrupt_check(check_signals)


cdef int check(icecore_status status, id=None) except -1:
    """The one place where statuses become Python errors; `id` is the one at fault."""
    if status == ICECORE_OK:
        return 0
    if status == ICECORE_INTERRUPTED:
        return -1  # the signal handler's exception is set already
    if status == ICECORE_ERROR_MEMORY:
        raise MemoryError("icecore: out of memory")
    if status == ICECORE_ERROR_ISA:
        raise RuntimeError(
            "icecore: the instruction set asked for (ICECORE_ISA or set_isa) is not usable here; "
            f"usable: {', '.join(usable_isas())}"
        )
    if status == ICECORE_ERROR_ABSENT:
        raise KeyError(f"id {id} is not in the index")
    if status == ICECORE_ERROR_EXISTS:
        raise ValueError(f"ids holds {id}, which is in the index already; replace=True replaces it")
    if status == ICECORE_ERROR_REPEATED:
        raise ValueError(f"ids holds {id} more than once; expected each id once")
    if status == ICECORE_ERROR_READ_ONLY:
        raise ValueError("the index is a read-only view of a file; copy() gives one that can be changed")
    if status == ICECORE_ERROR_BUSY:
        raise RuntimeError(
            "the index or cache is at work in this thread; a signal handler or a progress callback cannot use it until that is done"
        )
    if status == ICECORE_ERROR_FORKED:
        raise RuntimeError(
            "another thread was changing the index or cache when this process was forked: this copy of it is lost; fork while no "
            "thread uses it, or make or load it in the child"
        )
    if status == ICECORE_ERROR_RANGE:
        raise OverflowError("a finite number is too large for the storage's dtype")
    raise ValueError("icecore: an argument is outside its range")


# ---- Runtime ----

cdef list names_of(int (*lister)(const char **, int)):
    cdef const char *names[16]
    cdef int found = lister(names, 16)
    return [names[i].decode() for i in range(found)]


def built_isas():
    return names_of(icecore_built_isas)


def usable_isas():
    return names_of(icecore_usable_isas)


def isa():
    return icecore_isa().decode()


def set_isa(name):
    cdef bytes encoded
    if name is None:
        check(icecore_set_isa(NULL))
    else:
        encoded = name.encode()
        check(icecore_set_isa(encoded))


def has_openmp():
    return bool(icecore_has_openmp())


def default_threads():
    return icecore_default_threads()


def selftest(str isa):
    """(failures, report)."""
    cdef bytes encoded = isa.encode()
    cdef char report[8192]
    cdef int failures = icecore_selftest(encoded, report, sizeof(report))
    return failures, (<bytes>report).decode()


# ---- Attention ----

cdef icecore_tensor tensor(const element[:, :, :, :] array) noexcept:
    cdef icecore_tensor t
    t.data = <void *>&array[0, 0, 0, 0] if array.size else NULL
    t.batch_stride = array.strides[0] // <Py_ssize_t>sizeof(element)
    t.head_stride = array.strides[1] // <Py_ssize_t>sizeof(element)
    t.row_stride = array.strides[2] // <Py_ssize_t>sizeof(element)
    return t


cdef icecore_attention problem_of(int dtype, const element[:, :, :, :] query, const element[:, :, :, :] key,
                                  const element[:, :, :, :] value, element[:, :, :, :] out, float[:, :, ::1] lse,
                                  double scale, bint causal, int64_t window, int64_t sinks, int threads) noexcept:
    cdef icecore_attention p
    p.dtype = p.key_dtype = <icecore_dtype>dtype
    p.batch, p.query_heads, p.queries, p.dim = query.shape[0], query.shape[1], query.shape[2], query.shape[3]
    p.key_heads, p.keys, p.value_dim = key.shape[1], key.shape[2], value.shape[3]
    p.query, p.key, p.value = tensor(query), tensor(key), tensor(value)
    p.out = tensor[element](out)
    p.lse = &lse[0, 0, 0] if lse is not None and lse.size else NULL
    p.scale, p.causal, p.window, p.sinks, p.threads = <float>scale, causal, window, sinks, threads
    p.mask_kind, p.mask = <icecore_mask_kind>0, NULL
    p.mask_batch_stride = p.mask_head_stride = p.mask_row_stride = p.mask_key_stride = 0
    return p


cdef void set_mask(icecore_attention *p, const uint8_t[:, :, :, :] keep, const float[:, :, :, :] bias):
    """`keep`: bool mask as bytes; `bias`: additive mask; each (batch, heads, queries, keys), either may be None."""
    if keep is not None and keep.size:
        p.mask_kind, p.mask = <icecore_mask_kind>1, &keep[0, 0, 0, 0]
        p.mask_batch_stride, p.mask_head_stride = keep.strides[0], keep.strides[1]
        p.mask_row_stride, p.mask_key_stride = keep.strides[2], keep.strides[3]
    elif bias is not None and bias.size:
        p.mask_kind, p.mask = <icecore_mask_kind>2, &bias[0, 0, 0, 0]
        p.mask_batch_stride, p.mask_head_stride = bias.strides[0] // 4, bias.strides[1] // 4
        p.mask_row_stride, p.mask_key_stride = bias.strides[2] // 4, bias.strides[3] // 4


def attend_exact(int dtype, const element[:, :, :, :] query, const element[:, :, :, :] key,
                 const element[:, :, :, :] value, element[:, :, :, :] out, float[:, :, ::1] lse, double scale, bint causal,
                 int64_t window, int64_t sinks, const uint8_t[:, :, :, :] keep, const float[:, :, :, :] bias, int threads):
    cdef icecore_attention p = problem_of(dtype, query, key, value, out, lse, scale, causal, window, sinks, threads)
    set_mask(&p, keep, bias)
    cdef icecore_status status
    with nogil:
        status = icecore_attend_exact(&p)
    check(status)


def attend_near_far(int dtype, const element[:, :, :, :] query, const element[:, :, :, :] key,
                    const element[:, :, :, :] value, element[:, :, :, :] out, float[:, :, ::1] lse, double scale,
                    bint causal, int64_t sinks, const uint8_t[:, :, :, :] keep, const float[:, :, :, :] bias, int64_t near_keys,
                    int64_t visit, bint far_field, float tolerance, const float[::1] head_tolerance,
                    const float[::1] head_threshold, const float[:, :, ::1] moments, bint rounding, int64_t block, int64_t cell_size,
                    const int64_t[::1] head_cell_size, uint64_t seed, int32_t[:, :, ::1] near_count, float[:, :, ::1] captured_mass,
                    float[:, :, ::1] missed_bound, int32_t[:, :, ::1] summaries, double[::1] seconds, float[:, ::1] error,
                    float[:, ::1] standard_error, int32_t[:, ::1] error_rows, int threads, float near_price=0, float node_price=0):
    cdef icecore_attention p = problem_of(dtype, query, key, value, out, lse, scale, causal, -1, sinks, threads)
    set_mask(&p, keep, bias)
    cdef icecore_near_far options
    options.near_keys, options.visit, options.far_field = near_keys, visit, far_field
    options.tolerance, options.rounding = tolerance, rounding
    options.near_price, options.node_price = near_price, node_price
    options.head_threshold = &head_threshold[0] if head_threshold is not None and head_threshold.size else NULL
    options.head_tolerance = &head_tolerance[0] if head_tolerance is not None and head_tolerance.size else NULL
    options.moments = &moments[0, 0, 0] if moments is not None and moments.size else NULL
    options.block, options.cell_size, options.seed = block, cell_size, seed
    options.head_cell_size = &head_cell_size[0] if head_cell_size is not None and head_cell_size.size else NULL
    options.near_count = &near_count[0, 0, 0] if near_count is not None and near_count.size else NULL
    options.captured_mass = &captured_mass[0, 0, 0] if captured_mass is not None and captured_mass.size else NULL
    options.missed_bound = &missed_bound[0, 0, 0] if missed_bound is not None and missed_bound.size else NULL
    options.summaries = &summaries[0, 0, 0] if summaries is not None and summaries.size else NULL
    options.error = &error[0, 0] if error is not None and error.size else NULL
    options.standard_error = &standard_error[0, 0] if standard_error is not None and standard_error.size else NULL
    options.error_rows = &error_rows[0, 0] if error_rows is not None and error_rows.size else NULL
    options.seconds = &seconds[0] if seconds is not None and seconds.size else NULL
    cdef icecore_status status
    with nogil:
        status = icecore_attend_near_far(&p, &options)
    check(status)


def attend_pages(int dtype, const element[:, :, :, :] query, const element[:, :, :, :] key,
                 const element[:, :, :, :] value, element[:, :, :, :] out, float[:, :, ::1] lse, double scale, bint causal,
                 int64_t near_keys, int32_t[:, :, ::1] near_count, int threads):
    cdef icecore_attention p = problem_of(dtype, query, key, value, out, lse, scale, causal, -1, 0, threads)
    cdef int32_t *counts = &near_count[0, 0, 0] if near_count is not None and near_count.size else NULL
    cdef icecore_status status
    with nogil:
        status = icecore_attend_pages(&p, near_keys, counts)
    check(status)


def attend_indices(int dtype, const element[:, :, :, :] query, const element[:, :, :, :] key, const element[:, :, :, :] value,
                   element[:, :, :, :] out, float[:, :, ::1] lse, double scale, bint causal,
                   const index_type[:, :, :, :, :] indices, int threads):
    """`indices`: (batch, key_heads, query_heads / key_heads, queries, count).  The place of the first bad one in C order, or None."""
    cdef icecore_attention p = problem_of(dtype, query, key, value, out, lse, scale, causal, -1, 0, threads)
    cdef icecore_indices x
    cdef int64_t place = 0
    cdef Py_ssize_t size = sizeof(index_type)
    x.data = &indices[0, 0, 0, 0, 0] if indices.size else NULL
    x.is_int64, x.count = size == 8, indices.shape[4]
    x.batch_stride, x.key_head_stride, x.member_stride = indices.strides[0] // size, indices.strides[1] // size, indices.strides[2] // size
    x.row_stride, x.index_stride = indices.strides[3] // size, indices.strides[4] // size
    cdef icecore_status status
    with nogil:
        status = icecore_attend_indices(&p, &x, &place)
    if status == ICECORE_ERROR_INDEX:
        return place
    check(status)
    return None


# ---- Named arrays and callbacks ----

cdef struct callback:
    void *function
    void *error        # a list that takes the exception


cdef int call_progress(void *context, double done) noexcept with gil:
    cdef callback *c = <callback *>context
    try:
        (<object>c.function)(done)
        return 0
    except BaseException as error:
        (<list>c.error).append(error)
        return 1


cdef int call_write(void *context, const icecore_array *table, int64_t arrays, const void *data, int64_t size) noexcept with gil:
    cdef callback *c = <callback *>context
    cdef uint8_t *piece = <uint8_t *>data
    try:
        if data == NULL:
            (<object>c.function)([((<char *>table[i].name).decode(), chr(table[i].type), table[i].count) for i in range(arrays)], None)
        else:
            (<object>c.function)(None, <uint8_t[:size]>piece)
        return 0
    except BaseException as error:
        (<list>c.error).append(error)
        return 1


cdef class Arrays:
    """(name, type, contiguous bytes as an array of uint8) each, as the core takes them; `fault` says what it could not take, or is None."""
    cdef icecore_array *entries
    cdef int64_t count
    cdef object memory, fault

    def __cinit__(self, list arrays):
        cdef const uint8_t[::1] data
        cdef bytes name
        cdef int64_t size
        self.memory, self.count = arrays, len(arrays)
        self.entries = <icecore_array *>malloc(sizeof(icecore_array) * max(1, len(arrays)))
        if self.entries == NULL:
            raise MemoryError("icecore: out of memory")
        memset(self.entries, 0, sizeof(icecore_array) * len(arrays))
        for i, (text, kind, data) in enumerate(arrays):
            name = text.encode()
            if len(name) > 47 or b"\0" in name:
                self.fault = f"it holds an array named {text!r}"
                return
            memcpy(self.entries[i].name, <const char *>name, len(name))
            self.entries[i].type = <char>ord(kind)
            size = {"b": 1, "h": 2, "i": 4, "f": 4, "l": 8}[kind]
            self.entries[i].count = data.shape[0] // size
            self.entries[i].data = &data[0] if data.shape[0] else NULL

    def __dealloc__(self):
        free(self.entries)


# ---- Cache ----

cdef icecore_cache_options cache_options_of(int64_t heads, int64_t dim, int64_t value_dim, int dtype, int64_t near_keys,
                                            float tolerance, int64_t block, int64_t sinks, int64_t cell_size,
                                            uint64_t seed, const float[:, :, ::1] moments) noexcept:
    cdef icecore_cache_options o
    o.heads, o.dim, o.value_dim, o.dtype = heads, dim, value_dim, <icecore_dtype>dtype
    o.near_keys, o.tolerance, o.block, o.sinks, o.cell_size, o.seed = near_keys, tolerance, block, sinks, cell_size, seed
    o.moments = &moments[0, 0, 0] if moments is not None else NULL
    return o


cdef class Cache:
    cdef icecore_cache *cache
    cdef object memory     # what a mapped cache and its forks read

    def __dealloc__(self):
        icecore_cache_free(self.cache)

    @staticmethod
    def create(heads, dim, value_dim, dtype, near_keys, tolerance, block, sinks, cell_size, seed, moments):
        cdef icecore_cache_options o = cache_options_of(heads, dim, value_dim, dtype, near_keys, tolerance, block, sinks, cell_size, seed,
                                                        moments)
        cdef Cache new = Cache.__new__(Cache)
        check(icecore_cache_create(&o, &new.cache))
        return new

    @staticmethod
    def map(heads, dim, value_dim, dtype, near_keys, tolerance, block, sinks, cell_size, seed, moments, int64_t count, list arrays,
            bint own):
        """`count` caches of `arrays` (as of Arrays), in memory of their `own` or not. (list, None) or (None, reason)."""
        cdef icecore_cache_options o = cache_options_of(heads, dim, value_dim, dtype, near_keys, tolerance, block, sinks, cell_size, seed,
                                                        moments)
        cdef Arrays given = Arrays(arrays)
        cdef Cache new
        cdef char reason[256]
        cdef icecore_status status
        if given.fault is not None:
            return None, given.fault
        cdef icecore_cache **caches = <icecore_cache **>malloc(sizeof(icecore_cache *) * count)
        if caches == NULL:
            raise MemoryError("icecore: out of memory")
        try:
            with nogil:
                status = icecore_cache_map(&o, given.entries, given.count, own, caches, count, reason, sizeof(reason))
            if status == ICECORE_ERROR_VALUE:
                return None, reason.decode(errors="replace")
            check(status)
            result = [Cache.__new__(Cache) for _ in range(count)]
            for i in range(count):
                new = result[i]
                new.cache = caches[i]
                new.memory = None if own else arrays
            return result, None
        finally:
            free(caches)

    @staticmethod
    def write(list caches, function):
        """As Index.write, all caches together."""
        cdef list error = []
        cdef callback c
        cdef Cache one
        cdef icecore_status status
        cdef int64_t count = len(caches)
        c.function = <void *>function
        c.error = <void *>error
        cdef icecore_cache **pointers = <icecore_cache **>malloc(sizeof(icecore_cache *) * count)
        if pointers == NULL:
            raise MemoryError("icecore: out of memory")
        for i, one in enumerate(caches):
            pointers[i] = one.cache
        try:
            with nogil:
                status = icecore_cache_write(pointers, count, call_write, &c)
        finally:
            free(pointers)
        if error:
            raise error[0]
        check(status)

    def append(self, int dtype, const element[:, :, :, :] keys, const element[:, :, :, :] values, const element[:, :, :, :] queries):
        """(1, heads, tokens, dim), (1, heads, tokens, value_dim) and (1, query heads, tokens, dim) or None."""
        cdef icecore_tensor key = tensor(keys), value = tensor(values), query
        cdef int64_t count = keys.shape[2], query_heads = 0
        cdef icecore_status status
        memset(&query, 0, sizeof(query))
        if queries is not None:
            query, query_heads = tensor(queries), queries.shape[1]
        with nogil:
            status = icecore_cache_append(self.cache, <icecore_dtype>dtype, key, value, query, query_heads, count)
        check(status)

    def attend(self, int dtype, const element[:, :, :, :] query, element[:, :, :, :] out, float[:, :, ::1] lse, double scale,
               int32_t[:, :, ::1] near_count, float[:, :, ::1] captured_mass, float[:, :, ::1] missed_bound,
               int32_t[:, :, ::1] summaries, float[:, ::1] error, float[:, ::1] standard_error, int32_t[:, ::1] error_rows,
               const float[::1] head_tolerance, const float[::1] head_threshold, int threads):
        """(1, query heads, queries, dim) and (1, query heads, queries, value_dim)."""
        cdef icecore_attention p
        cdef icecore_near_far report
        memset(&p, 0, sizeof(p))
        memset(&report, 0, sizeof(report))
        p.dtype = <icecore_dtype>dtype
        p.query_heads, p.queries = query.shape[1], query.shape[2]
        p.query, p.out = tensor(query), tensor[element](out)
        p.lse = &lse[0, 0, 0] if lse is not None and lse.size else NULL
        p.scale, p.threads = <float>scale, threads
        report.near_count = &near_count[0, 0, 0] if near_count is not None and near_count.size else NULL
        report.captured_mass = &captured_mass[0, 0, 0] if captured_mass is not None and captured_mass.size else NULL
        report.missed_bound = &missed_bound[0, 0, 0] if missed_bound is not None and missed_bound.size else NULL
        report.summaries = &summaries[0, 0, 0] if summaries is not None and summaries.size else NULL
        report.error = &error[0, 0] if error is not None and error.size else NULL
        report.standard_error = &standard_error[0, 0] if standard_error is not None and standard_error.size else NULL
        report.error_rows = &error_rows[0, 0] if error_rows is not None and error_rows.size else NULL
        report.head_tolerance = &head_tolerance[0] if head_tolerance is not None and head_tolerance.size else NULL
        report.head_threshold = &head_threshold[0] if head_threshold is not None and head_threshold.size else NULL
        cdef icecore_status status
        with nogil:
            status = icecore_cache_attend(self.cache, &p, &report)
        check(status)

    def truncate(self, int64_t length, int threads):
        cdef icecore_status status
        with nogil:
            status = icecore_cache_truncate(self.cache, length, threads)
        check(status)

    def evictable(self, int64_t before):
        cdef int64_t end
        cdef icecore_status status
        with nogil:
            status = icecore_cache_evictable(self.cache, before, &end)
        check(status)
        return end

    def evict(self, int64_t before):
        cdef int64_t evicted
        cdef icecore_status status
        with nogil:
            status = icecore_cache_evict(self.cache, before, &evicted)
        check(status)
        return evicted

    def fork(self):
        cdef Cache new = Cache.__new__(Cache)
        cdef icecore_status status
        with nogil:
            status = icecore_cache_fork(self.cache, &new.cache)
        check(status)
        new.memory = self.memory
        return new

    def state(self):
        cdef icecore_cache_state s
        cdef icecore_status status
        with nogil:
            status = icecore_cache_get_state(self.cache, &s)
        check(status)
        return s

    def validate(self):
        cdef const char *fault
        cdef icecore_status status
        with nogil:
            status = icecore_cache_validate(self.cache, &fault)
        check(status)
        return None if fault == NULL else fault.decode()


# ---- Segments ----

cdef bytes copy_of(const void *data, int64_t count, size_t size):
    return PyBytes_FromStringAndSize(<const char *>data, <Py_ssize_t>(count * size))


cdef dict nodes_of(icecore_nodes_view *nodes, icecore_segment_view *view):
    cdef size_t element = sizeof(float) if view.mean_dtype == 0 else sizeof(uint16_t)
    return {
        "offset": copy_of(nodes.offset, nodes.count + 1, sizeof(int64_t)),
        "mean_key": copy_of(nodes.mean_key, nodes.count * view.dim, element),
        "mean_value": copy_of(nodes.mean_value, nodes.count * view.value_dim, element),
        "variance": copy_of(nodes.variance, nodes.count, sizeof(float)),
        "radius": copy_of(nodes.radius, nodes.count, sizeof(float)),
        "log2_count": copy_of(nodes.log2_count, nodes.count, sizeof(float)),
        "log2_weight": copy_of(nodes.log2_weight, nodes.count, sizeof(float)),
    }


def build_segment(const float[:, ::1] keys, const float[:, ::1] values, int storage, moments, int64_t cell_size, uint64_t seed):
    """The arrays of a segment (icecore_segment_view) as bytes, by name; "cell" and "parent" are such dicts.

    `storage`: FLOAT32 or INT8; `moments`: float32 (dim, dim), or None.
    """
    cdef icecore_segment *segment = NULL
    cdef int64_t count = keys.shape[0], dim = keys.shape[1], value_dim = values.shape[1]
    cdef const float *key_data = &keys[0, 0] if keys.size else NULL
    cdef const float *value_data = &values[0, 0] if values.size else NULL
    cdef int64_t key_bytes = 4 * dim if storage == 0 else dim + (dim + 15) // 16 * 2
    cdef int64_t value_bytes = 4 * value_dim if storage == 0 else value_dim + (value_dim + 15) // 16 * 2
    cdef icecore_status status
    cdef const float[:, ::1] given = moments
    if values.shape[0] != count or (moments is not None and (given.shape[0] != dim or given.shape[1] != dim)):
        check(ICECORE_ERROR_VALUE)
    cdef const float *moments_data = &given[0, 0] if moments is not None else NULL
    with nogil:
        status = icecore_segment_build(<icecore_dtype>0, key_data, dim, value_data, value_dim, count, dim, value_dim,
                                       <icecore_dtype>storage, moments_data, cell_size, seed, &segment)
    check(status)
    cdef icecore_segment_view view = icecore_segment_get(segment)
    try:
        return {
            "order": copy_of(view.order, view.count, sizeof(int32_t)),
            "keys": copy_of(view.keys, view.count, key_bytes),
            "values": copy_of(view.values, view.count, value_bytes),
            "metric": copy_of(view.metric, dim, sizeof(float)),
            "component_variance": copy_of(view.component_variance, dim, sizeof(float)),
            "centre": copy_of(view.centre, dim, sizeof(float)),
            "cell": nodes_of(&view.cell, &view),
            "parent": nodes_of(&view.parent, &view),
        }
    finally:
        icecore_segment_free(segment)


# ---- Index ----

cdef icecore_index_options options_of(int64_t dim, int metric, int composites, int simples, int levels, double promotion, int dtype,
                                      uint64_t seed) noexcept:
    cdef icecore_index_options o
    o.dim, o.metric, o.composites, o.simples, o.levels = dim, <icecore_metric>metric, composites, simples, levels
    o.promotion, o.dtype, o.seed = promotion, <icecore_dtype>dtype, seed
    return o


cdef class Index:
    cdef icecore_index *index
    cdef object memory     # what a mapped index reads

    def __dealloc__(self):
        icecore_index_free(self.index)

    @staticmethod
    def create(dim, metric, composites, simples, levels, promotion, dtype, seed):
        cdef icecore_index_options o = options_of(dim, metric, composites, simples, levels, promotion, dtype, seed)
        cdef Index new = Index.__new__(Index)
        check(icecore_index_create(&o, &new.index))
        return new

    @staticmethod
    def map(dim, metric, composites, simples, levels, promotion, dtype, seed, list arrays):
        """`arrays` as of Arrays. (index, None) or (None, reason)."""
        cdef icecore_index_options o = options_of(dim, metric, composites, simples, levels, promotion, dtype, seed)
        cdef Index new = Index.__new__(Index)
        cdef Arrays given = Arrays(arrays)
        cdef char reason[256]
        if given.fault is not None:
            return None, given.fault
        cdef icecore_status status
        with nogil:
            status = icecore_index_map(&o, given.entries, given.count, &new.index, reason, sizeof(reason))
        if status == ICECORE_ERROR_VALUE:
            return None, reason.decode(errors="replace")
        check(status)
        new.memory = arrays
        return new, None

    def copy(self):
        cdef Index new = Index.__new__(Index)
        cdef icecore_status status
        with nogil:
            status = icecore_index_copy(self.index, &new.index)
        check(status)
        return new

    def reserve(self, int64_t count):
        cdef icecore_status status
        with nogil:
            status = icecore_index_reserve(self.index, count)
        check(status)

    def add(self, const float[:, ::1] vectors, const int64_t[::1] ids, bint replace, progress, int threads):
        """`ids` None: counting up, and the first of them is returned."""
        cdef int64_t count = vectors.shape[0], place = 0, none = 0
        cdef const float *data = &vectors[0, 0] if vectors.size else NULL
        cdef const int64_t *names = NULL
        cdef list error = []
        cdef callback c
        cdef icecore_progress told = NULL
        cdef icecore_status status
        if ids is not None:
            names = &ids[0] if count else &none
        c.function = <void *>progress
        c.error = <void *>error
        if progress is not None:
            told = call_progress
        with nogil:
            status = icecore_index_add(self.index, data, names, count, replace, threads, told, &c, &place)
        if error:
            raise error[0]
        check(status, ids[place] if ids is not None and count else None)
        return place

    def remove(self, const int64_t[::1] ids, bint absent_too, int threads):
        """How many were removed."""
        cdef int64_t count = ids.shape[0], place = 0
        cdef const int64_t *names = &ids[0] if count else NULL
        cdef icecore_status status
        with nogil:
            status = icecore_index_remove(self.index, names, count, absent_too, threads, &place)
        check(status, ids[place] if status != ICECORE_OK and count else None)
        return place

    def compact(self, int threads):
        cdef icecore_status status
        with nogil:
            status = icecore_index_compact(self.index, threads)
        check(status)

    def clear(self):
        cdef icecore_status status
        with nogil:
            status = icecore_index_clear(self.index)
        check(status)

    def search(self, const float[:, ::1] queries, int64_t k, int64_t visit, int64_t retrieve, int64_t field_of_view, bint extend,
               bint exact, const int64_t[::1] allowed, const int64_t[::1] excluded, int threads, int64_t[:, ::1] ids,
               float[:, ::1] scores, int64_t[::1] counts, int64_t[::1] visited):
        cdef icecore_search s
        cdef int64_t count = queries.shape[0], none = 0
        if count == 0:
            return
        s.k, s.visit, s.retrieve, s.field_of_view, s.extend = k, visit, retrieve, field_of_view, extend
        s.exact, s.threads = exact, threads
        s.allowed, s.allowed_count = NULL, 0
        if allowed is not None:
            s.allowed_count = allowed.shape[0]
            s.allowed = &allowed[0] if allowed.shape[0] else &none
        s.excluded, s.excluded_count = NULL, 0
        if excluded is not None:
            s.excluded_count = excluded.shape[0]
            s.excluded = &excluded[0] if excluded.shape[0] else NULL
        cdef const float *query_data = &queries[0, 0]
        cdef int64_t *id_data = &ids[0, 0]
        cdef float *score_data = &scores[0, 0]
        cdef int64_t *count_data = &counts[0]
        cdef int64_t *visits = &visited[0] if visited is not None else NULL
        cdef icecore_status status
        with nogil:
            status = icecore_index_search(self.index, query_data, count, &s, id_data, score_data, count_data, visits)
        check(status)

    def get(self, const int64_t[::1] ids, float[:, ::1] vectors):
        cdef int64_t place = 0, count = ids.shape[0]
        cdef icecore_status status
        if count == 0:
            return
        cdef const int64_t *names = &ids[0]
        cdef float *target = &vectors[0, 0]
        with nogil:
            status = icecore_index_get(self.index, names, count, target, &place)
        check(status, ids[place])

    def contains(self, const int64_t[::1] ids, uint8_t[::1] present):
        cdef icecore_status status
        cdef int64_t count = ids.shape[0]
        if count == 0:
            return
        cdef const int64_t *names = &ids[0]
        cdef uint8_t *target = &present[0]
        with nogil:
            status = icecore_index_contains(self.index, names, count, target)
        check(status)

    def state(self):
        cdef icecore_index_state s
        cdef icecore_status status
        with nogil:
            status = icecore_index_get_state(self.index, &s)
        check(status)
        return s

    def ids(self, int64_t[::1] ids):
        """Fills `ids` and returns how many there are, which may be more."""
        cdef int64_t *target = &ids[0] if ids.shape[0] else NULL
        cdef int64_t capacity = ids.shape[0], found = 0
        cdef icecore_status status
        with nogil:
            status = icecore_index_ids(self.index, target, capacity, &found)
        check(status)
        return found

    def validate(self):
        """None, or what is wrong."""
        cdef char reason[256]
        cdef icecore_status status
        with nogil:
            status = icecore_index_validate(self.index, reason, sizeof(reason))
        if status == ICECORE_ERROR_VALUE:
            return reason.decode(errors="replace")
        check(status)

    def write(self, function):
        """Calls function(table, None) with the table of arrays, (name, type, count) each, then function(None, bytes) piece by piece."""
        cdef list error = []
        cdef callback c
        cdef icecore_status status
        c.function = <void *>function
        c.error = <void *>error
        with nogil:
            status = icecore_index_write(self.index, call_write, &c)
        if error:
            raise error[0]
        check(status)
