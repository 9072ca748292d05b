"""The C core behind typed memoryviews: unwrap, one call without the GIL, check the status.  No logic lives here."""

import os

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from icecore_c cimport *

cdef extern from "Python.h":
    int PyErr_CheckSignals() noexcept
    object PyBytes_FromStringAndSize(const char *data, Py_ssize_t size)

FLOAT32 = ICECORE_FLOAT32
FLOAT16 = ICECORE_FLOAT16
BFLOAT16 = ICECORE_BFLOAT16
INT8 = ICECORE_INT8
INT4 = ICECORE_INT4

# One module, since the core holds state of the process.  What serves the others comes first.
include "status.pxi"        # the core's statuses as Python's errors
include "callbacks.pxi"     # Python's functions that the core calls
include "arrays.pxi"        # arrays as the core takes them
include "requests.pxi"      # what a call of attention asks for
include "runtime.pxi"
include "attention.pxi"
include "cache.pxi"
include "segment.pxi"
include "index.pxi"
