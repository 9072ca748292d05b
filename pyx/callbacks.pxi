# Python's functions that the core calls.


cdef int check_signals() noexcept nogil:
    with gil:
        return PyErr_CheckSignals()


icecore_set_interrupt_check(check_signals)


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


cdef int call_write(void *context, const icecore_array *table, int64_t arrays, const void *data,
                    int64_t size) noexcept with gil:
    cdef callback *c = <callback *>context
    cdef uint8_t *piece = <uint8_t *>data
    try:
        if data == NULL:
            entries = [((<char *>table[i].name).decode(), chr(table[i].type), table[i].count) for i in range(arrays)]
            (<object>c.function)(entries, None)
        else:
            (<object>c.function)(None, <uint8_t[:size]>piece)
        return 0
    except BaseException as error:
        (<list>c.error).append(error)
        return 1
