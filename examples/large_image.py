"""Features of a large image by a vision transformer, with PyTorch's attention and with icecore's.

    python examples/large_image.py MODEL picture.jpg --size 1260

MODEL is a folder or a name of the Hugging Face Hub (ViT, DINOv2, ...). Thousands of patches are where attention is most of the
time, and near/far attention a fraction of it.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel

from icecore.transformers import register, report


def pixels(path, size, patch):
    """(1, 3, size, size), in -1 to 1, the size rounded down to whole patches."""
    size -= size % patch
    with Image.open(path) as image:
        array = np.asarray(image.convert("RGB").resize((size, size)), np.float32)
    return torch.from_numpy(array / 127.5 - 1).permute(2, 0, 1)[None]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--size", type=int, default=1260, help="of the square that the picture is scaled to, in pixels")
    parser.add_argument("--tolerance", type=float, default=0.04)
    options = parser.parse_args(arguments)

    model = AutoModel.from_pretrained(options.model).eval()
    inputs = {"pixel_values": pixels(options.picture, options.size, model.config.patch_size).to(model.dtype)}
    if model.config.model_type == "vit":
        inputs["interpolate_pos_encoding"] = True
    features = {}
    for name in ("sdpa", register(tolerance=options.tolerance)):
        model.set_attn_implementation(name)
        with torch.inference_mode():
            start = time.perf_counter()
            features[name] = model(**inputs).last_hidden_state.float()
            print(f"{name}: {features[name].shape[1]} tokens, {time.perf_counter() - start:.2f} s")
    exact, own = features.values()
    print(f"cosine of features, median and least: {torch.cosine_similarity(exact, own, dim=-1).median():.4f}, "
          f"{torch.cosine_similarity(exact, own, dim=-1).min():.4f}; {report()}")


if __name__ == "__main__":
    main()
