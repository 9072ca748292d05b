# What a segment holds, for tests.


cdef bytes copy_of(const void *data, int64_t count, size_t size):
    return PyBytes_FromStringAndSize(<const char *>data, <Py_ssize_t>(count * size))


cdef int64_t row_bytes(int storage, int64_t dim):
    cdef int64_t groups = (dim + 15) // 16
    if storage == ICECORE_FLOAT32:
        return 4 * dim
    return 2 * groups + (dim if storage == ICECORE_INT8 else 8 * groups)


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

    `storage`: FLOAT32, INT8 or INT4; `moments`: float32 (dim, dim), or None.
    """
    cdef icecore_segment *segment = NULL
    cdef int64_t count = keys.shape[0], dim = keys.shape[1], value_dim = values.shape[1]
    cdef icecore_segment_source source
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
            "keys": copy_of(view.keys, view.count, row_bytes(storage, dim)),
            "values": copy_of(view.values, view.count, row_bytes(storage, value_dim)),
            "metric": copy_of(view.metric, dim, sizeof(float)),
            "component_variance": copy_of(view.component_variance, dim, sizeof(float)),
            "centre": copy_of(view.centre, dim, sizeof(float)),
            "cell": nodes_of(&view.cell, &view),
            "parent": nodes_of(&view.parent, &view),
        }
    finally:
        icecore_segment_free(segment)
