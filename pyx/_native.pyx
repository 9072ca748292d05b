"""The C core behind typed memoryviews: unwrap, one call without the GIL, check the status.  No logic lives here."""

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from icecore_c cimport *

cdef extern from "Python.h":
    int PyErr_CheckSignals() noexcept
    object PyBytes_FromStringAndSize(const char *data, Py_ssize_t size)

FLOAT32 = ICECORE_FLOAT32
FLOAT16 = ICECORE_FLOAT16
BFLOAT16 = ICECORE_BFLOAT16
INT8 = ICECORE_INT8

ctypedef fused index_type:
    int32_t
    int64_t

ctypedef fused number:
    float
    double
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


# ---- Requests ----
#
# Each class holds a C struct, filled by keywords of its fields' names, and the arrays that it points to; any of these may be None.
# A new field: here, in icecore_c.pxd and in _native.pyi.

# Where a contiguous array begins; NULL for None and where it is empty.
cdef number *of_list(const number[::1] array) noexcept:
    return <number *>&array[0] if array is not None and array.size else NULL


cdef number *of_matrix(const number[:, ::1] array) noexcept:
    return <number *>&array[0, 0] if array is not None and array.size else NULL


cdef number *of_cube(const number[:, :, ::1] array) noexcept:
    return <number *>&array[0, 0, 0] if array is not None and array.size else NULL


cdef int fill_tensor(icecore_tensor *t, int64_t *shape, array, int dtype, int flags=0) except -1:
    """`t` and the `shape` of a four-dimensional array of float32 or, for the other dtypes, of their bits; all 0 for None."""
    # by the buffer itself: a typed memoryview is an object, and four of them were a fifth of a small call's time
    cdef Py_buffer b
    cdef char kind = b"f" if dtype == ICECORE_FLOAT32 else b"H"
    cdef const char *format
    memset(t, 0, sizeof(icecore_tensor))
    memset(shape, 0, 4 * sizeof(int64_t))
    if array is None:
        return 0
    PyObject_GetBuffer(array, &b, PyBUF_FORMAT | PyBUF_STRIDES | flags)
    try:
        format = b.format + (b.format[0] == b"=")  # not aligned
        if b.ndim != 4 or format[0] != kind or format[1] != 0:
            raise ValueError(f"buffer has {b.ndim} dimensions of {b.format.decode()!r}; expected 4 of {chr(kind)!r}")
        for i in range(4):
            shape[i] = b.shape[i]
        t.data = b.buf if b.len else NULL
        t.batch_stride, t.head_stride, t.row_stride = b.strides[0] // b.itemsize, b.strides[1] // b.itemsize, b.strides[2] // b.itemsize
    finally:
        PyBuffer_Release(&b)
    return 0


cdef class Problem:
    """icecore_attention.

    query, key, value, out: (batch, heads, length, width), without key and value where a cache has them; lse: (batch, heads,
    queries); sink_logits: (heads,); keep, a bool mask as bytes, or bias, an additive one: (batch, heads, queries, keys).
    """
    cdef icecore_attention c
    cdef tuple arrays

    def __cinit__(self, *, int dtype, query, key=None, value=None, out, float[:, :, ::1] lse=None, float scale,
                  float softcap=0, const float[::1] sink_logits=None, bint causal=False, int64_t window=-1, int64_t sinks=0, const uint8_t[:, :, :, :] keep=None,
                  const float[:, :, :, :] bias=None, int threads=0):
        cdef icecore_attention *c = &self.c
        cdef int64_t shape[4]
        self.arrays = query, key, value, out, lse, sink_logits, keep, bias
        c.dtype = c.key_dtype = <icecore_dtype>dtype
        fill_tensor(&c.query, shape, query, dtype)
        c.batch, c.query_heads, c.queries, c.dim = shape[0], shape[1], shape[2], shape[3]
        fill_tensor(&c.key, shape, key, dtype)
        c.key_heads, c.keys = shape[1], shape[2]
        fill_tensor(&c.value, shape, value, dtype)
        c.value_dim = shape[3]
        fill_tensor(&c.out, shape, out, dtype, PyBUF_WRITABLE)
        c.lse, c.sink_logits, c.softcap = of_cube(lse), of_list(sink_logits), softcap
        c.scale, c.causal, c.window, c.sinks, c.threads = scale, causal, window, sinks, threads
        if keep is not None and keep.size:
            c.mask_kind, c.mask = ICECORE_MASK_BOOL, &keep[0, 0, 0, 0]
            c.mask_batch_stride, c.mask_head_stride = keep.strides[0], keep.strides[1]
            c.mask_row_stride, c.mask_key_stride = keep.strides[2], keep.strides[3]
        elif bias is not None and bias.size:
            c.mask_kind, c.mask = ICECORE_MASK_FLOAT32, &bias[0, 0, 0, 0]
            c.mask_batch_stride, c.mask_head_stride = bias.strides[0] // 4, bias.strides[1] // 4
            c.mask_row_stride, c.mask_key_stride = bias.strides[2] // 4, bias.strides[3] // 4


cdef class NearFar:
    """icecore_near_far."""
    cdef icecore_near_far c
    cdef tuple arrays

    def __cinit__(self, *, int64_t near_keys=1, float tolerance=0,
                  const float[::1] head_tolerance=None, const float[::1] head_threshold=None, float near_price=0, float node_price=0,
                  const float[:, :, ::1] moments=None, bint rounding=False, int64_t block=1, int64_t cell_size=1,
                  const int64_t[::1] head_cell_size=None, uint64_t seed=0):
        cdef icecore_near_far *c = &self.c
        self.arrays = head_tolerance, head_threshold, moments, head_cell_size
        c.near_keys = near_keys
        c.tolerance, c.head_tolerance, c.head_threshold = tolerance, of_list(head_tolerance), of_list(head_threshold)
        c.near_price, c.node_price = near_price, node_price
        c.moments, c.rounding, c.block = of_cube(moments), rounding, block
        c.cell_size, c.head_cell_size, c.seed = cell_size, of_list(head_cell_size), seed


cdef class Report:
    """icecore_report: (batch, heads, queries) each; error, standard_error and error_rows (batch, heads); seconds (3,)."""
    cdef icecore_report c
    cdef tuple arrays

    def __cinit__(self, *, int32_t[:, :, ::1] near_count=None, float[:, :, ::1] captured_mass=None,
                  float[:, :, ::1] missed_bound=None, int32_t[:, :, ::1] summaries=None, float[:, ::1] error=None,
                  float[:, ::1] standard_error=None, int32_t[:, ::1] error_rows=None, double[::1] seconds=None):
        cdef icecore_report *c = &self.c
        self.arrays = near_count, captured_mass, missed_bound, summaries, error, standard_error, error_rows, seconds
        c.near_count, c.summaries = of_cube(near_count), of_cube(summaries)
        c.captured_mass, c.missed_bound = of_cube(captured_mass), of_cube(missed_bound)
        c.error, c.standard_error, c.error_rows = of_matrix(error), of_matrix(standard_error), of_matrix(error_rows)
        c.seconds = of_list(seconds)


# ---- Attention ----

def attend_exact(Problem problem not None):
    cdef icecore_status status
    with nogil:
        status = icecore_attend_exact(&problem.c)
    check(status)


def attend_near_far(Problem problem not None, NearFar options not None, Report report not None):
    cdef icecore_status status
    with nogil:
        status = icecore_attend_near_far(&problem.c, &options.c, &report.c)
    check(status)


def near_far_count(NearFar options not None, int64_t query_heads, int64_t key_heads, int64_t queries, int64_t keys, bint causal,
                   int64_t sinks):
    """The steps (icecore_near_far_step) of such a call as bytes."""
    cdef icecore_attention p
    memset(&p, 0, sizeof(p))
    p.query_heads, p.key_heads, p.queries, p.keys, p.causal, p.sinks = query_heads, key_heads, queries, keys, causal, sinks
    cdef int64_t count = icecore_near_far_count(&p, &options.c, NULL, 0)
    cdef bytes steps = PyBytes_FromStringAndSize(NULL, count * <Py_ssize_t>sizeof(icecore_near_far_step))
    cdef char *data = steps
    icecore_near_far_count(&p, &options.c, <icecore_near_far_step *>data, count)
    return steps


def attend_pages(Problem problem not None, int64_t near_keys, int32_t[:, :, ::1] near_count):
    cdef int32_t *counts = of_cube(near_count)
    cdef icecore_status status
    with nogil:
        status = icecore_attend_pages(&problem.c, near_keys, counts)
    check(status)


def attend_top_k(Problem problem not None, int64_t near_keys, int32_t[:, :, ::1] near_count):
    cdef int32_t *counts = of_cube(near_count)
    cdef icecore_status status
    with nogil:
        status = icecore_attend_top_k(&problem.c, near_keys, counts)
    check(status)


def attend_minference(Problem problem not None, int64_t vertical, int64_t slash, int32_t[:, :, ::1] near_count):
    cdef int32_t *counts = of_cube(near_count)
    cdef icecore_status status
    with nogil:
        status = icecore_attend_minference(&problem.c, vertical, slash, counts)
    check(status)


def attend_block_sparse(Problem problem not None, int64_t near_keys, int32_t[:, :, ::1] near_count):
    cdef int32_t *counts = of_cube(near_count)
    cdef icecore_status status
    with nogil:
        status = icecore_attend_block_sparse(&problem.c, near_keys, counts)
    check(status)


def attend_pdci(Problem problem not None, int64_t near_keys, int64_t visit, uint64_t seed, int32_t[:, :, ::1] near_count):
    cdef int32_t *counts = of_cube(near_count)
    cdef icecore_status status
    with nogil:
        status = icecore_attend_pdci(&problem.c, near_keys, visit, seed, counts)
    check(status)


def attend_indices(Problem problem not None, const index_type[:, :, :, :, :] indices):
    """`indices`: (batch, key_heads, query_heads / key_heads, queries, count).  The place of the first bad one in C order, or None."""
    cdef icecore_indices x
    cdef int64_t place = 0
    cdef Py_ssize_t size = sizeof(index_type)
    x.data = &indices[0, 0, 0, 0, 0] if indices.size else NULL
    x.is_int64, x.count = size == 8, indices.shape[4]
    x.batch_stride, x.key_head_stride, x.member_stride = indices.strides[0] // size, indices.strides[1] // size, indices.strides[2] // size
    x.row_stride, x.index_stride = indices.strides[3] // size, indices.strides[4] // size
    cdef icecore_status status
    with nogil:
        status = icecore_attend_indices(&problem.c, &x, &place)
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

cdef class CacheOptions:
    """icecore_cache_options."""
    cdef icecore_cache_options c
    cdef object moments

    def __cinit__(self, *, int64_t heads, int64_t dim, int64_t value_dim, int dtype, int64_t near_keys, float tolerance,
                  int64_t block, int64_t sinks, int64_t cell_size, uint64_t seed, const float[:, :, ::1] moments=None):
        cdef icecore_cache_options *c = &self.c
        self.moments = moments
        c.heads, c.dim, c.value_dim, c.dtype = heads, dim, value_dim, <icecore_dtype>dtype
        c.near_keys, c.tolerance, c.block, c.sinks = near_keys, tolerance, block, sinks
        c.cell_size, c.seed, c.moments = cell_size, seed, of_cube(moments)


cdef icecore_cache **pointers_of(list caches) except NULL:
    """To be freed."""
    cdef Cache one
    cdef icecore_cache **pointers = <icecore_cache **>malloc(sizeof(icecore_cache *) * len(caches))
    if pointers == NULL:
        raise MemoryError("icecore: out of memory")
    for i, one in enumerate(caches):
        pointers[i] = one.cache
    return pointers


cdef class Cache:
    cdef icecore_cache *cache
    cdef object memory     # what a mapped cache and its forks read

    def __dealloc__(self):
        icecore_cache_free(self.cache)

    @staticmethod
    def create(CacheOptions options not None):
        cdef Cache new = Cache.__new__(Cache)
        check(icecore_cache_create(&options.c, &new.cache))
        return new

    @staticmethod
    def map(CacheOptions options not None, int64_t count, list arrays, bint own):
        """`count` caches of `arrays` (as of Arrays), in memory of their `own` or not. (list, None) or (None, reason)."""
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
                status = icecore_cache_map(&options.c, given.entries, given.count, own, caches, count, reason, sizeof(reason))
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
        cdef icecore_status status
        cdef int64_t count = len(caches)
        cdef icecore_cache **pointers = pointers_of(caches)
        c.function = <void *>function
        c.error = <void *>error
        try:
            with nogil:
                status = icecore_cache_write(pointers, count, call_write, &c)
        finally:
            free(pointers)
        if error:
            raise error[0]
        check(status)

    def append(self, int dtype, keys not None, values not None, queries):
        """(1, heads, tokens, dim), (1, heads, tokens, value_dim) and (1, query heads, tokens, dim) or None."""
        cdef icecore_tensor key, value, query
        cdef int64_t of_keys[4]
        cdef int64_t of_values[4]
        cdef int64_t of_queries[4]
        cdef icecore_status status
        fill_tensor(&key, of_keys, keys, dtype)
        fill_tensor(&value, of_values, values, dtype)
        fill_tensor(&query, of_queries, queries, dtype)
        with nogil:
            status = icecore_cache_append(self.cache, <icecore_dtype>dtype, key, value, query, of_queries[1], of_keys[2])
        check(status)

    @staticmethod
    def attend(list caches, const int64_t[:, ::1] rows, Problem problem not None, NearFar options not None, Report report not None):
        """All caches together; `rows`: the first one and the number of each cache's, or None for all of the problem's."""
        cdef icecore_status status
        cdef int64_t count = len(caches)
        cdef const icecore_rows *own = <icecore_rows *>of_matrix(rows)
        cdef icecore_cache **pointers = pointers_of(caches)
        try:
            with nogil:
                status = icecore_cache_attend(pointers, count, own, &problem.c, &options.c, &report.c)
        finally:
            free(pointers)
        check(status)

    def truncate(self, int64_t length, int threads):
        cdef icecore_status status
        with nogil:
            status = icecore_cache_truncate(self.cache, length, threads)
        check(status)

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

    def read(self, float[:, :, ::1] keys, float[:, :, ::1] values):
        """(heads, tokens held, dim) and (heads, tokens held, value_dim); either may be None."""
        cdef float *key = &keys[0, 0, 0] if keys is not None and keys.size else NULL
        cdef float *value = &values[0, 0, 0] if values is not None and values.size else NULL
        cdef int64_t count = keys.shape[1] if keys is not None else values.shape[1]
        cdef icecore_status status
        with nogil:
            status = icecore_cache_read(self.cache, key, value, count)
        check(status)

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
    cdef icecore_segment_source source
    cdef int64_t key_bytes = 4 * dim if storage == 0 else dim + (dim + 15) // 16 * 2
    cdef int64_t value_bytes = 4 * value_dim if storage == 0 else value_dim + (value_dim + 15) // 16 * 2
    cdef icecore_status status
    cdef const float[:, ::1] given = moments
    if values.shape[0] != count or (moments is not None and (given.shape[0] != dim or given.shape[1] != dim)):
        check(ICECORE_ERROR_VALUE)
    source.dtype, source.storage = ICECORE_FLOAT32, <icecore_dtype>storage
    source.keys, source.values, source.moments = of_matrix(keys), of_matrix(values), of_matrix(given)
    source.key_stride = source.dim = dim
    source.value_stride = source.value_dim = value_dim
    source.count, source.cell_size, source.seed = count, cell_size, seed
    with nogil:
        status = icecore_segment_build(&source, &segment)
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

cdef class IndexOptions:
    """icecore_index_options."""
    cdef icecore_index_options c

    def __cinit__(self, *, int64_t dim, int metric, int composites, int simples, int levels, double promotion, int dtype, uint64_t seed):
        cdef icecore_index_options *c = &self.c
        c.dim, c.metric, c.composites, c.simples, c.levels = dim, <icecore_metric>metric, composites, simples, levels
        c.promotion, c.dtype, c.seed = promotion, <icecore_dtype>dtype, seed


cdef class Search:
    """icecore_search."""
    cdef icecore_search c
    cdef int64_t none      # where empty lists begin
    cdef tuple arrays

    def __cinit__(self, *, int64_t k, int64_t visit=0, int64_t retrieve=0, int64_t field_of_view=0, bint extend=False,
                  bint exact=False, const int64_t[::1] allowed=None, const int64_t[::1] excluded=None, int threads=0):
        cdef icecore_search *c = &self.c
        self.arrays = allowed, excluded
        c.k, c.visit, c.retrieve, c.field_of_view, c.extend = k, visit, retrieve, field_of_view, extend
        c.exact, c.threads = exact, threads
        if allowed is not None:
            c.allowed_count = allowed.shape[0]
            c.allowed = &allowed[0] if allowed.shape[0] else &self.none
        if excluded is not None:
            c.excluded_count, c.excluded = excluded.shape[0], of_list(excluded)


cdef class Index:
    cdef icecore_index *index
    cdef object memory     # what a mapped index reads

    def __dealloc__(self):
        icecore_index_free(self.index)

    @staticmethod
    def create(IndexOptions options not None):
        cdef Index new = Index.__new__(Index)
        check(icecore_index_create(&options.c, &new.index))
        return new

    @staticmethod
    def map(IndexOptions options not None, list arrays):
        """`arrays` as of Arrays. (index, None) or (None, reason)."""
        cdef Index new = Index.__new__(Index)
        cdef Arrays given = Arrays(arrays)
        cdef char reason[256]
        if given.fault is not None:
            return None, given.fault
        cdef icecore_status status
        with nogil:
            status = icecore_index_map(&options.c, given.entries, given.count, &new.index, reason, sizeof(reason))
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
        cdef list error = []
        cdef callback c
        cdef icecore_addition added
        cdef icecore_status status
        memset(&added, 0, sizeof(added))
        added.vectors, added.count, added.replace, added.threads = of_matrix(vectors), count, replace, threads
        if ids is not None:
            added.ids = &ids[0] if count else &none
        c.function = <void *>progress
        c.error = <void *>error
        added.context = &c
        if progress is not None:
            added.progress = call_progress
        with nogil:
            status = icecore_index_add(self.index, &added, &place)
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

    def search(self, const float[:, ::1] queries, Search search not None, int64_t[:, ::1] ids, float[:, ::1] scores,
               int64_t[::1] counts, int64_t[::1] visited):
        cdef int64_t count = queries.shape[0]
        if count == 0:
            return
        cdef const float *query_data = &queries[0, 0]
        cdef int64_t *id_data = &ids[0, 0]
        cdef float *score_data = &scores[0, 0]
        cdef int64_t *count_data = &counts[0]
        cdef int64_t *visits = of_list(visited)
        cdef icecore_status status
        with nogil:
            status = icecore_index_search(self.index, query_data, count, &search.c, id_data, score_data, count_data, visits)
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
