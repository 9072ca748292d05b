"""The C core behind typed memoryviews: unwrap, one call without the GIL, check the status.  No logic lives here."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint64_t
from icecore_c cimport *

cdef extern from "Python.h":
    int PyErr_CheckSignals() noexcept
    object PyBytes_FromStringAndSize(const char *data, Py_ssize_t size)

FLOAT32 = 0
FLOAT16 = 1
BFLOAT16 = 2

# Storage: float32 numbers, or 16-bit floats as bit patterns.
ctypedef fused element:
    float
    uint16_t


cdef int check_signals() noexcept nogil:
    with gil:
        return PyErr_CheckSignals()


icecore_set_interrupt_check(check_signals)


cdef int check(icecore_status status) except -1:
    """The one place where statuses become Python errors."""
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
    p.dtype = <icecore_dtype>dtype
    p.batch, p.query_heads, p.queries, p.dim = query.shape[0], query.shape[1], query.shape[2], query.shape[3]
    p.key_heads, p.keys, p.value_dim = key.shape[1], key.shape[2], value.shape[3]
    p.query, p.key, p.value = tensor(query), tensor(key), tensor(value)
    p.out = tensor[element](out)
    p.lse = &lse[0, 0, 0] if lse is not None and lse.size else NULL
    p.scale, p.causal, p.window, p.sinks, p.threads = <float>scale, causal, window, sinks, threads
    p.mask_kind, p.mask = <icecore_mask_kind>0, NULL
    p.mask_batch_stride = p.mask_head_stride = p.mask_row_stride = p.mask_key_stride = 0
    return p


def attend_exact(int dtype, const element[:, :, :, :] query, const element[:, :, :, :] key,
                 const element[:, :, :, :] value, element[:, :, :, :] out, float[:, :, ::1] lse, double scale, bint causal,
                 int64_t window, int64_t sinks, const uint8_t[:, :, :, :] keep, const float[:, :, :, :] bias, int threads):
    """`keep`: bool mask as bytes; `bias`: additive mask; each (batch, heads, queries, keys), either may be None."""
    cdef icecore_attention p = problem_of(dtype, query, key, value, out, lse, scale, causal, window, sinks, threads)
    if keep is not None and keep.size:
        p.mask_kind, p.mask = <icecore_mask_kind>1, &keep[0, 0, 0, 0]
        p.mask_batch_stride, p.mask_head_stride = keep.strides[0], keep.strides[1]
        p.mask_row_stride, p.mask_key_stride = keep.strides[2], keep.strides[3]
    elif bias is not None and bias.size:
        p.mask_kind, p.mask = <icecore_mask_kind>2, &bias[0, 0, 0, 0]
        p.mask_batch_stride, p.mask_head_stride = bias.strides[0] // 4, bias.strides[1] // 4
        p.mask_row_stride, p.mask_key_stride = bias.strides[2] // 4, bias.strides[3] // 4
    cdef icecore_status status
    with nogil:
        status = icecore_attend_exact(&p)
    check(status)


def attend_near_far(int dtype, const element[:, :, :, :] query, const element[:, :, :, :] key,
                    const element[:, :, :, :] value, element[:, :, :, :] out, float[:, :, ::1] lse, double scale,
                    bint causal, int64_t sinks, int64_t near_keys, int64_t visit, bint far_field, int64_t block,
                    int64_t cell_size, uint64_t seed, int32_t[:, :, ::1] near_count, float[:, :, ::1] captured_mass, int threads):
    cdef icecore_attention p = problem_of(dtype, query, key, value, out, lse, scale, causal, -1, sinks, threads)
    cdef icecore_near_far options
    options.near_keys, options.visit, options.far_field = near_keys, visit, far_field
    options.block, options.cell_size, options.seed = block, cell_size, seed
    options.near_count = &near_count[0, 0, 0] if near_count is not None and near_count.size else NULL
    options.captured_mass = &captured_mass[0, 0, 0] if captured_mass is not None and captured_mass.size else NULL
    cdef icecore_status status
    with nogil:
        status = icecore_attend_near_far(&p, &options)
    check(status)


# ---- Segments ----

cdef bytes copy_of(const void *data, int64_t count, size_t size):
    return PyBytes_FromStringAndSize(<const char *>data, <Py_ssize_t>(count * size))


def build_segment(const float[:, ::1] keys, const float[:, ::1] values, int64_t cell_size, uint64_t seed):
    """The arrays of a segment (icecore_segment_view) as bytes, by name."""
    cdef icecore_segment *segment = NULL
    cdef int64_t count = keys.shape[0], dim = keys.shape[1], value_dim = values.shape[1]
    cdef const float *key_data = &keys[0, 0] if keys.size else NULL
    cdef const float *value_data = &values[0, 0] if values.size else NULL
    cdef icecore_status status
    if values.shape[0] != count:
        check(ICECORE_ERROR_VALUE)
    with nogil:
        status = icecore_segment_build(<icecore_dtype>0, key_data, dim, value_data, value_dim, count, dim, value_dim,
                                       cell_size, seed, &segment)
    check(status)
    cdef icecore_segment_view view = icecore_segment_get(segment)
    try:
        return {
            "offset": copy_of(view.offset, view.cells + 1, sizeof(int64_t)),
            "order": copy_of(view.order, view.count, sizeof(int32_t)),
            "keys": copy_of(view.keys, view.count * view.dim, sizeof(float)),
            "values": copy_of(view.values, view.count * view.value_dim, sizeof(float)),
            "mean_key": copy_of(view.mean_key, view.cells * view.dim, sizeof(float)),
            "mean_value": copy_of(view.mean_value, view.cells * view.value_dim, sizeof(float)),
            "variance": copy_of(view.variance, view.cells, sizeof(float)),
            "radius": copy_of(view.radius, view.cells, sizeof(float)),
            "log2_count": copy_of(view.log2_count, view.cells, sizeof(float)),
        }
    finally:
        icecore_segment_free(segment)
