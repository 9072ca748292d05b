# The k-NN index.


cdef class IndexOptions:
    """icecore_index_options."""
    cdef icecore_index_options c

    def __cinit__(self, *, int64_t dim, int metric, int composites, int simples, int levels, double promotion, int dtype,
                  uint64_t seed):
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
        """Calls function(table, None), of (name, type, count) of each array, then function(None, bytes) piece by piece."""
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
