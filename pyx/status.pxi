# The core's statuses as Python's errors.


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
            f"ICECORE_ISA is {os.environ.get('ICECORE_ISA')!r}, an instruction set that is not usable here; "
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
