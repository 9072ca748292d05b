# The C interface of csrc/include/icecore.h, which is its manual.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

cdef extern from "icecore.h" nogil:
    ctypedef enum icecore_status:
        ICECORE_OK
        ICECORE_ERROR_MEMORY
        ICECORE_ERROR_VALUE
        ICECORE_ERROR_ISA
        ICECORE_INTERRUPTED
        ICECORE_ERROR_ABSENT
        ICECORE_ERROR_EXISTS
        ICECORE_ERROR_REPEATED
        ICECORE_ERROR_READ_ONLY
        ICECORE_ERROR_INDEX
        ICECORE_ERROR_BUSY
        ICECORE_ERROR_FORKED
        ICECORE_ERROR_RANGE

    ctypedef enum icecore_dtype:
        ICECORE_FLOAT32
        ICECORE_FLOAT16
        ICECORE_BFLOAT16
        ICECORE_INT8
        ICECORE_INT4

    int icecore_built_isas(const char **names, int capacity)
    int icecore_usable_isas(const char **names, int capacity)
    const char *icecore_isa()
    icecore_status icecore_set_isa(const char *name)
    int icecore_has_openmp()
    int icecore_default_threads()
    void icecore_set_interrupt_check(int (*check)() noexcept nogil)
    int icecore_selftest(const char *isa, char *report, int64_t report_size)

    ctypedef struct icecore_array:
        char name[48]
        char type
        int64_t count
        const void *data

    ctypedef int (*icecore_write)(void *context, const icecore_array *table, int64_t arrays, const void *bytes,
                                  int64_t count) noexcept

    ctypedef struct icecore_tensor:
        void *data
        int64_t batch_stride, head_stride, row_stride

    ctypedef enum icecore_mask_kind:
        ICECORE_MASK_NONE
        ICECORE_MASK_BOOL
        ICECORE_MASK_FLOAT32

    ctypedef struct icecore_attention:
        icecore_dtype dtype, key_dtype
        int64_t batch, query_heads, key_heads, queries, keys, dim, value_dim
        icecore_tensor query, key, value, out
        float *lse
        float scale, softcap
        const float *sink_logits
        const float *alibi_slopes
        int causal
        int64_t window_left, window_right
        int64_t sinks
        const int64_t *ranges
        int64_t range_batch_stride, range_row_stride
        icecore_mask_kind mask_kind
        const void *mask
        int64_t mask_batch_stride, mask_head_stride, mask_row_stride, mask_key_stride
        int threads

    icecore_status icecore_attend_exact(const icecore_attention *problem)

    ctypedef struct icecore_near_far:
        int64_t near_keys
        float tolerance
        const float *head_tolerance
        const float *head_threshold
        float near_price, node_price, rounded_price
        const float *moments
        int rounding
        int64_t block, cell_size
        const int64_t *head_cell_size
        uint64_t seed

    ctypedef struct icecore_report:
        int32_t *near_count
        float *captured_mass
        float *missed_bound
        int32_t *summaries
        float *error
        float *standard_error
        int32_t *error_rows
        double *seconds

    int icecore_multiplies_bfloat16(int64_t dim, int64_t value_dim)
    int icecore_multiplies_in_thirds(int64_t dim, int64_t value_dim, int64_t rows)
    icecore_status icecore_attend_rounded(const icecore_attention *problem, const icecore_near_far *options,
                                          const icecore_report *report)
    icecore_status icecore_attend_near_far(const icecore_attention *problem, const icecore_near_far *options,
                                           const icecore_report *report)

    ctypedef struct icecore_near_far_step:
        pass

    int64_t icecore_near_far_count(const icecore_attention *problem, const icecore_near_far *options,
                                   icecore_near_far_step *steps, int64_t capacity)

    ctypedef struct icecore_indices:
        const void *data
        int is_int64
        int64_t count, block
        int64_t batch_stride, key_head_stride, member_stride, row_stride, index_stride
    icecore_status icecore_attend_top_k(const icecore_attention *problem, int64_t near_keys, int32_t *near_count) nogil
    icecore_status icecore_attend_minference(const icecore_attention *problem, int64_t vertical, int64_t slash, int32_t *near_count) nogil
    icecore_status icecore_attend_block_sparse(const icecore_attention *problem, int64_t near_keys, int32_t *near_count) nogil
    icecore_status icecore_attend_xattention(const icecore_attention *problem, int64_t stride, double threshold, int32_t *near_count) nogil
    icecore_status icecore_attend_zeta(const icecore_attention *problem, int64_t near_keys, uint64_t seed, int32_t *near_count) nogil
    ctypedef struct icecore_vattention:
        int64_t near_keys
        int64_t sinks, window
        double epsilon, delta
        uint64_t seed
    icecore_status icecore_attend_vattention(const icecore_attention *problem, const icecore_vattention *options, int32_t *near_count) nogil
    icecore_status icecore_attend_pages(const icecore_attention *problem, int64_t near_keys, int32_t *near_count) nogil
    icecore_status icecore_attend_arkvale(const icecore_attention *problem, int64_t near_keys, int64_t page, int32_t *near_count) nogil
    ctypedef struct icecore_retroinfer:
        int64_t segment
        int64_t sinks, local
        double retrieval, estimation
        uint64_t seed
    icecore_status icecore_attend_retroinfer(const icecore_attention *problem, const icecore_retroinfer *options, int32_t *near_count) nogil
    icecore_status icecore_attend_pdci(const icecore_attention *problem, int64_t near_keys, int64_t visit, uint64_t seed,
                                       int32_t *near_count) nogil
    icecore_status icecore_attend_sparq(const icecore_attention *problem, int64_t near_keys, int64_t components, int64_t local,
                                        int32_t *near_count) nogil
    icecore_status icecore_attend_magicpig(const icecore_attention *problem, int64_t bits, int64_t tables, int64_t sinks,
                                           int64_t local, uint64_t seed, int32_t *near_count) nogil
    ctypedef struct icecore_indexer:
        icecore_dtype dtype
        int64_t batch, heads, queries, keys, dim
        icecore_tensor query, key
        const float *weights
        int causal
        int64_t count
        int32_t *indices
        int threads

    icecore_status icecore_indexer_top_k(const icecore_indexer *indexer) nogil
    icecore_status icecore_attend_indices(const icecore_attention *problem, const icecore_indices *indices,
                                          int64_t *place)

    ctypedef struct icecore_cache:
        pass
    ctypedef struct icecore_cache_options:
        int64_t heads, dim, value_dim
        icecore_dtype dtype
        int64_t near_keys
        float tolerance
        int64_t block, sinks, cell_size
        uint64_t seed
        const float *moments
    ctypedef struct icecore_cache_state:
        int64_t length, evicted, first_query, sealed, segments, open, held, bytes
    icecore_status icecore_cache_create(const icecore_cache_options *options, icecore_cache **result)
    void icecore_cache_free(icecore_cache *cache)
    icecore_status icecore_cache_append(icecore_cache *cache, icecore_dtype dtype, icecore_tensor keys, icecore_tensor values,
                                        icecore_tensor queries, int64_t query_heads, int64_t count) nogil
    ctypedef struct icecore_rows:
        int64_t first, count
    icecore_status icecore_cache_attend(icecore_cache **caches, int64_t count, const icecore_rows *rows,
                                        const icecore_attention *problem, const icecore_near_far *options,
                                        const icecore_report *report) nogil
    icecore_status icecore_cache_truncate(icecore_cache *cache, int64_t length, int threads) nogil
    icecore_status icecore_cache_evict(icecore_cache *cache, int64_t before, int64_t *evicted) nogil
    icecore_status icecore_cache_fork(icecore_cache *cache, icecore_cache **result) nogil
    icecore_status icecore_cache_get_state(icecore_cache *cache, icecore_cache_state *state) nogil
    icecore_status icecore_cache_write(icecore_cache **caches, int64_t count, icecore_write write, void *context) nogil
    icecore_status icecore_cache_map(const icecore_cache_options *options, const icecore_array *arrays, int64_t count, int own,
                                     icecore_cache **caches, int64_t cache_count, char *reason, int64_t reason_size) nogil
    icecore_status icecore_cache_read(icecore_cache *cache, float *keys, float *values, int64_t count) nogil
    icecore_status icecore_cache_validate(icecore_cache *cache, const char **fault) nogil

    ctypedef struct icecore_segment:
        pass

    ctypedef struct icecore_nodes_view:
        int64_t count
        const int64_t *offset
        const void *mean_key
        const void *mean_value
        const float *variance
        const float *radius
        const float *log2_count
        const float *log2_weight

    ctypedef struct icecore_segment_view:
        icecore_dtype dtype, mean_dtype
        int64_t count, dim, value_dim
        const int32_t *order
        const void *keys
        const void *values
        const float *metric
        const float *component_variance
        const float *centre
        icecore_nodes_view cell, parent

    ctypedef struct icecore_segment_source:
        icecore_dtype dtype
        const void *keys
        const void *values
        int64_t key_stride, value_stride, count, dim, value_dim
        icecore_dtype storage
        const float *moments
        int64_t cell_size
        uint64_t seed

    icecore_status icecore_segment_build(const icecore_segment_source *source, icecore_segment **result)
    void icecore_segment_free(icecore_segment *segment)
    icecore_segment_view icecore_segment_get(const icecore_segment *segment)

    ctypedef struct icecore_index:
        pass

    ctypedef enum icecore_metric:
        pass

    ctypedef struct icecore_index_options:
        int64_t dim
        icecore_metric metric
        int composites, simples, levels
        double promotion
        icecore_dtype dtype
        uint64_t seed

    ctypedef struct icecore_search:
        int64_t k, visit, retrieve, field_of_view
        int extend, exact
        const int64_t *allowed
        int64_t allowed_count
        const int64_t *excluded
        int64_t excluded_count
        int threads

    ctypedef struct icecore_index_state:
        int64_t count, removed, open, slots, segments, cells, merging, next_id, bytes
        int read_only

    ctypedef int (*icecore_progress)(void *context, double done) noexcept

    ctypedef struct icecore_addition:
        const float *vectors
        const int64_t *ids
        int64_t count
        int replace, threads
        icecore_progress progress
        void *context

    icecore_status icecore_index_create(const icecore_index_options *options, icecore_index **result)
    void icecore_index_free(icecore_index *index)
    icecore_status icecore_index_reserve(icecore_index *index, int64_t count)
    icecore_status icecore_index_add(icecore_index *index, const icecore_addition *added, int64_t *place)
    icecore_status icecore_index_remove(icecore_index *index, const int64_t *ids, int64_t count, int absent_too, int threads,
                                        int64_t *place)
    icecore_status icecore_index_compact(icecore_index *index, int threads)
    icecore_status icecore_index_clear(icecore_index *index)
    icecore_status icecore_index_search(icecore_index *index, const float *queries, int64_t count, const icecore_search *search,
                                        int64_t *ids, float *scores, int64_t *counts, int64_t *visited)
    icecore_status icecore_index_get(icecore_index *index, const int64_t *ids, int64_t count, float *vectors, int64_t *place)
    icecore_status icecore_index_contains(icecore_index *index, const int64_t *ids, int64_t count, uint8_t *present)
    icecore_status icecore_index_get_state(icecore_index *index, icecore_index_state *state)
    icecore_status icecore_index_ids(icecore_index *index, int64_t *ids, int64_t capacity, int64_t *count)
    icecore_status icecore_index_validate(icecore_index *index, char *reason, int64_t reason_size)
    icecore_status icecore_index_write(icecore_index *index, icecore_write write, void *context)
    icecore_status icecore_index_map(const icecore_index_options *options, const icecore_array *arrays, int64_t count,
                                     icecore_index **result, char *reason, int64_t reason_size)
    icecore_status icecore_index_copy(icecore_index *index, icecore_index **result)
