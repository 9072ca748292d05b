# Attention in one call: exact, near/far, and what near/far is compared with.

ctypedef fused index_type:
    int32_t
    int64_t


def attend_exact(Problem problem not None):
    cdef icecore_status status
    with nogil:
        status = icecore_attend_exact(&problem.c)
    check(status)


def multiplies_bfloat16(int64_t dim, int64_t value_dim):
    return bool(icecore_multiplies_bfloat16(dim, value_dim))


def multiplies_in_thirds(int64_t dim, int64_t value_dim, int64_t rows):
    return bool(icecore_multiplies_in_thirds(dim, value_dim, rows))


def attend_rounded(Problem problem not None, NearFar options not None, Report report not None):
    cdef icecore_status status
    with nogil:
        status = icecore_attend_rounded(&problem.c, &options.c, &report.c)
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


def attend_xattention(Problem problem not None, int64_t stride, double threshold, int32_t[:, :, ::1] near_count):
    cdef int32_t *counts = of_cube(near_count)
    cdef icecore_status status
    with nogil:
        status = icecore_attend_xattention(&problem.c, stride, threshold, counts)
    check(status)


def attend_zeta(Problem problem not None, int64_t near_keys, uint64_t seed, int32_t[:, :, ::1] near_count):
    cdef int32_t *counts = of_cube(near_count)
    cdef icecore_status status
    with nogil:
        status = icecore_attend_zeta(&problem.c, near_keys, seed, counts)
    check(status)


def attend_vattention(Problem problem not None, int64_t near_keys, int64_t sinks, int64_t window, double epsilon, double delta,
                      uint64_t seed, int32_t[:, :, ::1] near_count):
    cdef icecore_vattention options
    options.near_keys, options.sinks, options.window, options.epsilon, options.delta = near_keys, sinks, window, epsilon, delta
    options.seed = seed
    cdef int32_t *counts = of_cube(near_count)
    cdef icecore_status status
    with nogil:
        status = icecore_attend_vattention(&problem.c, &options, counts)
    check(status)


def attend_arkvale(Problem problem not None, int64_t near_keys, int64_t page, int32_t[:, :, ::1] near_count):
    cdef int32_t *counts = of_cube(near_count)
    cdef icecore_status status
    with nogil:
        status = icecore_attend_arkvale(&problem.c, near_keys, page, counts)
    check(status)


def attend_retroinfer(Problem problem not None, double retrieval, double estimation, int64_t segment, int64_t sinks,
                      int64_t local, uint64_t seed, int32_t[:, :, ::1] near_count):
    cdef icecore_retroinfer options
    options.segment, options.sinks, options.local = segment, sinks, local
    options.retrieval, options.estimation, options.seed = retrieval, estimation, seed
    cdef int32_t *counts = of_cube(near_count)
    cdef icecore_status status
    with nogil:
        status = icecore_attend_retroinfer(&problem.c, &options, counts)
    check(status)


def attend_pdci(Problem problem not None, int64_t near_keys, int64_t visit, uint64_t seed, int32_t[:, :, ::1] near_count):
    cdef int32_t *counts = of_cube(near_count)
    cdef icecore_status status
    with nogil:
        status = icecore_attend_pdci(&problem.c, near_keys, visit, seed, counts)
    check(status)


def attend_sparq(Problem problem not None, int64_t near_keys, int64_t components, int64_t local,
                 int32_t[:, :, ::1] near_count):
    cdef int32_t *counts = of_cube(near_count)
    cdef icecore_status status
    with nogil:
        status = icecore_attend_sparq(&problem.c, near_keys, components, local, counts)
    check(status)


def attend_magicpig(Problem problem not None, int64_t bits, int64_t tables, int64_t sinks, int64_t local, uint64_t seed,
                    int32_t[:, :, ::1] near_count):
    cdef int32_t *counts = of_cube(near_count)
    cdef icecore_status status
    with nogil:
        status = icecore_attend_magicpig(&problem.c, bits, tables, sinks, local, seed, counts)
    check(status)


def indexer_top_k(int dtype, query, key, const float[:, :, ::1] weights not None, bint causal, int32_t[:, :, ::1] indices not None,
                  int threads):
    """query (batch, heads, queries, dim), key (batch, 1, keys, dim), weights (batch, queries, heads); fills `indices` (batch,
    queries, count)."""
    cdef icecore_indexer x
    cdef int64_t shape[4]
    x.dtype, x.causal, x.threads = <icecore_dtype>dtype, causal, threads
    fill_tensor(&x.key, shape, key, dtype)
    x.keys = shape[2]
    fill_tensor(&x.query, shape, query, dtype)
    x.batch, x.heads, x.queries, x.dim = shape[0], shape[1], shape[2], shape[3]
    x.weights, x.indices, x.count = of_cube(weights), of_cube(indices), indices.shape[2]
    cdef icecore_status status
    with nogil:
        status = icecore_indexer_top_k(&x)
    check(status)


def attend_indices(Problem problem not None, const index_type[:, :, :, :, :] indices, int64_t block):
    """`indices`: (batch, key_heads, query_heads / key_heads, queries, count), of single keys where `block` is 0.  The first bad
    one's place in C order, or None."""
    cdef icecore_indices x
    cdef int64_t place = 0
    cdef Py_ssize_t size = sizeof(index_type)
    x.data = &indices[0, 0, 0, 0, 0] if indices.size else NULL
    x.is_int64, x.count, x.block = size == 8, indices.shape[4], block
    x.batch_stride, x.key_head_stride = indices.strides[0] // size, indices.strides[1] // size
    x.member_stride, x.row_stride = indices.strides[2] // size, indices.strides[3] // size
    x.index_stride = indices.strides[4] // size
    cdef icecore_status status
    with nogil:
        status = icecore_attend_indices(&problem.c, &x, &place)
    if status == ICECORE_ERROR_INDEX:
        return place
    check(status)
    return None
