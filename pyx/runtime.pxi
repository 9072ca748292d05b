# Instruction sets, threads and the comparison of kernels.


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
