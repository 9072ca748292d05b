"""The classes that hand requests to the core: what they keep and what they refuse."""

import weakref

import numpy as np
import pytest

from icecore import _native

SHAPE = (1, 2, 3, 4)


def problem_arrays():
    arrays = {name: np.ones(SHAPE, np.float32) for name in ("query", "key", "value", "out")}
    return arrays | {"lse": np.ones(SHAPE[:3], np.float32), "keep": np.ones((1, 2, 3, 3), np.uint8)}


def problem(**changes):
    return _native.Problem(**{"dtype": _native.FLOAT32, "scale": 0.5, **problem_arrays(), **changes})


OPTIONS = {
    "head_tolerance": np.ones(2, np.float32),
    "head_threshold": np.ones(2, np.float32),
    "moments": np.ones((2, 4, 4), np.float32),
    "head_cell_size": np.ones(2, np.int64),
}
REPORT = {
    "near_count": np.zeros(SHAPE[:3], np.int32),
    "captured_mass": np.zeros(SHAPE[:3], np.float32),
    "missed_bound": np.zeros(SHAPE[:3], np.float32),
    "summaries": np.zeros(SHAPE[:3], np.int32),
    "error": np.zeros(SHAPE[:2], np.float32),
    "standard_error": np.zeros(SHAPE[:2], np.float32),
    "error_rows": np.zeros(SHAPE[:2], np.int32),
    "seconds": np.zeros(3),
}
FIELDS = [(problem, problem_arrays()), (_native.NearFar, OPTIONS), (_native.Report, REPORT)]
EACH_FIELD = [(of, name, array) for of, arrays in FIELDS for name, array in arrays.items()]


@pytest.mark.parametrize(("of", "name", "array"), EACH_FIELD)
def test_arrays_live_as_long_as_their_request(of, name, array):
    own = array.copy()
    alive = weakref.ref(own)
    request = of(**{name: own})
    del own
    assert alive() is not None
    del request
    assert alive() is None


@pytest.mark.parametrize(("of", "name", "array"), EACH_FIELD)
def test_arrays_of_another_kind_are_refused(of, name, array):
    swapped = [array.astype(array.dtype.newbyteorder(">"))] if array.itemsize > 1 else []
    for wrong in (array.astype(np.complex64), array[None], *swapped):
        with pytest.raises(ValueError, match=r"[Bb]uffer"):
            of(**{name: wrong})


@pytest.mark.parametrize(("of", "name", "array"), [
    (of, name, array) for of, name, array in EACH_FIELD if name in ("out", "lse", *REPORT)
])
def test_results_are_not_written_to_read_only_arrays(of, name, array):
    array = array.copy()
    array.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        of(**{name: array})


@pytest.mark.parametrize("attend", [
    lambda: _native.attend_exact(None),
    lambda: _native.attend_near_far(problem(), None, _native.Report()),
    lambda: _native.attend_near_far(problem(), _native.NearFar(), None),
    lambda: _native.attend_near_far(None, _native.NearFar(), _native.Report()),
    lambda: _native.attend_pages(None, 1, None),
    lambda: _native.attend_indices(None, np.zeros((1, 2, 1, 3, 1), np.int32), 0),
    lambda: _native.Cache.create(None),
    lambda: _native.Index.create(None),
])
def test_no_request_is_refused(attend):
    with pytest.raises(TypeError, match="None"):
        attend()


def test_a_problem_without_keys_is_refused_where_it_needs_them():
    with pytest.raises(ValueError, match="outside its range"):
        _native.attend_exact(problem(key=None, value=None))
