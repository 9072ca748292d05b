"""NearFarCache in transformers' generate(): the tokens of sdpa with a DynamicCache, whatever is done to the cache."""

import copy
import inspect
import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers_models import CACHE, small_model, tokens  # noqa: E402

from icecore.transformers import NearFarCache, attention, calls, register, report  # noqa: E402
from icecore.transformers.near_far_layer import NearFarLayer  # noqa: E402
from icecore.transformers.stored_states import StoredStates  # noqa: E402

#: So fine that tokens do not change; small enough that rows have sealed windows after 90 tokens.
FINE = {"tolerance": 1e-3, "window": 16, "sinks": 4, "min_length": 40}


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    register("icecore")
    monkeypatch.setattr(attention, "MIN_KEYS", 0)  # these are short
    report(reset=True)
    calls._warned.clear()


@pytest.fixture(scope="module")
def model():
    return small_model("llama")


def left_padded(length=90):
    mask = torch.ones(2, length, dtype=torch.long)
    mask[0, :23] = 0
    return {"input_ids": tokens(2, length), "attention_mask": mask}


def generated(model, name, cache=None, new=12, **options):
    model.set_attn_implementation(name)
    options = {"do_sample": False, "max_new_tokens": new, **options}
    return model.generate(**options, **({} if cache is None else {CACHE: cache}))


def near_far(model, **options):
    return NearFarCache(model.config, **{**FINE, **options})


def assert_same_tokens(model, cache=None, from_cache=1, **options):
    """Tokens are those of sdpa; so many calls at least attended from the cache."""
    expected = generated(model, "sdpa", **options)
    report(reset=True)
    cache = near_far(model) if cache is None else cache
    assert torch.equal(generated(model, "icecore", cache, **options), expected)
    assert report()["cache"] >= from_cache and report()["fallbacks"] == {}
    return cache


# ---- generate() ----


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2},
        {"prefill_chunk_size": 32},
        {"prefill_chunk_size": 50},
    ],
    ids=str,
)
def test_tokens_are_those_of_sdpa(model, options):
    assert_same_tokens(model, near_far(model), 22, input_ids=tokens(1, 90), **options)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}], ids=str)
def test_tokens_of_left_padded_batches_are_those_of_sdpa(model, options):
    assert_same_tokens(model, near_far(model), 22, **left_padded(), **options)


def test_guessed_tokens_are_those_of_sdpa(model):
    prompt = tokens(1, 30).repeat(1, 3)
    assert_same_tokens(model, near_far(model), 4, input_ids=prompt, prompt_lookup_num_tokens=4, new=24)
    assistant = small_model("llama")
    with torch.no_grad():
        assistant.lm_head.weight.mul_(torch.linspace(0.9, 1.1, 100)[:, None])
    assert_same_tokens(model, near_far(model), 4, input_ids=prompt, assistant_model=assistant, new=24)


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "mixtral", "gpt_oss", "gpt2"])
def test_other_families_decode_from_it(family):
    model = small_model(family, "eager" if family == "gpt_oss" else "sdpa")
    inputs = left_padded()
    expected = model.generate(**inputs, do_sample=False, max_new_tokens=12)
    assert torch.equal(generated(model, "icecore", near_far(model), **inputs), expected)
    assert report()["cache"] >= 11


def test_keys_that_a_model_makes_of_cached_ones_are_attended_as_they_are():
    model = small_model("deepseek_v3")
    expected = generated(model, "sdpa", **left_padded())
    report(reset=True)
    assert torch.equal(generated(model, "icecore", near_far(model), **left_padded()), expected)
    assert report()["cache"] == 0 and report()["exact"] > 0


def test_static_caches_are_attended_rightly(model):
    options = {**left_padded(), "cache_implementation": "static", "disable_compile": True}
    assert torch.equal(generated(model, "icecore", **options), generated(model, "sdpa", **options))


def test_encoders_and_decoders_generate():
    model = small_model("t5")
    expected = generated(model, "sdpa", input_ids=tokens(2, 40), num_beams=2)
    own = NearFarCache(model.config, **{**FINE, "min_length": 4})
    for cache in (None, transformers.EncoderDecoderCache(own, transformers.DynamicCache(config=model.config))):
        assert torch.equal(generated(model, "icecore", cache, input_ids=tokens(2, 40), num_beams=2), expected)


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss"])
def test_soft_caps_and_sinks_are_attended_from_it(family):
    model = small_model(family, "eager")
    model.config.layer_types = ["sliding_attention", "full_attention"]
    expected = model.generate(**left_padded(), do_sample=False, max_new_tokens=12)
    assert torch.equal(generated(model, "icecore", near_far(model), **left_padded()), expected)
    counts = report()
    assert counts["cache"] >= 11 and not counts["fallbacks"]


def test_indexed_models_keep_their_own_layers():
    model = small_model("deepseek_v32")
    with pytest.raises(ValueError, match="the model has no layer of full attention"):
        near_far(model)


def test_other_attention_reads_it_as_a_dynamic_cache(model):
    expected = generated(model, "sdpa", **left_padded())
    assert torch.equal(generated(model, "sdpa", near_far(model), **left_padded()), expected)


def test_a_chat_goes_on_with_its_cache(model):
    cache = near_far(model)
    first = generated(model, "icecore", cache, input_ids=tokens(1, 90))
    second = torch.cat([first, tokens(1, 30, seed=5)], dim=1)
    expected = generated(model, "sdpa", input_ids=second)
    report(reset=True)
    assert torch.equal(generated(model, "icecore", cache, input_ids=second), expected)
    assert report()["cache"] == report()["calls"]


def test_it_is_used_in_and_out_of_inference_mode(model):
    cache, prompt = near_far(model), tokens(1, 90)
    model.set_attn_implementation("icecore")
    with torch.inference_mode():
        model(prompt[:, :60], **{CACHE: cache})
    with torch.no_grad():
        model(prompt[:, 60:85], **{CACHE: cache})
    expected = generated(model, "sdpa", input_ids=prompt)
    assert torch.equal(generated(model, "icecore", cache, input_ids=prompt), expected)


def test_gradients_go_through_it_as_through_a_dynamic_cache():
    gradients = []
    for make in (lambda config: transformers.DynamicCache(config=config), lambda config: NearFarCache(config, **FINE)):
        model = small_model("llama")
        model.set_attn_implementation("sdpa")
        cache = make(model.config)
        first = model(tokens(1, 50), **{CACHE: cache}).logits.square().mean()
        (first + model(tokens(1, 10, seed=3), **{CACHE: cache}).logits.square().mean()).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(*gradients, strict=True))


# ---- What is done to a cache ----


def continued(model, cache, ids, **options):
    model.set_attn_implementation("icecore" if isinstance(cache, NearFarCache) else "sdpa")
    with torch.no_grad():
        return model(ids, **{CACHE: cache}, **options).logits


def filled(model, batch=2, length=90, **options):
    """(a DynamicCache, a NearFarCache) of the same tokens, the last ones attended from the cache."""
    caches = transformers.DynamicCache(config=model.config), near_far(model, **options)
    for cache in caches:
        continued(model, cache, tokens(batch, length))
        continued(model, cache, tokens(batch, 5, seed=7))
    return caches


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: cache.crop(-3),
        lambda cache: cache.crop(-70),
        lambda cache: cache.crop(-95),
        lambda cache: cache.crop(0),
        lambda cache: cache.reorder_cache(torch.tensor([1, 1])),
        lambda cache: cache.batch_repeat_interleave(2),
        lambda cache: cache.batch_select_indices(torch.tensor([1])),
        lambda cache: cache.batch_select_indices(torch.tensor([False, True])),
        lambda cache: [layer.offload() or layer.prefetch() for layer in cache.layers],
        lambda cache: cache.reset(),
    ],
)
def test_what_is_done_to_it_is_done_as_to_a_dynamic_cache(model, change):
    dynamic, own = filled(model)
    for cache in (dynamic, own):
        change(cache)
    assert own.get_seq_length() == dynamic.get_seq_length()
    assert own.get_mask_sizes(3, 0) == dynamic.get_mask_sizes(3, 0)
    batch = 2 if dynamic.layers[0].keys is None else len(dynamic.layers[0].keys)
    for length in (3, 50):
        ids = tokens(batch, length, seed=8)
        assert torch.allclose(continued(model, own, ids), continued(model, dynamic, ids), atol=0.03)
    assert own.get_seq_length() == dynamic.get_seq_length()


def test_copies_go_their_own_ways(model):
    dynamic, own = filled(model)
    expected = [continued(model, copy.deepcopy(dynamic), tokens(2, 30, seed=seed)) for seed in (8, 9)]
    copies = [copy.deepcopy(own) for _ in expected]
    for seed, other, logits in zip((8, 9), copies, expected, strict=True):
        assert torch.allclose(continued(model, other, tokens(2, 30, seed=seed)), logits, atol=0.03)
    assert own.get_seq_length() == 95


def test_every_method_of_transformers_layers_is_its_own():
    """Fails where a release adds one: inherited, it would change the dense tensors alone."""
    bases = (transformers.cache_utils.CacheLayerMixin, transformers.cache_utils.DynamicLayer)
    names = {name for base in bases for name, _ in inspect.getmembers(base, inspect.isfunction)}
    names -= {"__init_subclass__", "__repr__"}
    assert {name for name in names if name not in vars(NearFarLayer)} == set()


def test_values_that_a_model_changes_after_the_cache_are_attended_as_they_are(model):
    cache = near_far(model)
    keys, values = cache.update(*(torch.randn(1, 2, 60, 16) for _ in range(2)), 0)
    query = torch.randn(1, 4, 1, 16)
    function = transformers.AttentionInterface()["icecore"]
    with torch.no_grad():
        changed = function(model.model.layers[0].self_attn, query, keys, 2 * values, None)[0]
        expected = 2 * function(model.model.layers[0].self_attn, query, keys, values, None)[0]
    assert torch.allclose(changed, expected, atol=1e-3) and report()["cache"] == 1 and report()["exact"] == 1


def test_keys_and_values_are_those_of_a_dynamic_cache(model):
    dynamic, own = filled(model)
    for layer, other in zip(own.layers, dynamic.layers, strict=True):
        assert torch.allclose(layer.keys, other.keys, atol=1e-5) and torch.allclose(layer.values, other.values, atol=1e-5)


def test_what_is_read_back_is_what_came(model):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        layer, dynamic = near_far(model).layers[0], transformers.DynamicCache(config=model.config).layers[0]
        for length in (60, 1, 1, 30):
            states = [torch.randn(2, 2, length, 16).to(dtype) for _ in range(2)]
            held = [cache.update(*states)[0] for cache in (layer, dynamic)]
            layer.attend(torch.randn(2, 4, length, 16).to(dtype), [0, 7], {}, None)
            assert held[0].shape == held[1].shape and held[0].dtype == held[1].dtype
        for own, other in ((layer.keys, dynamic.keys), (layer.values, dynamic.values)):
            assert torch.equal(own[0], other[0]) and torch.equal(own[1, :, 7:], other[1, :, 7:]) and not own[1, :, :7].any()


def test_what_anybody_does_with_keys_that_are_not_read_back_is_done_with_those_that_are(model):
    own = filled(model)[1]
    keys, values = own.layers[0].update(*(torch.ones(2, 2, 1, 16) for _ in range(2)))
    held = own.nbytes
    assert type(keys) is StoredStates and keys.shape == (2, 2, 96, 16) and keys.dtype == torch.float32
    assert len(keys.shape) == keys.ndim and not keys.requires_grad and keys.device == torch.device("cpu")
    assert keys.to(torch.bfloat16).dtype == torch.bfloat16 and own.nbytes == held
    plain = own.layers[0].keys
    assert type(plain) is torch.Tensor and own.nbytes > held
    for change in (lambda states: 2 * states, lambda states: states[:, :, 3:9], lambda states: states.transpose(1, 2),
                   lambda states: torch.cat([states, states], dim=2), lambda states: states.to(torch.bfloat16) + 1):
        assert torch.equal(change(keys), change(plain)) and type(change(keys)) is torch.Tensor
    assert torch.equal(values + 0, own.layers[0].values)


def test_keys_and_values_are_kept_once(model):
    own = near_far(model, min_length=256, window=64)
    continued(model, own, tokens(1, 4096))
    once = 2 * 2 * 2 * 4096 * 16 * 4  # keys and values, layers, heads
    continued(model, own, tokens(1, 1))
    assert once < own.nbytes < 1.5 * once
    own.layers[0].keys  # noqa: B018 (reads back)
    assert own.nbytes > 1.4 * once
    continued(model, own, tokens(1, 1))
    assert own.nbytes < 1.5 * once


def test_another_attention_in_the_midst_of_decoding_reads_what_is_there(model):
    """And from then on appends to it, as to a DynamicCache."""
    dynamic, own = filled(model)
    for name in ("sdpa", "eager", "icecore", "sdpa"):
        for length in (1, 1, 4):
            ids = tokens(2, length, seed=9)
            expected = continued(model, dynamic, ids)
            model.set_attn_implementation(name)
            with torch.no_grad():
                assert torch.allclose(model(ids, **{CACHE: own}).logits, expected, atol=0.03)


def test_autocast_decodes_from_it(model):
    results = []
    for cache in filled(model):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            results += [continued(model, cache, tokens(2, length, seed=8)).float() for length in (1, 3)]
    report(reset=True)
    assert torch.allclose(results[0], results[2], atol=0.2) and torch.allclose(results[1], results[3], atol=0.2)


def test_holes_and_padding_that_changes_are_attended_rightly(model):
    for first in (3, 40):
        dynamic, own = filled(model)
        mask = torch.ones(2, 96, dtype=torch.long)
        mask[0, :first], mask[1, 50:60] = 0, 1 if first == 3 else 0
        results = [continued(model, cache, tokens(2, 1), attention_mask=mask) for cache in (own, dynamic)]
        assert torch.allclose(*results, atol=0.03)


def test_tokens_that_were_padding_cannot_be_seen_later(model):
    own, padded = near_far(model), left_padded()
    continued(model, own, padded["input_ids"], attention_mask=padded["attention_mask"])
    continued(model, own, tokens(2, 1), attention_mask=torch.cat([padded["attention_mask"], torch.ones(2, 1).long()], dim=1))
    with pytest.raises(ValueError, match=r"rows begin at tokens \[0, 0\] now, and began at \[23, 0\]; expected no token that"):
        continued(model, own, tokens(2, 1), attention_mask=torch.ones(2, 92, dtype=torch.long))


@pytest.mark.parametrize("keep", (60, 23, 10, 1))
def test_rows_are_cropped_into_their_padding(model, keep):
    mask = torch.ones(2, keep + 100, dtype=torch.long)
    mask[0, :23] = 0

    def results(cache):
        """Logits of the tokens that are no padding."""
        seen = []

        def more(new, mask):
            end = cache.get_seq_length() + new
            logits = continued(model, cache, tokens(len(mask), new, seed=end), attention_mask=mask[:, :end])
            seen.append(logits[mask[:, end - new : end].bool()])

        more(90, mask)
        more(1, mask)
        cache.crop(keep - 91)
        for _ in range(3):
            more(1, mask)
        cache.reorder_cache(torch.tensor([1, 0]))
        cache.batch_repeat_interleave(2)
        more(25, mask[[1, 1, 0, 0]])
        cache.crop(-27)
        more(2, mask[[1, 1, 0, 0]])
        return seen

    own = near_far(model, min_length=1)
    pairs = zip(results(own), results(transformers.DynamicCache(config=model.config)), strict=True)
    assert all(torch.allclose(*pair, atol=0.03) for pair in pairs)
    assert own.get_seq_length() == keep + 3


def test_a_row_that_is_all_padding_yet_begins_later(model):
    """Without a new cache at each token: the other row's stays."""
    own, mask = near_far(model), torch.ones(2, 100, dtype=torch.long)
    mask[1, :97] = 0
    for end, new in ((90, 90), (91, 1)):
        continued(model, own, tokens(2, new, seed=end), attention_mask=mask[:, :end])
    held = own.layers[0]._cache
    for end in range(92, 100):
        continued(model, own, tokens(2, 1, seed=end), attention_mask=mask[:, :end])
    assert own.layers[0]._cache is held and held.lengths.tolist() == [99, 2]


# ---- Files ----


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("opener", ("load", "view"))
@pytest.mark.parametrize("storage", ({}, {"dtype": "bfloat16"}, {"min_length": 1000}), ids=str)
def test_a_saved_cache_goes_on_as_the_one_that_was_saved(tmp_path, family, opener, storage):
    model = small_model(family)
    own = filled(model, **storage)[1]
    own.save(tmp_path / "prompt")
    opened = getattr(NearFarCache, opener)(tmp_path / "prompt", model.config)
    assert type(opened) is NearFarCache and opened.get_seq_length() == 95
    if family == "llama":  # sliding windows are not cropped
        own.crop(-2)
        opened.crop(-2)
    for length in (1, 20, 1):
        ids = tokens(2, length, seed=8)
        assert torch.allclose(continued(model, opened, ids), continued(model, own, ids), atol=2e-3)
    again = NearFarCache.load(tmp_path / "prompt", model.config)  # what was done to a view is not in the file
    assert again.get_seq_length() == 95
    assert torch.allclose(continued(model, again, tokens(2, 1)), continued(model, filled(model, **storage)[1], tokens(2, 1)),
                          atol=2e-3)


def test_a_new_cache_is_saved_too(tmp_path, model):
    near_far(model).save(tmp_path / "new")
    assert NearFarCache.load(tmp_path / "new", model.config).get_seq_length() == 0


def test_numbers_of_numpy_are_kept_as_numbers(tmp_path, model):
    NearFarCache(model.config, tolerance=np.float32(0.1), window=np.int64(64)).save(tmp_path / "new")
    assert NearFarCache.load(tmp_path / "new", model.config).get_seq_length() == 0


def test_files_of_other_models_and_damaged_ones_are_refused(tmp_path, model):
    own = filled(model)[1]
    own.save(tmp_path / "prompt")
    with pytest.raises(FileExistsError, match="is there; expected a new name"):
        own.save(tmp_path / "prompt")
    with pytest.raises(FileNotFoundError):
        NearFarCache.load(tmp_path / "missing", model.config)
    with pytest.raises(ValueError, match="is not a usable cache of this model: it has the layers"):
        NearFarCache.load(tmp_path / "prompt", small_model("gemma3").config)
    other = copy.deepcopy(model.config)
    other.num_key_value_heads = 4
    with pytest.raises(ValueError, match="its model has num_key_value_heads 2; this one has 4"):
        NearFarCache.load(tmp_path / "prompt", other)
    with pytest.raises(TypeError, match=r"config must be a transformers.PreTrainedConfig such as model.config, got LlamaFor"):
        NearFarCache.load(tmp_path / "prompt", model)
    for name in ("dense.safetensors", "layer1.safetensors", "cache.json"):
        file = tmp_path / "prompt" / name
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match="is not a usable cache of this model"):
            NearFarCache.load(tmp_path / "prompt", model.config)
        file.write_bytes(whole)
    about = json.loads((tmp_path / "prompt" / "cache.json").read_text())
    about["layers"][0]["firsts"] = [0, 0, 0]
    (tmp_path / "other").mkdir()
    for file in (tmp_path / "prompt").iterdir():
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "other" / "cache.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="the cache has 2 rows, and 3 tokens at which rows begin; expected 2 of each"):
        NearFarCache.load(tmp_path / "other", model.config)
    shutil.rmtree(tmp_path / "other")
    NearFarCache.load(tmp_path / "prompt", model.config)
    assert [entry.name for entry in tmp_path.iterdir()] == ["prompt"]


# ---- Arguments ----


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        ({"tolerance": 2}, ValueError, "tolerance must be above 0 and below 1, got 2"),
        ({"tolerance": 0.1, "k": 8}, ValueError, "replaces k"),
        ({"dtype": "float64"}, ValueError, "dtype must be one of"),
        ({"min_length": 0}, ValueError, "min_length must be an integer of at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_refused(model, arguments, error, match):
    with pytest.raises(error, match=match):
        NearFarCache(model.config, **arguments)


@pytest.mark.parametrize("config", (None, "llama", small_model("llama")), ids=("None", "str", "model"))
def test_what_is_no_configuration_is_refused(config):
    with pytest.raises(TypeError, match=rf"config must be a transformers.PreTrainedConfig .* got {type(config).__name__}"):
        NearFarCache(config)


def test_models_of_windows_alone_are_refused():
    with pytest.raises(ValueError, match="no layer of full attention, only DynamicSlidingWindowLayer; expected a DynamicCache"):
        NearFarCache(small_model("mistral").config)
