"""A decoder's cache whose layers attend by near/far attention."""

import json
import operator
import os
import secrets
import shutil
import zipfile
from pathlib import Path

import numpy as np

import icecore

from .cache import KeyValueCache, check_length

VERSION = 2
#: Queries at the end of a prompt that attend exactly.
LAST_EXACT = 100


class NearFarCache:
    """An `icecore.KVCache` for every layer, to be used wherever a `KeyValueCache` is.

    The first pass, the prompt's, goes to the model's `attention`, which sees all of it; later ones attend from the cache.
    Layers with a sliding window keep all tokens as they are and attend exactly. A pass that is interrupted leaves the cache
    as it was.

    Parameters
    ----------
    plan : icecore.Plan, optional
        Of the model's layers; the first pass then goes by it too if the model's `attention` is ``plan.attention``.
    last_exact : int
        The last so many queries of the first pass attend exactly, whatever the model's `attention` does: the end of a prompt
        often asks for something in it, and a mean over many rows says little about the one that matters.
    **options
        Of `icecore.KVCache`: ``tolerance`` or ``k``, ``window``, ``dtype`` and others.

    Attributes
    ----------
    length : int
        Number of tokens held.
    """

    def __init__(self, *, plan=None, last_exact=LAST_EXACT, **options):
        self.length, self._plan, self._last_exact = 0, plan, operator.index(last_exact)
        if self._last_exact < 0:
            raise ValueError(f"last_exact must be at least 0, got {last_exact}")
        if options.get("metric") is not None:
            options["metric"] = np.asarray(options["metric"]).tolist()  # for cache.json
        self._options = options
        self._layers = {}  # layer -> icecore.KVCache
        self._sliding = KeyValueCache()

    def attend(self, attention, layer, query, key, value, **options):
        """Add a layer's new rows and attend to all it holds; arguments and result as of `KeyValueCache.attend`."""
        if options.get("window") is not None:
            return self._sliding.attend(attention, layer, query, key, value, **options)
        if layer not in self._layers:
            heads, _, width = key.shape
            own = {} if self._plan is None else {"plan": self._plan[layer]}
            self._layers[layer] = icecore.KVCache(heads, width, value_dim=value.shape[-1], **(own | self._options))
        cache = self._layers[layer]
        if len(cache) > self.length:  # of a pass that was interrupted, or after truncate
            cache.truncate(self.length)
        if self.length:
            cache.append(key, value)
            return cache.attend(query)
        cache.append(key, value, query)
        out = attention(query, key, value, layer=layer, **options)
        last = min(self._last_exact, query.shape[1])
        if last:
            out = out if out.flags.writeable else out.copy()
            out[:, -last:] = icecore.attention(query[:, -last:], key, value, causal=True)
        return out

    def advance(self, count):
        """Count the last `count` rows added to every layer as held."""
        self.length += count
        self._sliding.advance(count)

    def save(self, path):
        """Write a folder: a file for each layer, and one of all layers with sliding windows.

        It is written under a temporary name beside it and renamed; a cache that was saved there before is replaced: files of
        two caches are never mixed.

        Parameters
        ----------
        path : path-like
            Of the folder.

        Raises
        ------
        FileExistsError
            If something else is there.
        """
        path = Path(path)
        if path.exists() and not (path / "cache.json").is_file():
            raise FileExistsError(f"{path} is there and is not a saved cache; expected a new name, or one of a saved cache")
        temporary, old = (path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.{end}") for end in ("tmp", "old"))
        temporary.mkdir()
        try:
            for layer, cache in self._layers.items():
                cache.save(temporary / f"layer{layer}.safetensors")
            sliding = {}
            for layer, (keys, values) in self._sliding.rows():
                sliding |= {f"{layer}.keys": keys, f"{layer}.values": values}
            np.savez(temporary / "sliding.npz", **sliding)
            plan = None if self._plan is None else self._plan.content()
            about = {"version": VERSION, "length": self.length, "options": self._options, "plan": plan}
            about["last_exact"] = self._last_exact
            about["layers"] = [*self._layers]
            (temporary / "cache.json").write_text(json.dumps(about))
            if path.exists():
                path.rename(old)
            temporary.rename(path)
        finally:
            if old.exists() and not path.exists():
                old.rename(path)
            shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)

    @classmethod
    def load(cls, path):
        """Read a saved cache into memory; it goes on as the saved one would have.

        Raises
        ------
        ValueError
            If a file of the folder is damaged, or they do not belong together.
        """
        return cls._opened(path, icecore.KVCache.load)

    @classmethod
    def view(cls, path):
        """Map a saved cache (see `icecore.KVCache.view`): a prompt's cache is opened in milliseconds and continued.

        Raises
        ------
        ValueError
            As `load`.
        """
        return cls._opened(path, icecore.KVCache.view)

    @classmethod
    def _opened(cls, path, opener):
        path = Path(path)
        try:
            about = json.loads((path / "cache.json").read_text())
            if about["version"] != VERSION:
                raise ValueError(f"it is of version {about['version']!r}; this icecore reads version {VERSION}")
            plan = None if about["plan"] is None else icecore.Plan.from_content(about["plan"])
            new = cls(plan=plan, last_exact=about["last_exact"], **about["options"])
            new.length = int(about["length"])
            new._layers = {int(layer): opener(path / f"layer{int(layer)}.safetensors") for layer in about["layers"]}
            with np.load(path / "sliding.npz", allow_pickle=False) as sliding:
                layers = sorted({int(name.partition(".")[0]) for name in sliding})
                for layer in layers:
                    new._sliding.write(layer, sliding[f"{layer}.keys"], sliding[f"{layer}.values"])
            new._sliding.advance(new.length)
            held = [len(cache) for cache in new._layers.values()] + [keys.shape[1] for _, (keys, _) in new._sliding.rows()]
            if min(held, default=new.length) < new.length:
                raise ValueError(f"a layer holds {min(held)} of {new.length} tokens")
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is not a usable cache folder: {error}") from error
        return new

    def truncate(self, length):
        """Hold the first `length` tokens only."""
        check_length(length, self.length)
        self.length = length
        self._sliding.truncate(length)
