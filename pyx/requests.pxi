# What a call of attention asks for.  Each class holds a C struct, filled by keywords of its fields' names, and the arrays that
# it points to; any of these may be None.  A new field: here, in icecore_c.pxd and in _native.pyi.


cdef class Problem:
    """icecore_attention.

    query, key, value, out: (batch, heads, length, width), without key and value where a cache has them; lse: (batch, heads,
    queries); sink_logits and alibi_slopes: (heads,); ranges: (batch, queries, 2), the pairs contiguous; keep, a bool mask as
    bytes, or bias, an additive one: (batch, heads, queries, keys).
    """
    cdef icecore_attention c
    cdef tuple arrays

    def __cinit__(self, *, int dtype, query, key=None, value=None, out, float[:, :, ::1] lse=None, float scale,
                  float softcap=0, const float[::1] sink_logits=None, const float[::1] alibi_slopes=None, bint causal=False,
                  int64_t window_left=-1, int64_t window_right=-1, int64_t sinks=0, const int64_t[:, :, :] ranges=None,
                  const uint8_t[:, :, :, :] keep=None, const float[:, :, :, :] bias=None, int threads=0):
        cdef icecore_attention *c = &self.c
        cdef int64_t shape[4]
        self.arrays = query, key, value, out, lse, sink_logits, alibi_slopes, ranges, keep, bias
        c.dtype = c.key_dtype = <icecore_dtype>dtype
        fill_tensor(&c.query, shape, query, dtype)
        c.batch, c.query_heads, c.queries, c.dim = shape[0], shape[1], shape[2], shape[3]
        fill_tensor(&c.key, shape, key, dtype)
        c.key_heads, c.keys = shape[1], shape[2]
        fill_tensor(&c.value, shape, value, dtype)
        c.value_dim = shape[3]
        fill_tensor(&c.out, shape, out, dtype, PyBUF_WRITABLE)
        c.lse, c.sink_logits, c.softcap = of_cube(lse), of_list(sink_logits), softcap
        c.alibi_slopes = of_list(alibi_slopes)
        c.scale, c.causal, c.sinks, c.threads = scale, causal, sinks, threads
        c.window_left, c.window_right = window_left, window_right
        if ranges is not None and ranges.size:
            c.ranges = &ranges[0, 0, 0]
            c.range_batch_stride, c.range_row_stride = ranges.strides[0] // 8, ranges.strides[1] // 8
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
                  const float[::1] head_tolerance=None, const float[::1] head_threshold=None, float near_price=0, float node_price=0, float rounded_price=0,
                  const float[:, :, ::1] moments=None, bint rounding=False, int64_t block=1, int64_t cell_size=1,
                  const int64_t[::1] head_cell_size=None, uint64_t seed=0):
        cdef icecore_near_far *c = &self.c
        self.arrays = head_tolerance, head_threshold, moments, head_cell_size
        c.near_keys = near_keys
        c.tolerance, c.head_tolerance, c.head_threshold = tolerance, of_list(head_tolerance), of_list(head_threshold)
        c.near_price, c.node_price, c.rounded_price = near_price, node_price, rounded_price
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
