# Arrays as the core takes them: pointers to contiguous ones, tensors with strides, the named arrays of a file.

ctypedef fused number:
    float
    double
    int32_t
    int64_t


# Where a contiguous array begins; NULL for None and where it is empty.
cdef number *of_list(const number[::1] array) noexcept:
    return <number *>&array[0] if array is not None and array.size else NULL


cdef number *of_matrix(const number[:, ::1] array) noexcept:
    return <number *>&array[0, 0] if array is not None and array.size else NULL


cdef number *of_cube(const number[:, :, ::1] array) noexcept:
    return <number *>&array[0, 0, 0] if array is not None and array.size else NULL


cdef int fill_tensor(icecore_tensor *t, int64_t *shape, array, int dtype, int flags=0) except -1:
    """`t` and the `shape` of a four-dimensional array of float32 or, for the other dtypes, of their bits; all 0 for None."""
    # by the buffer itself: a typed memoryview is an object, and four of them were a fifth of a small call's time
    cdef Py_buffer b
    cdef char kind = b"f" if dtype == ICECORE_FLOAT32 else b"H"
    cdef const char *format
    memset(t, 0, sizeof(icecore_tensor))
    memset(shape, 0, 4 * sizeof(int64_t))
    if array is None:
        return 0
    PyObject_GetBuffer(array, &b, PyBUF_FORMAT | PyBUF_STRIDES | flags)
    try:
        format = b.format + (b.format[0] == b"=")  # not aligned
        if b.ndim != 4 or format[0] != kind or format[1] != 0:
            raise ValueError(f"buffer has {b.ndim} dimensions of {b.format.decode()!r}; expected 4 of {chr(kind)!r}")
        for i in range(4):
            shape[i] = b.shape[i]
        t.data = b.buf if b.len else NULL
        t.batch_stride, t.head_stride = b.strides[0] // b.itemsize, b.strides[1] // b.itemsize
        t.row_stride = b.strides[2] // b.itemsize
    finally:
        PyBuffer_Release(&b)
    return 0


cdef class Arrays:
    """(name, type, contiguous bytes as an array of uint8) each; `fault` says what the core could not take, or is None."""
    cdef icecore_array *entries
    cdef int64_t count
    cdef object memory, fault

    def __cinit__(self, list arrays):
        cdef const uint8_t[::1] data
        cdef bytes name
        cdef int64_t size
        self.memory, self.count = arrays, len(arrays)
        self.entries = <icecore_array *>malloc(sizeof(icecore_array) * max(1, len(arrays)))
        if self.entries == NULL:
            raise MemoryError("icecore: out of memory")
        memset(self.entries, 0, sizeof(icecore_array) * len(arrays))
        for i, (text, kind, data) in enumerate(arrays):
            name = text.encode()
            if len(name) > 47 or b"\0" in name:
                self.fault = f"it holds an array named {text!r}"
                return
            memcpy(self.entries[i].name, <const char *>name, len(name))
            self.entries[i].type = <char>ord(kind)
            size = {"b": 1, "h": 2, "i": 4, "f": 4, "l": 8}[kind]
            self.entries[i].count = data.shape[0] // size
            self.entries[i].data = &data[0] if data.shape[0] else NULL

    def __dealloc__(self):
        free(self.entries)
