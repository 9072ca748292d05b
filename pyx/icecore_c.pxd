# The C interface of csrc/include/icecore.h, which is its manual.
from libc.stdint cimport int32_t, int64_t, uint64_t

cdef extern from "icecore.h" nogil:
    ctypedef enum icecore_status:
        ICECORE_OK
        ICECORE_ERROR_MEMORY
        ICECORE_ERROR_VALUE
        ICECORE_ERROR_ISA
        ICECORE_INTERRUPTED

    ctypedef enum icecore_dtype:
        pass

    int icecore_built_isas(const char **names, int capacity)
    int icecore_usable_isas(const char **names, int capacity)
    const char *icecore_isa()
    icecore_status icecore_set_isa(const char *name)
    int icecore_has_openmp()
    int icecore_default_threads()
    void icecore_set_interrupt_check(int (*check)() noexcept nogil)
    int icecore_selftest(const char *isa, char *report, int64_t report_size)

    ctypedef struct icecore_tensor:
        void *data
        int64_t batch_stride, head_stride, row_stride

    ctypedef enum icecore_mask_kind:
        pass

    ctypedef struct icecore_attention:
        icecore_dtype dtype
        int64_t batch, query_heads, key_heads, queries, keys, dim, value_dim
        icecore_tensor query, key, value, out
        float *lse
        float scale
        int causal
        int64_t window
        int64_t sinks
        icecore_mask_kind mask_kind
        const void *mask
        int64_t mask_batch_stride, mask_head_stride, mask_row_stride, mask_key_stride
        int threads

    icecore_status icecore_attend_exact(const icecore_attention *problem)

    ctypedef struct icecore_near_far:
        int64_t near_keys, visit
        int far_field
        int64_t block, cell_size
        uint64_t seed
        int32_t *near_count
        float *captured_mass

    icecore_status icecore_attend_near_far(const icecore_attention *problem, const icecore_near_far *options)

    ctypedef struct icecore_segment:
        pass

    ctypedef struct icecore_segment_view:
        int64_t count, cells, dim, value_dim
        const int64_t *offset
        const int32_t *order
        const float *keys
        const float *values
        const float *mean_key
        const float *mean_value
        const float *variance
        const float *radius
        const float *log2_count

    icecore_status icecore_segment_build(icecore_dtype dtype, const void *keys, int64_t key_stride, const void *values,
                                         int64_t value_stride, int64_t count, int64_t dim, int64_t value_dim,
                                         int64_t cell_size, uint64_t seed, icecore_segment **result)
    void icecore_segment_free(icecore_segment *segment)
    icecore_segment_view icecore_segment_get(const icecore_segment *segment)
