"""generate() and long inputs of whole families: what eager attention gives, in every way that transformers generates."""

import warnings
from pathlib import Path

import pytest
from helpers import run_python

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers_models import CACHE, small_model, text_inputs, tokens  # noqa: E402

from icecore.transformers import attention, register, report  # noqa: E402

DECODERS = ("llama", "qwen3", "mistral", "gemma2", "gemma3", "mixtral", "gpt_oss", "llama4", "gpt2", "deepseek_v3",
            "deepseek_v32")
WAYS = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "chunked prompt": {"prefill_chunk_size": 16},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "assisted": {},
}


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    register("icecore")
    monkeypatch.setattr(attention, "MIN_KEYS", 0)  # these are short


def generated(model, name, new=8, **options):
    model.set_attn_implementation(name)
    report(reset=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.generate(do_sample=False, max_new_tokens=new, **options)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", DECODERS)
def test_tokens_are_those_of_eager_attention(family, way):
    model, options = small_model(family, "eager"), dict(WAYS[way])
    if way in ("prompt lookup", "assisted"):  # of single texts
        options["input_ids"] = tokens(1, 20).repeat(1, 2)
    else:
        mask = torch.ones(2, 40, dtype=torch.long)
        mask[0, :13] = 0
        options |= {"input_ids": tokens(2, 40), "attention_mask": mask}
    if way == "assisted":
        options["assistant_model"] = small_model(family, "eager")
    expected = generated(model, "eager", **options)
    assert torch.equal(generated(model, "icecore", **options), expected)
    counts = report()
    assert counts["calls"] == counts["exact"] > 0


@pytest.mark.parametrize("family", DECODERS)
def test_chats_go_on_with_the_cache_of_before(family):
    model = small_model(family, "eager")
    first, more = tokens(1, 30), tokens(1, 10, seed=3)
    results = []
    for name in ("eager", "icecore"):
        cache = transformers.DynamicCache(config=model.config)
        said = generated(model, name, input_ids=first, **{CACHE: cache})
        results.append(generated(model, name, input_ids=torch.cat([said, more], dim=1), **{CACHE: cache}))
    assert torch.equal(*results)


@pytest.mark.parametrize("family", ["whisper", "t5"])
@pytest.mark.parametrize("beams", (1, 3))
def test_decoders_of_encoders_give_the_tokens_of_eager_attention(family, beams):
    model, inputs = small_model(family, "eager"), text_inputs(family)
    expected = generated(model, "eager", num_beams=beams, **inputs)
    assert torch.equal(generated(model, "icecore", num_beams=beams, **inputs), expected)


# ---- Memory ----

LONG_ENCODER = """
import re, torch, transformers
import icecore.transformers

def memory(field):
    return 1024 * int(re.search(field + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

if name == "icecore":
    icecore.transformers.register(name, tolerance=tolerance)
config = transformers.XLMRobertaConfig(vocab_size=100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                                       intermediate_size=32, max_position_embeddings=8200, pad_token_id=0,
                                       attn_implementation=name)
model = transformers.XLMRobertaModel(config).eval()
mask = (torch.arange(8192) < torch.tensor([8192, 6000, 8000, 3000])[:, None]).long()
ids = torch.randint(3, 100, mask.shape)
with torch.inference_mode():
    model(ids[:, :64], attention_mask=mask[:, :64])
    before = memory("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")
    model(ids, attention_mask=mask)
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_a_padded_batch_of_long_texts_has_no_array_of_queries_by_keys():
    """Four rows of 8192 tokens: the mask alone that sdpa is given has 268 MB."""
    grown = []
    for name, tolerance in (("sdpa", None), ("icecore", None), ("icecore", 0.1)):
        done = run_python(f"name, tolerance = {name!r}, {tolerance}\n{LONG_ENCODER}")
        assert done.returncode == 0, done.stderr
        grown.append(int(done.stdout))
    assert grown[0] > 4 * 8192**2 and max(grown[1:]) < 8192**2
