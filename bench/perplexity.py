"""What near/far attention costs SmolLM2-135M: second half of 8100 tokens of Python's manual, the ratio of perplexities to exact
attention's and the mean Kullback-Leibler divergence of next tokens from its (which has far less noise).

    python bench/perplexity.py [FILE]        another text
"""

import sys
import time
from pathlib import Path

import numpy as np
from recorded import record

import icecore
from icecore import nn
from icecore.evaluation.texts import manual

LENGTH = 8100
SETTINGS = [
    {"tolerance": 0.05},
    {"tolerance": 0.04},
    {"tolerance": 0.03},
    {"tolerance": 0.02},
    {"tolerance": 0.03, "window": 768},
    {"tolerance": 0.02, "window": 768},
    {"k": 256},
]


def main(text):
    path = nn.find_smollm2()
    weights, tokens = nn.load_gguf(path), np.asarray(nn.load_tokenizer(path).encode(text)[:LENGTH])
    half, seconds = len(tokens) // 2, 0.0

    def timed(**options):
        def attention(query, key, value, *, layer):
            nonlocal seconds
            start = time.perf_counter()
            out = icecore.attention(query, key, value, causal=True, **options)
            seconds += time.perf_counter() - start
            return out

        return attention

    exact = nn.forward(weights, tokens, attention=timed())
    losses, choices = nn.score(weights, exact, tokens, half)
    print("| | attention, s | perplexity | ratio | divergence | equal next tokens |")
    print("|---|---|---|---|---|---|")
    print(f"| exact | {seconds:.1f} | {nn.perplexity(losses):.3f} | 1 | 0 | 100 % |")
    for options in SETTINGS:
        seconds = 0.0
        hidden = nn.forward(weights, tokens, attention=timed(**options))
        own_losses, own_choices = nn.score(weights, hidden, tokens, half)
        ratio = nn.perplexity(own_losses) / nn.perplexity(losses)
        divergence = nn.divergence(weights, hidden, exact, half)
        print(
            f"| {', '.join(map('{}={}'.format, options, options.values()))} | {seconds:.1f} | {nn.perplexity(own_losses):.3f} "
            f"| {ratio:.4f} | {divergence:.5f} | {100 * nn.agreement(own_choices, choices):.1f} % |",
            flush=True,
        )


if __name__ == "__main__":
    record()
    main(Path(sys.argv[1]).read_text(encoding="utf-8") if len(sys.argv) > 1 else manual())
