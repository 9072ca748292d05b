"""icecore.transformers: models of many families give what transformers' own attention gives, or say who computed it."""

import ast
import inspect
import re
import warnings
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers import masking_utils  # noqa: E402
from transformers_models import CACHE, FAMILIES, small_model, text_inputs, tokens  # noqa: E402

from icecore.transformers import attention, calls, masks, register, release, report  # noqa: E402

#: What these models refuse sdpa for.
EAGER = ("gemma2", "gpt_oss")
ENCODERS = ("bert", "modernbert", "nomic_bert", "xlm_roberta")
#: Exact attention in float32, through two layers; T5 does not scale its scores.
CLOSE = {"t5": 5e-4}


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    """Names are registered, short calls are icecore's as well, counts begin at 0, and warnings come again."""
    monkeypatch.setattr(attention, "MIN_KEYS", 0)
    torch.manual_seed(0)
    register("icecore")
    register("icecore-near", tolerance=1e-3, window=16, sinks=4, min_keys=32)
    report(reset=True)
    calls._warned.clear()


def outputs(model, name, **inputs):
    model.set_attn_implementation(name)
    with torch.inference_mode():
        return model(**inputs)[0]


def paddings(batch=2, length=40):
    left, right = (torch.ones(batch, length, dtype=torch.long) for _ in range(2))
    left[0, :13], right[1, 30:] = 0, 0
    holes = left * right
    holes[:, 20:23] = 0
    return {"left": left, "right": right, "both": left * right, "holes": holes}


# ---- Families ----


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_gives_its_own_result(family):
    own = "eager" if family in EAGER else "sdpa"
    model, inputs = small_model(family, own), text_inputs(family)
    expected = outputs(model, own, **inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = outputs(model, "icecore", **inputs)
    assert model.config._attn_implementation == "icecore"
    assert (result - expected).abs().max() < CLOSE.get(family, 5e-5)
    counts = report()
    assert counts["exact"] == counts["calls"] > 0


@pytest.mark.parametrize("padding", paddings())
@pytest.mark.parametrize("family", [*ENCODERS, "llama", "llama4", "mistral", "gemma2", "gpt_oss", "gpt2", "t5"])
def test_padding_is_hidden_as_by_the_familys_own_attention(family, padding):
    own, mask = "eager" if family in EAGER else "sdpa", paddings()[padding]
    model, inputs = small_model(family, own), text_inputs(family)
    expected = outputs(model, own, **inputs, attention_mask=mask)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = outputs(model, "icecore", **inputs, attention_mask=mask)
    seen = slice(None) if family == "t5" else mask.bool()
    assert (result - expected)[seen].abs().max() < CLOSE.get(family, 5e-5)
    if padding != "right" or family in (*ENCODERS, "t5"):  # a mask that is ignored would show
        assert (outputs(model, own, **inputs) - expected)[seen].abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_models_are_as_near_as_sdpa(dtype):
    model, inputs = small_model("llama"), text_inputs("llama")
    exact = outputs(model, "sdpa", **inputs)
    model = model.to(dtype)
    sdpa, result = (outputs(model, name, **inputs).float() for name in ("sdpa", "icecore"))
    assert (result - exact).abs().max() < 2 * (sdpa - exact).abs().max()
    assert report()["exact"] == 2


def test_autocast_is_followed():
    model, inputs = small_model("llama"), text_inputs("llama")
    exact = outputs(model, "sdpa", **inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sdpa, result = (outputs(model, name, **inputs).float() for name in ("sdpa", "icecore"))
    assert (result - exact).abs().max() < 2 * (sdpa - exact).abs().max()
    assert report()["exact"] == 2


def test_a_tolerance_is_kept_by_whole_models():
    model, inputs = small_model("llama"), {"input_ids": tokens(1, 300)}
    result, expected = outputs(model, "icecore-near", **inputs), outputs(model, "sdpa", **inputs)
    assert (result - expected).norm() < 0.01 * expected.norm()
    assert report()["near_far"] == 2


def test_names_with_other_settings_coexist_and_take_new_ones():
    model, inputs = small_model("llama"), {"input_ids": tokens(1, 100)}
    outputs(model, "icecore-near", **inputs)
    outputs(model, "icecore", **inputs)
    assert (report(reset=True)["near_far"], report()["calls"]) == (2, 0)
    register("icecore-near")
    outputs(model, "icecore-near", **inputs)
    assert report()["exact"] == 2


def test_calls_of_few_keys_are_pytorchs(monkeypatch):
    """What icecore adds to such a call is more than it could save."""
    monkeypatch.undo()
    model, inputs = small_model("llama"), {"input_ids": tokens(1, 60)}
    expected = outputs(model, "sdpa", **inputs)
    monkeypatch.delattr(attention, "attention")
    assert torch.allclose(outputs(model, "icecore", **inputs), expected, atol=1e-6)
    assert report()["exact"] == report()["calls"] == 2
    with pytest.raises(NameError):
        outputs(model, "icecore", input_ids=tokens(1, 100))


# ---- Masks ----


def masks_of_both(**options):
    options = {"batch_size": 2, "q_length": 40, "kv_length": 40, **options}
    return masks.compact_mask(**options), masks.sdpa_mask(**{**options, "allow_is_causal_skip": False})


@pytest.mark.parametrize("padding", paddings())
@pytest.mark.parametrize("queries", (40, 7, 1))
@pytest.mark.parametrize("causal", (True, False))
def test_compact_masks_say_what_dense_ones_do(padding, queries, causal):
    function = masks.causal_mask_function if causal else masks.bidirectional_mask_function
    compact, dense = masks_of_both(q_length=queries, q_offset=40 - queries, attention_mask=paddings()[padding].bool(),
                                   mask_function=function, allow_is_bidirectional_skip=not causal)
    dense = dense if dense is not None else torch.ones(2, 1, queries, 40, dtype=torch.bool)
    assert type(compact) is masks.CompactMask and compact.keep.shape == (2, 40)
    assert torch.equal(compact.full(), dense)
    assert compact.shape == dense.shape and compact.dtype == dense.dtype and compact.ndim == 4


def test_what_a_model_does_with_a_compact_mask_it_does_with_the_full_one():
    compact, dense = masks_of_both(attention_mask=paddings()["left"].bool())
    assert type(compact) is masks.CompactMask
    for change in (lambda mask: mask[:, :, :, :20], lambda mask: ~mask, lambda mask: torch.zeros(40, 40).masked_fill(mask, 1.0),
                   lambda mask: mask.expand(-1, 4, -1, -1), lambda mask: torch.cat([mask, mask], dim=-1)):
        assert torch.equal(change(compact), change(dense)) and type(change(compact)) is torch.Tensor


PACKED = torch.tensor([[0] * 9 + [1] * 20 + [2] * 11, [0] * 40])
BLOCKS = torch.tensor([[-1] * 10 + [0] * 12 + [-1] * 18, [-1] * 30 + [0] * 10])  # bidirectional ones, of images


def same_block(batch, head, query, key):
    return (BLOCKS[batch, query] == BLOCKS[batch, key]) & (BLOCKS[batch, query] >= 0)


FUNCTIONS = {
    "window": masking_utils.sliding_window_causal_mask_function(7),
    "two sides": masking_utils.sliding_window_bidirectional_mask_function(5),
    "packed": masking_utils.and_masks(masks.causal_mask_function, masking_utils.packed_sequence_mask_function(PACKED)),
    "blocks": masking_utils.or_masks(masks.causal_mask_function, same_block),
    "chunks": masking_utils.chunked_causal_mask_function(8, torch.zeros(2, dtype=torch.int64)),
}


@pytest.mark.parametrize("padding", ["left", "right", None])
@pytest.mark.parametrize("queries", [40, 7, 1])
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_masks_whose_rows_are_runs_are_kept_as_these(monkeypatch, kind, queries, padding):
    """Of the same keys as dense ones, never built whole, and attended as these are."""
    monkeypatch.setattr(masks, "_AT_ONCE", 3 * 80)
    options = {"q_length": queries, "q_offset": 40 - queries, "mask_function": FUNCTIONS[kind], "allow_is_causal_skip": False}
    mask, dense = masks_of_both(attention_mask=None if padding is None else paddings()[padding].bool(), **options)
    assert type(mask) is masks.RangeMask and mask.shape == (2, 1, queries, 40) and mask.device.type == "cpu"
    assert torch.equal(mask.full(), dense)
    seen = dense.any(dim=2).any(dim=0)[0].nonzero()
    assert (mask.first, mask.end) == (int(seen.min()), int(seen.max()) + 1)
    assert mask.causal == (not dense.triu(mask.end + 1 - queries).any())
    assert torch.equal(mask[:, :, :, :20], dense[..., :20]) and torch.equal(~mask, ~dense)
    query, key, value = (torch.randn(2, heads, n, 16) for heads, n in ((4, queries), (2, 40), (2, 40)))
    one, other = (transformers.AttentionInterface()["icecore"](Attention(), query, key, value, m)[0] for m in (mask, dense))
    assert torch.allclose(one, other, atol=1e-5)


def test_masks_with_holes_are_built():
    hole = torch.ones(2, 40, dtype=torch.bool)
    hole[1, 20] = False
    mask, dense = masks_of_both(mask_function=FUNCTIONS["window"], attention_mask=hole, allow_is_causal_skip=False)
    assert type(mask) is torch.Tensor and torch.equal(mask, dense)


@pytest.mark.parametrize("queries", [9, 1])
@pytest.mark.parametrize("name", ["icecore", "icecore-near"])
def test_of_a_static_cache_no_more_is_read_than_is_filled(name, queries):
    """Its offset is a tensor, and what lies behind is NaN here."""
    mask, dense = masks_of_both(q_length=queries, q_offset=torch.tensor(20), allow_is_causal_skip=False)
    assert type(mask) is masks.RangeMask and (mask.first, mask.end) == (0, 20 + queries) and mask.causal
    query, key, value = (torch.randn(2, heads, n, 16) for heads, n in ((4, queries), (2, 40), (2, 40)))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, dense, enable_gqa=True).transpose(1, 2)
    key[:, :, 20 + queries :] = value[:, :, 20 + queries :] = torch.nan
    out = transformers.AttentionInterface()[name](Attention(), query, key, value, mask)[0]
    assert torch.allclose(out, expected, atol=1e-5 if name == "icecore" else 0.5)


def test_nothing_hidden_needs_no_mask():
    assert masks_of_both()[0] is None
    assert masks_of_both(q_length=1, q_offset=39, attention_mask=torch.ones(2, 40, dtype=torch.bool))[0] is None
    assert type(masks_of_both(q_length=7, q_offset=33)[0]) is masks.CompactMask  # None would be aligned top-left


@pytest.mark.parametrize("name", ("icecore", "icecore-near"))
@pytest.mark.parametrize("padding, own", [("left", slice(13, None)), ("right", slice(0, 30))])
def test_a_row_is_that_row_alone_bit_for_bit(name, padding, own):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 40, 16, generator=generator) for heads in (4, 2, 2))
    causal, row = padding == "left", 0 if padding == "left" else 1
    function, mask = transformers.AttentionInterface()[name], masks.CompactMask(paddings()[padding].bool(), 40, causal)
    with torch.inference_mode():
        both = function(Attention(), query, key, value, mask)[0]
        alone = (tensor[row : row + 1, :, own] for tensor in (query, key, value))
        alone = function(Attention(), *alone, None, is_causal=causal)[0]
    assert torch.equal(both[row : row + 1, own], alone)


def test_packed_sequences_and_masks_of_the_users_own():
    model = small_model("llama")
    packed = torch.cat([torch.arange(25), torch.arange(15)])[None]
    own = torch.rand(2, 1, 40, 40, generator=torch.Generator().manual_seed(0)) > 0.4
    own |= torch.eye(40, dtype=torch.bool)
    for inputs in ({"input_ids": tokens(1, 40), "position_ids": packed, "use_cache": False},
                   {"input_ids": tokens(2, 40), "attention_mask": own},
                   {"input_ids": tokens(2, 40), "attention_mask": torch.where(own, 0.0, torch.finfo(torch.float32).min)}):
        result, expected = outputs(model, "icecore", **inputs), outputs(model, "sdpa", **inputs)
        assert (result - expected).abs().max() < 5e-5


def test_a_static_cache_that_is_filled_is_aligned_top_left():
    model = small_model("llama")
    for inputs in ({"input_ids": tokens(2, 40)}, {"input_ids": tokens(2, 40), "attention_mask": paddings()["left"]}):
        results = []
        for name in ("sdpa", "icecore"):
            cache = transformers.StaticCache(config=model.config, max_cache_len=64)
            results.append(outputs(model, name, **inputs, **{CACHE: cache}))
        seen = inputs.get("attention_mask", torch.ones(2, 40)).bool()
        assert (results[0] - results[1])[seen].abs().max() < 5e-5


# ---- What others compute ----


class Attention(torch.nn.Module):
    """A module as the attention functions are given."""

    is_causal = True
    num_key_value_groups = 2


def call(module=None, dtype=torch.float32, width=16, device="cpu", name="icecore", **options):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 9, width, generator=generator).to(device, dtype) for heads in (4, 2, 2))
    function = transformers.AttentionInterface()[name]
    return function(module or Attention(), query, key, value, options.pop("attention_mask", None), **options)[0]


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"dtype": torch.float64}, "query, key and value are torch.float64"),
        ({"width": 577}, "heads are wider than 576"),
        ({"dropout": 0.5}, "there is dropout"),
        ({"device": "meta"}, "tensors are on meta"),
    ],
)
def test_what_icecore_does_not_compute_is_computed_and_warned_of_once(options, reason):
    with torch.inference_mode(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = []
        for name in ("icecore", "sdpa", "icecore"):
            torch.manual_seed(0)
            results.append(call(name=name, **options))
    assert [reason in str(warning.message) and "sdpa" in str(warning.message) for warning in caught] == [True]
    assert [reason in said for said in report()["fallbacks"]] == [True] and sum(report()["fallbacks"].values()) == 2
    own, expected, again = results
    assert own.shape == expected.shape and own.dtype == expected.dtype and own.device == expected.device
    assert own.is_meta or (torch.equal(own, expected) and torch.equal(own, again))


def test_models_that_are_traced_are_computed_by_sdpa():
    model, ids = small_model("llama").requires_grad_(False), tokens(1, 20)
    expected = outputs(model, "icecore", input_ids=ids)
    with warnings.catch_warnings(record=True) as caught, torch.inference_mode():
        warnings.simplefilter("always")
        traced = torch.jit.trace(lambda ids: model(input_ids=ids, use_cache=False).logits, ids, check_trace=False)
    said = [str(warning.message) for warning in caught if "not by icecore" in str(warning.message)]
    assert len(said) == 1 and said[0].endswith("the model is traced by torch.jit")
    assert torch.allclose(traced(ids), expected, atol=5e-5)
    others = tokens(1, 20, seed=1)
    assert torch.allclose(traced(others), outputs(model, "icecore", input_ids=others), atol=5e-5)


def eager_attention_forward(module, query, key, value, attention_mask, sinks=None, **others):
    """As in the files of models."""
    return (query + sinks).transpose(1, 2), None


def test_what_only_the_models_eager_function_computes_is_warned_of_once():
    with torch.inference_mode(), pytest.warns(UserWarning, match="eager function, not by icecore: sinks is not") as caught:
        first, second = (call(sinks=torch.full((2, 4, 9, 1), value)) for value in (1.0, 3.0))
    assert len(caught) == 1 and torch.allclose(second - first, torch.tensor(2.0))
    assert report()["fallbacks"] == {"sinks is not computed": 2}


def test_the_gradients_of_training_are_sdpas_and_a_warning_says_why():
    gradients = []
    for name in ("sdpa", "icecore"):
        model = small_model("llama")
        model.set_attn_implementation(name)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ids = tokens(2, 40)
            model(ids, labels=ids, attention_mask=paddings()["left"]).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(*gradients, strict=True))
    said = [str(warning.message) for warning in caught if "icecore" in str(warning.message)]
    assert len(said) == 1 and "transformers' sdpa function, not by icecore: a gradient is wanted" in said[0]


@pytest.mark.parametrize("family", EAGER)
def test_sinks_and_soft_caps_are_kept_where_sdpa_would_ignore_them(family):
    model = small_model(family, "eager").train()
    expected = model(tokens(2, 40)).logits
    model.set_attn_implementation("icecore")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(model(tokens(2, 40)).logits, expected)  # with gradients: by the model's eager function
    assert all("gradient" in reason for reason in report()["fallbacks"])


@pytest.mark.parametrize("family", EAGER)
def test_sinks_and_soft_caps_that_are_ignored_would_show(family):
    model, inputs = small_model(family, "icecore"), text_inputs(family)
    own = outputs(model, "icecore", **inputs)
    for layer in model.model.layers:
        if family == "gemma2":
            layer.self_attn.attn_logit_softcapping = 0.01
        else:
            torch.nn.init.constant_(layer.self_attn.sinks, 9.0)
    changed = outputs(model, "icecore", **inputs)
    assert (changed - own).abs().max() > 1e-3
    assert (changed - outputs(model, "eager", **inputs)).abs().max() < 5e-5


@pytest.mark.parametrize("softcap", [None, 0.0, 0.7])
def test_a_soft_cap_of_a_call(softcap):
    query, key = torch.randn(2, 4, 9, 16), torch.randn(2, 2, 9, 16)
    with torch.inference_mode():
        attend = transformers.AttentionInterface()["icecore"]
        out = attend(Attention(), query, key, key, None, is_causal=False, softcap=softcap)[0]
    scores = query @ key.repeat_interleave(2, 1).transpose(2, 3) / 4
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    expected = torch.softmax(scores, -1) @ key.repeat_interleave(2, 1)
    assert torch.allclose(out, expected.transpose(1, 2), atol=1e-6)


def test_a_keyword_that_is_not_known_is_an_error():
    for name in ("a_new_keyword", "block_indices", "cu_seq_lens_q"):
        with pytest.raises(ValueError, match=f"Attention passes {name} to attention, which icecore does not know"):
            call(**{name: torch.ones(3)})
    assert report()["calls"] == 0
    with torch.inference_mode():
        call(a_new_keyword=None, sliding_window=4, position_ids=torch.arange(9))


def test_what_no_eager_function_computes_is_an_error(monkeypatch):
    monkeypatch.delitem(globals(), "eager_attention_forward")
    with pytest.raises(ValueError, match="Attention: sinks is not computed by icecore, and its file has no eager"):
        call(sinks=torch.zeros(1))


def test_ignored_indices_would_show():
    model, inputs = small_model("deepseek_v32"), text_inputs("deepseek_v32")
    expected = outputs(model, "sdpa", **inputs)
    model.config.index_topk = 40
    for layer in model.model.layers:
        layer.self_attn.indexer.index_topk = 40
    assert (outputs(model, "sdpa", **inputs) - expected).abs().max() > 0.1


@pytest.mark.parametrize("rows", [(1, 3), (3, 1)])
def test_queries_or_keys_of_one_row_are_shared_by_all(rows):
    query, key = torch.randn(rows[0], 4, 9, 16), torch.randn(rows[1], 2, 9, 16)
    with torch.inference_mode():
        shared, expected = (transformers.AttentionInterface()[name](Attention(), query, key, key, None, is_causal=False)[0]
                            for name in ("icecore", "sdpa"))
    assert torch.allclose(shared, expected, atol=1e-6) and report()["exact"] == 1


def test_indices_together_with_what_else_changes_scores_are_kept():
    indices = torch.stack([torch.randperm(9)[:4] for _ in range(18)]).reshape(2, 9, 4)
    chosen = torch.zeros(2, 1, 9, 9, dtype=torch.bool).scatter_(-1, indices[:, None], True)
    bias, heads = torch.randn(1, 4, 9, 9), torch.rand(2, 4, 9, 9) > 0.3
    heads |= torch.eye(9, dtype=torch.bool)
    chosen |= torch.eye(9, dtype=torch.bool)
    indices = [torch.nonzero(row).flatten() for row in chosen.flatten(0, 2)]
    indices = torch.stack([torch.cat([row, row[:1].expand(5 - len(row))]) for row in indices]).reshape(2, 9, 5)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        both = call(indices=indices, position_bias=bias, is_causal=False)
        assert torch.allclose(both, call(attention_mask=torch.where(chosen, bias, -torch.inf), is_causal=False), atol=1e-5)
        both = call(indices=indices, attention_mask=heads)
        assert torch.allclose(both, call(attention_mask=chosen & heads), atol=1e-5)
    assert report()["fallbacks"] == {"indices come with a position_bias or a mask for each head": 2}


def test_attention_weights_are_warned_of_once():
    with torch.inference_mode(), pytest.warns(UserWarning, match="icecore returns no attention weights") as caught:
        call(output_attentions=True)
        call(output_attentions=True)
    assert len(caught) == 1


def passed_keywords():
    """Of the installed release: keyword of an attention module -> the files that pass it."""
    passed = {}
    for file in Path(transformers.__file__).parent.glob("models/*/modeling_*.py"):
        text = file.read_text()
        if ".get_interface(" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "attention_interface":
                for keyword in node.keywords:
                    passed.setdefault(keyword.arg, set()).add(file)
    del passed[None]
    return passed


def test_keywords_of_the_installed_release_are_known():
    """Fails where a release passes a new one: it has to be read, and put on a list of attention.py."""
    listed = attention.HARMLESS | attention.COMPUTED | attention.EAGER | attention.REFUSED
    listed |= {*inspect.signature(attention.attend).parameters}
    passed = passed_keywords()
    assert len(passed) > 10
    assert {name: files for name, files in passed.items() if name not in listed} == {}
    for name in attention.EAGER | {"softcap", "position_bias"}:  # what falls back to eager functions, these read
        for file in passed.get(name, ()):
            [eager] = re.findall(r"^def eager_attention_forward\(.*?^\)", file.read_text(), re.M | re.S)
            assert re.search(rf"\b{name}\b", eager), file


def test_compiled_models_keep_icecores_operator():
    model, targets = small_model("llama"), []

    def backend(graph, _):
        targets.extend(node.target for node in graph.graph.nodes)
        return graph

    for inputs in ({"input_ids": tokens(2, 40)}, {"input_ids": tokens(2, 40), "attention_mask": paddings()["left"]}):
        expected = outputs(model, "icecore", **inputs, use_cache=False)
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        with torch.inference_mode():
            result = compiled(**inputs, use_cache=False)[0]
        seen = inputs.get("attention_mask", torch.ones(2, 40)).bool()
        assert (result - expected)[seen].abs().max() < 5e-5
    assert targets.count(torch.ops.icecore.scaled_dot_product_attention.default) == 4


# ---- Releases ----


def test_a_release_that_is_too_old_is_refused_by_name():
    with pytest.raises(ImportError, match=r"needs transformers 5.20 or later, but 5.19.0 is installed; expected pip install"):
        release.check_release("5.19.0")
    with pytest.raises(ImportError, match=r"but 4\.57\.6 is installed"):
        release.check_release("4.57.6")
    for version in ("5.20.0", "5.24.0.dev0", "6.0.0rc1", transformers.__version__):
        release.check_release(version)


def test_the_package_asks_for_the_release_that_it_accepts():
    requirements = Path(__file__).parents[1] / "pyproject.toml"
    assert f'"transformers>={".".join(map(str, release.OLDEST))},<6"' in requirements.read_text()


# ---- Arguments ----


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        ({"name": "flash-ice"}, ValueError, "means something else in transformers"),
        ({"name": "sdpa"}, ValueError, "means something else in transformers"),
        ({"name": "eager"}, ValueError, "means something else in transformers"),
        ({"name": "user/repository"}, ValueError, "name must be a word, got 'user/repository'"),
        ({"name": None}, ValueError, "name must be a word, got None"),
        ({"tolerance": 0.0}, ValueError, "tolerance must be above 0 and below 1, got 0.0"),
        ({"tolerance": 0.1, "k": 3}, ValueError, "tolerance=0.1 replaces k"),
        ({"window": 4}, ValueError, "window=4, sinks=None need tolerance or k"),
        ({"min_keys": 2.5}, ValueError, "min_keys must be an integer of at least 0, got 2.5"),
        ({"num_threads": 0}, ValueError, "num_threads"),
    ],
)
def test_wrong_arguments_are_refused_and_nothing_is_registered(arguments, error, match):
    with pytest.raises(error, match=match):
        register(**{"name": "icecore-refused", **arguments})
    assert "icecore-refused" not in transformers.AttentionInterface()
