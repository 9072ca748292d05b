"""A cache for transformers' models whose layers attend by near/far attention."""

import json
import secrets
import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

import icecore
from icecore.transformers.near_far_layer import NearFarLayer

VERSION = 4
#: What of a configuration two models have in common that may share a cache.
SHARED = ("model_type", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")


class NearFarCache(Cache):
    """Keys and values of a decoder, attended by near/far attention once they are many.

    For models whose attention is one that `register` has named. A prompt attends as its name says. Later tokens attend from an
    `icecore.KVCache` for each layer; padding at the beginning of a row never enters it. Layers with a sliding window
    are transformers' own, and keys that a model makes of the cached ones (latent attention) are attended as they are.

    Keys and values are kept once. What else needs them (another attention, masks with holes, rows whose padding changes) reads
    them back from there, and they stay until tokens attend from there again.

    Parameters
    ----------
    config : transformers.PreTrainedConfig
        ``model.config``.
    tolerance, k, window, sinks
        As in `icecore.KVCache`; a tolerance of 0.02 where neither it nor k is given.
    dtype : {"float32", "float16", "bfloat16", "int8", "int4"}, optional
        Storage; default the model's.
    min_length : int
        Up to here layers attend exactly.

    Raises
    ------
    TypeError, ValueError
        Arguments that `icecore.KVCache` would refuse; a model without a layer of full attention.
    """

    def __init__(self, config, *, tolerance=None, k=None, window=None, sinks=None, dtype=None, min_length=2048):
        options = {"tolerance": tolerance, "k": k, "window": window, "sinks": sinks, "dtype": dtype}
        options = {name: value for name, value in options.items() if value is not None}
        _check_config(config)
        cache = icecore.KVCache(1, 1, **options)
        options = {name: getattr(cache, name) for name in options}
        if isinstance(min_length, bool) or not isinstance(min_length, int) or min_length < 1:
            raise ValueError(f"min_length must be an integer of at least 1, got {min_length!r}")
        layers = [
            NearFarLayer(options, min_length) if type(layer) is DynamicLayer else layer
            for layer in DynamicCache(config=config).layers
        ]
        if not any(isinstance(layer, NearFarLayer) for layer in layers):
            kinds = ", ".join(sorted({type(layer).__name__ for layer in layers}))
            raise ValueError(f"the model has no layer of full attention, only {kinds}; expected a DynamicCache")
        super().__init__(layers=layers)
        self._arguments = {**options, "min_length": min_length}
        decoder = config.get_text_config(decoder=True)
        self._model = {name: getattr(decoder, name, None) for name in SHARED}

    @property
    def nbytes(self):
        """Memory held, in bytes; parts that copies share count in each."""
        total = 0
        for layer in self.layers:
            if isinstance(layer, NearFarLayer):
                total += layer.nbytes
            else:
                total += sum(states.nbytes for states in (layer.keys, layer.values) if states is not None)
        return total

    # ---- Files ----

    def save(self, path):
        """Write a folder: whole, or not at all.

        Parameters
        ----------
        path : path-like
            Of a folder that is not there yet.

        Raises
        ------
        FileExistsError
            Something is there.
        ValueError
            A kind of layer that is neither of full attention nor of a sliding window.
        """
        path = Path(path)
        if path.exists():
            raise FileExistsError(f"{path} is there; expected a new name")
        folder = path.with_name(f".{path.name}-{secrets.token_hex(8)}.tmp")
        folder.mkdir()
        try:
            self._write(folder)
            folder.rename(path)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _write(self, folder):
        about, tensors = [], {}
        for i, layer in enumerate(self.layers):
            if isinstance(layer, NearFarLayer):
                content, states, cache = layer.content()
                if cache is not None:
                    cache.save(folder / f"layer{i}.safetensors")
            elif type(layer) is DynamicSlidingWindowLayer:
                content = {"length": layer.cumulative_length}
                states = {"keys": layer.keys.contiguous(), "values": layer.values.contiguous()} if layer.is_initialized else {}
            else:
                raise ValueError(f"layer {i} is a {type(layer).__name__}, which cannot be saved")
            about.append({"kind": type(layer).__name__, **content})
            tensors |= {f"{i}.{name}": tensor for name, tensor in states.items()}
        save_file(tensors, folder / "dense.safetensors")
        content = {"version": VERSION, "model": self._model, "arguments": self._arguments, "layers": about}
        (folder / "cache.json").write_text(json.dumps(content))

    @classmethod
    def load(cls, path, config):
        """Read a saved cache into memory; it goes on as the saved one would have.

        Parameters
        ----------
        path : path-like
        config : transformers.PreTrainedConfig
            Of the same model.

        Raises
        ------
        FileNotFoundError
            There is none.
        ValueError
            It is damaged, of another version or of another model.
        """
        return cls._opened(path, config, icecore.KVCache.load)

    @classmethod
    def view(cls, path, config):
        """Map a saved cache: files are read as they are used (see `icecore.KVCache.view`). Otherwise as `load`."""
        return cls._opened(path, config, icecore.KVCache.view)

    @classmethod
    def _opened(cls, path, config, opener):
        _check_config(config)
        path = Path(path)
        text = (path / "cache.json").read_text()
        try:
            return cls._read(path, json.loads(text), config, opener)
        except (OSError, KeyError, TypeError, AttributeError, ValueError, SafetensorError) as error:
            raise ValueError(f"{path} is not a usable cache of this model: {error}") from error

    @classmethod
    def _read(cls, path, about, config, opener):
        if about["version"] != VERSION:
            raise ValueError(f"it is of version {about['version']!r}; this icecore reads version {VERSION}")
        new = cls(config, **about["arguments"])
        kinds, expected = [layer["kind"] for layer in about["layers"]], [type(layer).__name__ for layer in new.layers]
        if kinds != expected:
            raise ValueError(f"it has the layers {kinds}; the model has {expected}")
        for name, own in new._model.items():
            if about["model"][name] != own:
                raise ValueError(f"its model has {name} {about['model'][name]}; this one has {own}")
        tensors = load_file(path / "dense.safetensors")
        for i, (layer, content) in enumerate(zip(new.layers, about["layers"], strict=True)):
            states = {name: tensors[f"{i}.{name}"] for name in ("keys", "values") if f"{i}.{name}" in tensors}
            if isinstance(layer, NearFarLayer):
                cache = None if content["firsts"] is None else opener(path / f"layer{i}.safetensors")
                layer.restore(content, states, cache)
            elif states:
                layer.lazy_initialization(states["keys"], states["values"])
                layer.keys, layer.values, layer.cumulative_length = states["keys"], states["values"], content["length"]
        return new


def _check_config(config):
    if not isinstance(config, PreTrainedConfig):
        raise TypeError(f"config must be a transformers.PreTrainedConfig such as model.config, got {type(config).__name__}")
