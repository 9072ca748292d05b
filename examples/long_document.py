"""Read a long document once, keep what was read in a folder, and ask about it at any time.

    python examples/long_document.py MODEL document.txt "What is the document about?"

MODEL is a folder or a name of the Hugging Face Hub. The first call reads the document and saves its cache in
document.txt.cache; later ones map that folder, which takes milliseconds, and go on from there.
"""

import argparse
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from icecore.transformers import NearFarCache, register, report


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("document", type=Path)
    parser.add_argument("question")
    parser.add_argument("--tolerance", type=float, default=0.04, help="of reading; answers are given at 0.02")
    parser.add_argument("--tokens", type=int, default=100, help="of the answer, at most")
    options = parser.parse_args(arguments)

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, attn_implementation=register(tolerance=options.tolerance))
    document = tokenizer(options.document.read_text(), return_tensors="pt").input_ids
    folder = options.document.with_name(options.document.name + ".cache")

    start = time.perf_counter()
    if folder.exists():
        cache = NearFarCache.view(folder, model.config)
        print(f"{cache.get_seq_length()} tokens opened in {1e3 * (time.perf_counter() - start):.0f} ms")
    else:
        cache = NearFarCache(model.config, tolerance=0.02)
        with torch.inference_mode():
            model(document, cache=cache, logits_to_keep=1)
        cache.save(folder)
        print(f"{document.shape[1]} tokens read in {time.perf_counter() - start:.1f} s, {cache.nbytes / 2**20:.0f} MB kept")

    question = tokenizer(f"\n\n{options.question}\n", return_tensors="pt", add_special_tokens=False).input_ids
    prompt = torch.cat([document, question], dim=1)
    start = time.perf_counter()
    tokens = model.generate(prompt, cache=cache, max_new_tokens=options.tokens, do_sample=False)
    answer = tokens[0, prompt.shape[1] :]
    print(tokenizer.decode(answer, skip_special_tokens=True))
    print(f"{len(answer)} tokens in {time.perf_counter() - start:.1f} s; {report()}")


if __name__ == "__main__":
    main()
