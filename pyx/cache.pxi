# The cache of one layer: one sequence, or several that are attended together.


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
    def attend(list caches, const int64_t[:, ::1] rows, Problem problem not None, NearFar options not None,
               Report report not None):
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
