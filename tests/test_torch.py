"""icecore.torch: attention on tensors, torch's own function by icecore, and that function replaced."""

import itertools
import shutil
import threading
import warnings

import numpy as np
import pytest
from helpers import run_python

import icecore

torch = pytest.importorskip("torch")
functional = pytest.importorskip("torch.nn.functional")

import icecore.torch  # noqa: E402
from icecore.torch import attention, replace_sdpa, scaled_dot_product_attention, varlen_attention  # noqa: E402

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ROUNDOFF = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def normal(seed, *shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs(query_shape, key_shape, value_dim, dtype=torch.float32):
    shapes = (query_shape, key_shape, (*key_shape[:-1], value_dim))
    return [normal(i, *shape, dtype=dtype) for i, shape in enumerate(shapes)]


def assert_same(out, query, key, value, mask=None, **options):
    """`out` is torch's result in float32, within the roundoff of its dtype."""
    if mask is not None and type(mask) is torch.Tensor and mask.dtype != torch.bool:
        mask = mask.float()
    expected = functional.scaled_dot_product_attention(query.float(), key.float(), value.float(), mask, **options)
    assert out.shape == expected.shape and out.dtype == query.dtype
    assert (out.float() - expected).abs().max() <= ROUNDOFF[query.dtype] * max(1.0, float(expected.abs().max()))


@pytest.fixture
def computed(monkeypatch):
    """The calls that icecore computed."""
    calls, original = [], icecore.torch.sdpa._compute

    def compute(*arguments):
        calls.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(icecore.torch.sdpa, "_compute", compute)
    return calls


# ---- Packed sequences ----

STARTS = ([0, 40, 40, 47, 100], [0, 60, 63, 63, 120])  # of queries and keys: none of either, more queries than keys


def one_by_one(query, key, value, causal, window):
    """Each sequence by torch: out (total, H, dv), in float32."""
    parts = []
    for (q, q_end), (k, k_end) in zip(*(itertools.pairwise(starts) for starts in STARTS), strict=True):
        own = [tensor.float().transpose(0, 1) for tensor in (query[q:q_end], key[k:k_end], value[k:k_end])]
        position = torch.arange(q_end - q)[:, None] + (k_end - k) - (q_end - q)
        distance = position - torch.arange(k_end - k)
        left, right = (1000 if side < 0 else side for side in window)
        mask = (distance <= left) & (-distance <= right) & ((distance >= 0) | (not causal))
        out = functional.scaled_dot_product_attention(*own, mask, enable_gqa=True)
        parts.append(torch.where(mask.any(dim=1)[:, None], out, 0).transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [(-1, -1), (10, 3), (0, 0), (-1, 5), (7, -1)])
def test_packed_sequences(dtype, causal, window):
    query, key, value = inputs((100, 4, 16), (120, 2, 16), 8, dtype)
    expected = one_by_one(query, key, value, causal, window)
    starts = [torch.tensor(own, dtype=torch.int32) for own in STARTS]
    out, lse = varlen_attention(query, key, value, *starts, causal=causal, window=window, return_lse=True)
    assert (out.float() - expected).abs().max() <= 2 * ROUNDOFF[dtype]
    assert out.shape == (100, 4, 8) and out.dtype == dtype and lse.shape == (4, 100)
    into = torch.empty_like(out)
    assert varlen_attention(query, key, value, *STARTS, causal=causal, window=list(window), out=into) is into
    assert torch.equal(into, out)


def test_packed_sequences_by_near_far_are_calls_of_their_own():
    query, key, value = inputs((6000, 2, 32), (6000, 2, 32), 32)
    starts = [0, 1000, 6000]
    options = {"k": 64, "causal": True}
    out, lse = varlen_attention(query, key, value, starts, starts, return_lse=True, **options)
    for first, end in itertools.pairwise(starts):
        own = [tensor[first:end].transpose(0, 1) for tensor in (query, key, value)]
        alone, own_lse = attention(*own, return_lse=True, **options)
        assert torch.equal(out[first:end].transpose(0, 1), alone)
        assert torch.equal(lse[:, first:end], own_lse)


def test_packed_sequences_take_a_number_as_window():
    query, key, value = inputs((9, 2, 4), (9, 2, 4), 4)
    one, other = (varlen_attention(query, key, value, [0, 9], [0, 9], window=window) for window in (3, (2, 2)))
    assert torch.equal(one, other)
    assert not varlen_attention(query, key, value, [0, 9], [0, 9], window=0).any()


def test_packed_sequences_that_do_not_fit_are_refused():
    query, key, value = inputs((9, 2, 4), (9, 2, 4), 4)
    good = [0, 4, 9]
    for bad, message in (([0, 4, 8], "cu_seqlens_k must go from 0 to 9"), ([0, 5, 4, 9], "without falling"),
                         ([1, 4, 9], "must go from 0"), ([], "has dtype"), ([[0, 9]], "has shape"),
                         ([0, 9], "is of 2 sequences and cu_seqlens_k of 1")):
        with pytest.raises((TypeError, ValueError), match=message):
            varlen_attention(query, key, value, good, bad)
    with pytest.raises(ValueError, match="query has shape"):
        varlen_attention(query[None], key, value, good, good)
    with pytest.raises(TypeError, match="attn_mask"):
        varlen_attention(query, key, value, good, good, attn_mask=None)
    with pytest.raises(ValueError, match="window=3 with k or tolerance"):
        varlen_attention(query, key, value, good, good, window=3, k=2)
    with pytest.raises(ValueError, match=r"window\[0\] must be at least -1"):
        varlen_attention(query, key, value, good, good, window=(-2, 0))


@pytest.mark.parametrize("options", [{}, {"tolerance": 0.05}, {"k": 2}])
def test_packed_sequences_are_checked_before_the_first_is_written(options):
    query, key, value = inputs((9, 2, 4), (9, 2, 4), 4)
    good, out = [0, 4, 9], torch.full((9, 2, 4), 7.0)
    for wrong in (torch.zeros(11, 2, 4), torch.zeros(8, 2, 4), torch.zeros(9, 2, 3)):
        with pytest.raises(ValueError, match="out has shape"):
            varlen_attention(query, key, value, good, good, out=wrong, **options)
    for wrong in (torch.zeros(12, 2, 4), torch.zeros(7, 2, 4), torch.zeros(9, 1, 4)):
        with pytest.raises(ValueError, match="expected equal totals and heads"):
            varlen_attention(query, key, wrong, good, good, out=out, **options)
    assert (out == 7.0).all()
    both = torch.zeros(13, 2, 4)
    with pytest.raises(ValueError, match="out overlaps query"):
        varlen_attention(both[:9], key, value, good, good, out=both[4:], **options)


# ---- attention ----


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_takes_tensors_of_every_dtype_and_returns_one(dtype):
    query, key, value = inputs((2, 6, 5, 16), (2, 3, 9, 16), 8, dtype)
    bias = torch.nn.attention.bias.causal_lower_right(5, 9)
    out, lse, info = attention(query, key, value, causal=True, return_lse=True, return_info=True)
    assert_same(out, query, key, value, bias, enable_gqa=True)
    assert lse.shape == (2, 6, 5) and lse.dtype == torch.float32
    assert info.path == "exact"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_reads_and_writes_the_tensors_own_memory(dtype, monkeypatch):
    seen = {}

    def spy(query, key, value, *, out, **options):
        seen.update(query=query.ctypes.data, key=key.ctypes.data, value=value.ctypes.data, out=out.ctypes.data)
        return out

    query, key, value = (tensor.transpose(-2, -3) for tensor in inputs((5, 2, 16), (9, 2, 16), 16, dtype))
    out = torch.empty(5, 2, 16, dtype=dtype).transpose(0, 1)
    monkeypatch.setattr(icecore, "attention", spy)
    assert attention(query, key, value, out=out) is out
    assert seen == {"query": query.data_ptr(), "key": key.data_ptr(), "value": value.data_ptr(), "out": out.data_ptr()}


def test_attention_takes_masks_and_metrics_as_tensors():
    query, key, value = inputs((2, 5, 16), (2, 9, 16), 16)
    keep = normal(3, 5, 9) > 0
    for mask in (keep, normal(4, 5, 9), normal(4, 5, 9, dtype=torch.bfloat16)):
        assert_same(attention(query, key, value, attn_mask=mask), query, key, value, mask)
    expected = icecore.attention(query.numpy(), key.numpy(), value.numpy(), k=2, metric=np.ones((2, 16)))
    assert np.array_equal(attention(query, key, value, k=2, metric=torch.ones(2, 16)).numpy(), expected)


def test_attention_writes_into_out_and_its_options_are_icecores():
    query, key, value = inputs((2, 5, 16), (2, 9, 16), 16)
    out = torch.empty(2, 5, 16)
    assert attention(query, key, value, window=3, causal=True, out=out) is out
    expected = icecore.attention(query.numpy(), key.numpy(), value.numpy(), window=3, causal=True)
    assert np.array_equal(out.numpy(), expected)


def test_attention_says_what_it_cannot_take():
    query, key, value = inputs((2, 5, 16), (2, 9, 16), 16)
    with pytest.raises(TypeError, match=r"key must be a torch\.Tensor, got ndarray; arrays go to icecore\.attention"):
        attention(query, key.numpy(), value)
    with pytest.raises(ValueError, match="query is on meta; expected a tensor on the CPU"):
        attention(query.to("meta"), key, value)
    with pytest.raises(ValueError, match=r"value requires grad.*torch\.no_grad\(\), or value\.detach\(\)"):
        attention(query, key, value.requires_grad_())
    with torch.no_grad():
        attention(query, key, value)
    with torch.inference_mode():
        attention(*(tensor.clone() for tensor in (query, key, value)))


def test_arrays_of_tensors_share_their_memory():
    for dtype in DTYPES:
        tensor = normal(0, 3, 5, dtype=dtype).T
        array = icecore.torch.as_array(tensor)
        assert array.ctypes.data == tensor.data_ptr() and array.shape == (5, 3)
    cache = icecore.KVCache(2, 16, dtype="bfloat16")
    query, key, value = inputs((4, 9, 16), (2, 9, 16), 16, torch.bfloat16)
    cache.append(*map(icecore.torch.as_array, (key, value)))
    out = torch.from_numpy(cache.attend(icecore.torch.as_array(query))).view(torch.bfloat16)
    assert_same(out, query, key, value, is_causal=True, enable_gqa=True)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, 2, dtype=torch.float8_e4m3fn),
        torch.eye(2).to_sparse(),
        torch._neg_view(torch.ones(2, 2)),
        torch.ones(2, 2, dtype=torch.complex64).conj(),
    ],
    ids=["float8", "sparse", "negated", "conjugate"],
)
def test_tensors_without_an_array_are_refused_by_name(tensor):
    with pytest.raises(TypeError, match=rf"key is a tensor \({tensor.dtype}, .*\) without an array of its memory; expected a"):
        icecore.torch.as_array(tensor, "key")


def test_a_scale_may_be_a_tensor_of_one_number():
    arrays = inputs((2, 5, 16), (2, 9, 16), 16)
    assert torch.equal(attention(*arrays, scale=torch.tensor(0.5)), attention(*arrays, scale=0.5))


def test_the_door_for_arrays_says_where_tensors_go():
    query, key, value = inputs((2, 5, 16), (2, 9, 16), 16, torch.bfloat16)
    hint = r"is a tensor that NumPy does not take \(.*\); expected icecore\.torch\.as_array\(key\), or icecore\.torch\."
    with pytest.raises(TypeError, match=f"key {hint}"):
        icecore.attention(query.float(), key, value)
    with pytest.raises(TypeError, match=f"key {hint}"):
        icecore.attention(query.float(), key.float().requires_grad_(), value.float())
    arrays = [tensor.float().numpy() for tensor in (query, key, value)]
    with pytest.raises(TypeError, match="argument 'is_causal': icecore's name is causal, aligned bottom-right; icecore"):
        icecore.attention(*arrays, is_causal=True)
    with pytest.raises(TypeError, match="argument 'enable_gqa': query heads share key heads"):
        icecore.attention(*arrays, enable_gqa=True)
    with pytest.raises(TypeError, match=r"^attention\(\) got an unexpected keyword argument 'caused'$"):
        icecore.attention(*arrays, caused=True)


# ---- scaled_dot_product_attention ----


def shapes(ndim, heads, key_heads, queries, keys):
    if ndim == 2:
        return (queries, 16), (keys, 16)
    leading = (2, 3)[: ndim - 3]
    return (*leading, heads, queries, 16), (*leading, key_heads, keys, 16)


def masks(queries, keys, dtype):
    keep = normal(5, queries, keys) > -0.5
    keep[0] = True
    yield {}
    yield {"is_causal": True}
    for mask in (keep, normal(6, queries, keys, dtype=dtype), normal(6, queries, keys), keep[:1], keep[:, :1]):
        yield {"attn_mask": mask}
    yield {"attn_mask": torch.nn.attention.bias.causal_upper_left(queries, keys)}
    if queries <= keys:
        yield {"attn_mask": torch.nn.attention.bias.causal_lower_right(queries, keys)}


@pytest.mark.parametrize("ndim", (2, 3, 4, 5))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_torchs_function(dtype, ndim, computed):
    calls = 0
    for (heads, key_heads), (queries, keys) in itertools.product([(4, 4), (4, 2), (4, 1)], [(5, 9), (7, 7), (9, 5), (1, 9)]):
        if ndim == 2 and key_heads < 4:
            continue
        gqa = {"enable_gqa": True} if key_heads < heads else {}
        query, key, value = inputs(*shapes(ndim, heads, key_heads, queries, keys), 8, dtype)
        strided = [tensor.transpose(-1, -2).contiguous().transpose(-1, -2) for tensor in (query, key, value)]
        for mask, scale, tensors in itertools.product(masks(queries, keys, dtype), (None, 0.3), ((query, key, value), strided)):
            out = scaled_dot_product_attention(*tensors, scale=scale, **gqa, **mask)
            options = {"is_causal": True} if "is_causal" in mask else {}
            assert_same(out, query, key, value, mask.get("attn_mask"), scale=scale, **gqa, **options)
            calls += 1
    assert len(computed) == calls


@pytest.mark.parametrize(
    "query_shape, key_shape",
    [
        ((2, 4, 5, 16), (1, 4, 9, 16)),
        ((1, 4, 5, 16), (2, 4, 9, 16)),
        ((2, 4, 5, 16), (2, 1, 9, 16)),
        ((2, 1, 5, 16), (2, 4, 9, 16)),
        ((3, 1, 4, 5, 16), (1, 2, 4, 9, 16)),
        ((4, 5, 16), (1, 9, 16)),
        ((0, 4, 5, 16), (0, 4, 9, 16)),
        ((2, 4, 0, 16), (2, 4, 9, 16)),
        ((2, 4, 5, 16), (2, 4, 0, 16)),
    ],
)
def test_leading_axes_broadcast_and_may_be_empty(query_shape, key_shape, computed):
    query, key, value = inputs(query_shape, key_shape, 8)
    out = scaled_dot_product_attention(query, key, value)
    expected = functional.scaled_dot_product_attention(query, key, value)
    assert torch.allclose(out, expected, atol=2e-6) and out.shape == expected.shape
    assert len(computed) == 1


def test_masks_of_more_than_four_axes_broadcast():
    query, key, value = inputs((3, 2, 4, 5, 16), (3, 2, 4, 9, 16), 8)
    for shape in ((3, 1, 1, 5, 9), (1, 2, 4, 1, 9), (2, 1, 5, 9)):
        mask = normal(7, *shape)
        assert_same(scaled_dot_product_attention(query, key, value, mask), query, key, value, mask)


def test_rows_that_see_no_key_are_zero():
    query, key, value = inputs((2, 5, 16), (2, 9, 16), 8)
    keep = torch.ones(5, 9, dtype=torch.bool)
    keep[2] = False
    for mask in (keep, torch.zeros(5, 9).masked_fill(~keep, -torch.inf)):
        assert (scaled_dot_product_attention(query, key, value, mask)[:, 2] == 0).all()


def test_the_heads_of_a_position_lie_together():
    query, key, value = inputs((2, 4, 5, 16), (2, 4, 9, 16), 8)
    assert scaled_dot_product_attention(query, key, value).transpose(1, 2).is_contiguous()


def test_a_tolerance_is_icecores():
    generator = torch.Generator().manual_seed(0)
    key = torch.randn(1, 2, 3000, 32, generator=generator)
    query, value = 2 * key, torch.randn(1, 2, 3000, 32, generator=generator)
    for options in ({"tolerance": 0.05}, {"k": 64}):
        out = scaled_dot_product_attention(query, key, value, is_causal=True, **options)
        assert torch.equal(out, attention(query, key, value, causal=True, **options))


def test_a_causal_call_of_a_static_cache_reads_no_key_after_the_queries():
    """Top-left: with fewer queries than keys, later keys are hidden, whatever they hold."""
    query, key, value = inputs((2, 5, 16), (2, 9, 16), 8)
    key[:, 5:], value[:, 5:] = torch.nan, torch.nan
    out = scaled_dot_product_attention(query, key, value, is_causal=True)
    assert_same(out, query, key[:, :5], value[:, :5], is_causal=True)


# ---- What torch computes ----


def by_torch():
    query, key, value = inputs((2, 4, 5, 16), (2, 4, 9, 16), 8)
    wide = inputs((2, 5, 577), (2, 9, 577), 8)
    return {
        "float64": ([tensor.double() for tensor in (query, key, value)], {}),
        "meta": ([tensor.to("meta") for tensor in (query, key, value)], {}),
        "wide": (wide, {}),
        "fewer axes": ((query, key[0], value[0]), {}),
        "value heads": ((query, key[:, :1], value), {}),
        "drop all": ((query, key, value), {"dropout_p": 1.0}),
    }


@pytest.mark.parametrize("case", sorted(by_torch()))
def test_what_icecore_cannot_compute_is_torchs(case, computed):
    arguments, options = by_torch()[case]
    out = scaled_dot_product_attention(*arguments, **options)
    expected = functional.scaled_dot_product_attention(*arguments, **options)
    assert out.shape == expected.shape and out.dtype == expected.dtype and out.device == expected.device
    assert out.device.type == "meta" or torch.equal(out, expected)
    assert computed == []


@pytest.mark.parametrize(
    "change, error",
    [
        (lambda q, k, v: (q, k.half(), v), RuntimeError),
        (lambda q, k, v: (q, k, v, torch.ones(5, 9, dtype=torch.int32)), RuntimeError),
        (lambda q, k, v: (q, k, v, torch.ones(4, 9, dtype=torch.bool)), RuntimeError),
        (lambda q, k, v: (q, k[..., :8], v), RuntimeError),
        (lambda q, k, v: (q, k[..., :5, :], v[..., :5, :], torch.ones(5, 5, dtype=torch.bool), 0.0, True), RuntimeError),
        (lambda q, k, v: (q, k[:, :3], v[:, :3]), RuntimeError),
        (lambda q, k, v: (q, k, v, torch.nn.attention.bias.causal_lower_right(5, 8)), RuntimeError),
    ],
)
def test_what_torch_refuses_is_refused_by_torch(change, error, computed):
    arguments = change(*inputs((2, 4, 5, 16), (2, 4, 9, 16), 8))
    with pytest.raises(error) as torchs:
        functional.scaled_dot_product_attention(*arguments)
    with pytest.raises(error) as ours:
        scaled_dot_product_attention(*arguments)
    assert str(ours.value) == str(torchs.value) and computed == []


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_torchs(computed):
    """Each a batch of rows of different lengths."""
    def nested(tensor):
        rows = [tensor[0].transpose(0, 1), tensor[1, :, :4].transpose(0, 1)]
        return torch.nested.nested_tensor(rows, layout=torch.jagged).transpose(1, 2)

    query, key, value = inputs((2, 4, 5, 16), (2, 4, 9, 16), 8)
    rows = scaled_dot_product_attention(*map(nested, (query, key, value))).unbind()
    assert computed == []
    assert_same(rows[0], query[0], key[0], value[0])
    assert_same(rows[1], query[1, :, :4], key[1, :, :4], value[1, :, :4])


def test_dropout_is_torchs(computed):
    query, key, value = inputs((2, 4, 5, 16), (2, 4, 9, 16), 8)
    torch.manual_seed(1)
    out = scaled_dot_product_attention(query, key, value, dropout_p=0.5)
    torch.manual_seed(1)
    assert torch.equal(out, functional.scaled_dot_product_attention(query, key, value, dropout_p=0.5)) and computed == []


def test_gradients_are_torchs_and_a_warning_says_once_that_they_are(monkeypatch, computed):
    monkeypatch.setattr(icecore.torch.sdpa, "_warned", False)
    gradients = []
    for function in (functional.scaled_dot_product_attention, scaled_dot_product_attention):
        tensors = [tensor.requires_grad_() for tensor in inputs((2, 4, 5, 16), (2, 4, 9, 16), 8)]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function(*tensors, is_causal=True).square().sum().backward()
            function(*tensors)
        gradients.append([tensor.grad for tensor in tensors])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True)) and computed == []
    assert [str(warning.message)[:35] for warning in caught] == ["attention whose gradient is wanted "]
    with torch.no_grad():
        scaled_dot_product_attention(*tensors)
    assert len(computed) == 1


def test_the_gradient_of_a_mask_is_torchs(monkeypatch):
    monkeypatch.setattr(icecore.torch.sdpa, "_warned", True)
    query, key, value = inputs((4, 5, 16), (4, 9, 16), 8)
    mask = normal(6, 5, 9).requires_grad_()
    scaled_dot_product_attention(query, key, value, mask).sum().backward()
    assert mask.grad.abs().sum() > 0


@pytest.mark.parametrize("mask", (None, normal(6, 5, 9), normal(6, 5, 9) > 0), ids=("none", "float", "bool"))
def test_autocast_casts_as_for_torchs_function(mask, computed):
    query, key, value = inputs((2, 4, 5, 16), (2, 4, 9, 16), 8)
    value = value.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = scaled_dot_product_attention(query, key, value, mask)
        expected = functional.scaled_dot_product_attention(query, key, value, mask)
    assert out.dtype == expected.dtype == torch.bfloat16 and len(computed) == 1
    assert (out.float() - expected.float()).abs().max() < 0.02


def test_transforms_and_tensor_classes_are_torchs(monkeypatch, computed):
    query, key, value = inputs((2, 4, 5, 16), (2, 4, 9, 16), 8)
    monkeypatch.setattr(icecore.torch.sdpa, "_warned", True)
    mapped = torch.vmap(scaled_dot_product_attention)(query, key, value)
    assert torch.allclose(mapped, functional.scaled_dot_product_attention(query, key, value), atol=2e-6)

    class Own(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            return "own"

    assert scaled_dot_product_attention(query.as_subclass(Own), key, value) == "own"
    assert computed == []


# ---- The operator ----


@pytest.mark.parametrize("dynamic", (False, True))
@pytest.mark.parametrize("options", ({}, {"is_causal": True}, {"tolerance": 0.1}, {"enable_gqa": True}), ids=str)
def test_compiled_graphs_are_whole(options, dynamic):
    query, key, value = inputs((2, 4, 5, 16), (2, 2 if "enable_gqa" in options else 4, 9, 16), 8)

    def function(query, key, value):
        return 2 * scaled_dot_product_attention(query, key, value, **options)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    assert torch.equal(compiled(query, key, value), function(query, key, value))


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++")
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_inductor_compiles_what_lies_around_the_operator(dtype):
    query, key, value = inputs((2, 4, 5, 16), (2, 2, 9, 16), 16, dtype)

    def function(query, key, value):
        out = scaled_dot_product_attention(2 * query, key, value.sin(), is_causal=True, enable_gqa=True, tolerance=0.1)
        return out.transpose(1, 2).flatten(2).cos()

    with torch.inference_mode():
        result = torch.compile(function, fullgraph=True, backend="inductor")(query, key, value)
        assert torch.allclose(result, function(query, key, value), atol=ROUNDOFF[dtype])


def test_exported_programs_keep_the_operator():
    class Model(torch.nn.Module):
        def forward(self, query, key, value, mask):
            return scaled_dot_product_attention(query, key, value, mask, tolerance=0.1)

    arguments = (*inputs((2, 4, 5, 16), (2, 4, 9, 16), 8), normal(5, 5, 9) > 0)
    program = torch.export.export(Model(), arguments)
    assert torch.ops.icecore.scaled_dot_product_attention.default in [node.target for node in program.graph.nodes]
    assert torch.equal(program.module()(*arguments), Model()(*arguments))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shapes", [((2, 4, 5, 16), (2, 2, 9, 16)), ((5, 16), (9, 16)), ((2, 1, 4, 5, 16), (1, 3, 1, 9, 16))])
def test_the_operator_keeps_its_contract(shapes, dtype):
    arguments = inputs(*shapes, 8, dtype)
    for mask, causal, lower_right in ((None, True, False), (None, False, True), (normal(5, 5, 9) > 0, False, False)):
        values = (*arguments, mask, causal, lower_right, None, 0.1, None, None)
        torch.library.opcheck(torch.ops.icecore.scaled_dot_product_attention, values)


# ---- replace_sdpa ----


def attend(**options):
    return functional.scaled_dot_product_attention(*inputs((2, 4, 5, 16), (2, 4, 9, 16), 8), **options)


def test_torchs_function_is_replaced_inside_the_with_and_only_there(computed):
    original = functional.scaled_dot_product_attention
    attend()
    with replace_sdpa():
        inside = attend(is_causal=True)
        assert functional.scaled_dot_product_attention is original
    assert len(computed) == 1
    assert torch.allclose(inside, attend(is_causal=True), atol=2e-6)
    assert len(computed) == 1


def test_what_is_inside_goes_with_an_exception(computed):
    with pytest.raises(KeyError), replace_sdpa():
        raise KeyError
    attend()
    assert computed == []


def test_other_threads_are_not_touched(computed):
    with replace_sdpa():
        thread = threading.Thread(target=attend)
        thread.start()
        thread.join()
        assert computed == []
        attend()
    assert len(computed) == 1


def test_the_inner_with_decides(computed):
    with replace_sdpa(tolerance=0.1, min_keys=0), replace_sdpa(tolerance=0.2, min_keys=0):
        attend()
    assert [call[-1]["tolerance"] for call in computed] == [0.2]


def test_calls_of_few_keys_are_exact(computed):
    with replace_sdpa(tolerance=0.1, min_keys=9):
        attend()
    with replace_sdpa(tolerance=0.1, min_keys=10):
        attend()
    assert [call[-1]["tolerance"] for call in computed] == [0.1, None]


def test_calls_of_few_keys_have_their_threads(computed):
    with replace_sdpa(tolerance=0.1, num_threads=1):
        attend()
    assert computed[0][-1]["num_threads"] == 1


def test_arguments_of_the_replacement_may_have_their_names(computed):
    query, key, value = inputs((2, 4, 5, 16), (2, 4, 9, 16), 8)
    with replace_sdpa():
        out = functional.scaled_dot_product_attention(key=key, value=value, query=query, scale=0.5)
    assert_same(out, query, key, value, scale=0.5)
    assert len(computed) == 1


def test_causal_biases_are_seen_by_the_replacement(computed):
    query, key, value = inputs((2, 4, 5, 16), (2, 4, 9, 16), 8)
    bias = torch.nn.attention.bias.causal_lower_right(5, 9)
    with replace_sdpa():
        out = functional.scaled_dot_product_attention(query, key, value, bias)
    assert_same(out, query, key, value, bias)
    assert [call[3] for call in computed] == [None]  # no mask


def test_compiled_functions_follow_the_replacement():
    targets = []

    def backend(graph, _):
        targets.append([node.target for node in graph.graph.nodes])
        return graph

    def function(query, key, value):
        return functional.scaled_dot_product_attention(query, key, value)

    arguments = inputs((2, 4, 5, 16), (2, 4, 9, 16), 8)
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    compiled(*arguments)
    with replace_sdpa():
        compiled(*arguments)
    operator = torch.ops.icecore.scaled_dot_product_attention.default
    assert [operator in graph for graph in targets] == [False, True]


@pytest.mark.parametrize(
    "options, error, match",
    [
        ({"tolerance": 2.0}, ValueError, "tolerance must be above 0 and below 1, got 2.0"),
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"num_threads": 0}, ValueError, "num_threads"),
        ({"min_keys": -1}, ValueError, "min_keys must be an integer of at least 0, got -1"),
    ],
)
def test_wrong_arguments_are_refused_before_the_block(options, error, match):
    with pytest.raises(error, match=match), replace_sdpa(**options):
        raise AssertionError("the block was entered")


def test_a_model_of_modules_gives_the_same_result(computed):
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.project = torch.nn.Linear(32, 96)

        def forward(self, x):
            query, key, value = self.project(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
            return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)

    model, x = torch.nn.Sequential(Layer(), Layer()), normal(0, 2, 7, 32)
    with torch.inference_mode():
        expected = model(x)
        with replace_sdpa():
            assert torch.allclose(model(x), expected, atol=1e-6)
    assert len(computed) == 2


def test_icecore_itself_imports_no_torch():
    assert run_python("import sys, icecore; assert 'torch' not in sys.modules").returncode == 0
