"""A decoder's cache whose layers attend by near/far attention."""

import contextlib
import io
import json
import operator
import re
import secrets
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np

import icecore
from icecore._files import at_work_in, is_abandoned, is_temporary, locked_folder, replacing

from .cache import KeyValueCache, check_length
from .settings import refusing

VERSION = 2
#: Queries at the end of a prompt that attend exactly.
LAST_EXACT = 100
#: More than any model has; the name of a layer's file stays short.
MAX_LAYERS = 2**20
#: What a save lies in, within the folder.
FOLDER = re.compile("save-[0-9a-f]{16}")
#: Seconds after which a save that nothing names is one of a process that died, where that cannot be seen.
FORGOTTEN = 24 * 3600


def _checked(plan, options):
    """The options as a KVCache has them; what no layer can have is refused before there is one."""
    for name in options.keys() & {"num_kv_heads", "dim", "value_dim", "batch"}:
        raise TypeError(f"NearFarCache() got an unexpected keyword argument {name!r}: layers have their model's")
    if plan is None:
        cache = icecore.KVCache(1, 1, **options | {"metric": None})
        return {name: value if name == "metric" else getattr(cache, name) for name, value in options.items()}
    if not isinstance(plan, icecore.Plan):
        raise TypeError(f"plan must be a Plan, as calibrate returns it, got {type(plan).__name__}")
    for layer in plan.layers.values():
        cache = icecore.KVCache(len(layer.heads), layer.dim, plan=layer, **options)
    return {name: getattr(cache, name) for name in options}


def _holds_caches(path):
    """Whether a folder is one of saved caches, perhaps of a first one on its way, or an empty one."""
    if not path.is_dir():
        return False
    names = [entry.name for entry in path.iterdir()]
    return (path / "cache.json").exists() or all(
        name == "lock" or FOLDER.fullmatch(name) or is_temporary(path / "cache.json", name) for name in names
    )


def _folder_in_force(path):
    try:
        return json.loads((path / "cache.json").read_text())["folder"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _sweep_abandoned(path):
    """Remove what processes that were killed left: of their saves, and of the one before that they were to remove."""
    in_force = _folder_in_force(path)
    if in_force is None and (path / "cache.json").exists():  # a damaged one: what it named may be there
        return
    for entry in path.iterdir():
        if entry.name != in_force and FOLDER.fullmatch(entry.name) and is_abandoned(entry):
            shutil.rmtree(entry, ignore_errors=True)


def _sweep(path, before, now):
    """Remove the save that was in force before, and forgotten ones."""
    for entry in path.iterdir():
        if entry.name == now or not FOLDER.fullmatch(entry.name):
            continue
        if entry.name == before or time.time() - entry.stat().st_mtime > FORGOTTEN:
            shutil.rmtree(entry, ignore_errors=True)


def _undo_first_save(path, new):
    """Remove what a first save that failed made beside its own folder, unless another process is at work there."""
    with contextlib.suppress(OSError):
        with locked_folder(path):
            if {entry.name for entry in path.iterdir()} > {"lock"}:
                return
            (path / "lock").unlink(missing_ok=True)
        if new:
            path.rmdir()


def _read_sliding(data):
    """The arrays of a file that np.savez wrote, by name.

    Nothing is asked for that the file does not hold: sizes are those of the bytes that are there, whatever headers say.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError("they are compressed")
            return {entry.filename.removesuffix(".npy"): _read_rows(archive.read(entry)) for entry in entries}
    except OSError as error:  # out of zipfile: the bytes are in memory already
        raise ValueError(f"sliding.npz is damaged: {error}") from error


def _read_rows(data):
    """The keys or values of a layer, (heads, rows, width) float32, out of the bytes of a .npy file."""
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("an array of another version")
    shape, columns_first, dtype = np.lib.format.read_array_header_1_0(file)
    if len(shape) != 3 or columns_first or dtype != np.float32:
        raise ValueError(f"an array of shape {shape} and type {dtype}")
    return np.frombuffer(data, np.float32, offset=file.tell()).reshape(shape)


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

    Raises
    ------
    TypeError, ValueError
        Arguments that `icecore.KVCache` would refuse.

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
        self._options = _checked(plan, options)
        self._layers = {}  # layer -> icecore.KVCache
        self._sliding = KeyValueCache()

    def attend(self, attention, layer, query, key, value, **options):
        """Add a layer's new rows and attend to all it holds; arguments and result as of `KeyValueCache.attend`.

        Raises
        ------
        TypeError
            An option other than `window`, which later passes would not have.
        """
        if others := options.keys() - {"window"}:
            raise TypeError(f"NearFarCache has no {min(others)!r}; expected window= alone")
        if options.get("window") is not None:
            return self._sliding.attend(attention, layer, query, key, value, **options)
        if layer not in self._layers:
            heads, _, width = key.shape
            own = {} if self._plan is None else {"plan": self._plan[layer]}
            self._layers[layer] = icecore.KVCache(heads, width, value_dim=value.shape[-1], **(own | self._options))
        cache = self._layers[layer]
        if len(cache) < self.length:
            raise ValueError(f"layer {layer} holds {len(cache)} of {self.length} tokens: the cache is of another model")
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

        They lie in a folder of their own within it, of a random name, and ``cache.json`` names it: replacing that file is what
        replaces a cache that was saved there before. Any number of processes may save and load at once: there always is a
        cache, and files of two caches are never mixed. What processes that were killed left of their saves goes with the next.

        Parameters
        ----------
        path : path-like
            Of the folder.

        Raises
        ------
        FileExistsError
            If something else is there; an empty folder is used.
        """
        path = Path(path)
        new = not path.exists()
        if not new and not _holds_caches(path):
            raise FileExistsError(f"{path} is there and is not a saved cache; expected a new name, or one of a saved cache")
        folder = path / f"save-{secrets.token_hex(8)}"
        try:
            with contextlib.ExitStack() as stack:
                with locked_folder(path):  # nobody sweeps before the folder is marked
                    _sweep_abandoned(path)
                    folder.mkdir()
                    stack.enter_context(at_work_in(folder))
                self._write(folder)
                about = json.dumps(self._about(folder.name)).encode()
                with locked_folder(path):
                    before = _folder_in_force(path)
                    with replacing(path / "cache.json") as file:
                        file.write(about)
                    _sweep(path, before, folder.name)
        finally:
            if _folder_in_force(path) != folder.name:
                shutil.rmtree(folder, ignore_errors=True)
                _undo_first_save(path, new)

    def _write(self, folder):
        for layer, cache in self._layers.items():
            cache.save(folder / f"layer{layer}.safetensors")
        sliding = {}
        for layer, (keys, values) in self._sliding.rows():
            sliding |= {f"{layer}.keys": keys, f"{layer}.values": values}
        with replacing(folder / "sliding.npz") as file:
            np.savez(file, **sliding)

    def _about(self, folder):
        """What cache.json holds."""
        plan = None if self._plan is None else self._plan.content()
        about = {"version": VERSION, "folder": folder, "length": self.length, "options": self._options, "plan": plan}
        return about | {"last_exact": self._last_exact, "layers": [*self._layers]}

    @classmethod
    def load(cls, path):
        """Read a saved cache into memory; it goes on as the saved one would have.

        Raises
        ------
        FileNotFoundError
            If there is no cache.
        ValueError
            If a file of the folder is missing or damaged, or they do not belong together.
        """
        return cls._opened(path, icecore.KVCache.load)

    @classmethod
    def view(cls, path):
        """Map a saved cache (see `icecore.KVCache.view`): a prompt's cache is opened in milliseconds and continued.

        Raises
        ------
        FileNotFoundError, ValueError
            As `load`.
        """
        return cls._opened(path, icecore.KVCache.view)

    @classmethod
    def _opened(cls, path, opener):
        path = Path(path)
        with refusing(path, "is not a usable cache folder"):
            while True:
                text = (path / "cache.json").read_text()
                try:
                    return cls._of(path, json.loads(text), opener)
                except FileNotFoundError as error:  # replaced meanwhile, or a file is missing
                    if (path / "cache.json").read_text() == text:
                        raise ValueError(f"{error.filename} is missing") from error

    @classmethod
    def _of(cls, path, about, opener):
        if about["version"] != VERSION:
            raise ValueError(f"it is of version {about['version']!r}; this icecore reads version {VERSION}")
        if not FOLDER.fullmatch(about["folder"]):
            raise ValueError(f"its folder is {about['folder']!r}; expected save- and 16 digits")
        plan, folder = None if about["plan"] is None else icecore.Plan.from_content(about["plan"]), path / about["folder"]
        new = cls(plan=plan, last_exact=about["last_exact"], **about["options"])
        new.length = operator.index(about["length"])
        if new.length < 0:
            raise ValueError(f"its length is {new.length}")
        layers = [operator.index(layer) for layer in about["layers"]]
        if not all(0 <= layer < MAX_LAYERS for layer in layers):
            raise ValueError(f"its layers must be numbers from 0 to {MAX_LAYERS - 1}")
        new._layers = {layer: opener(folder / f"layer{layer}.safetensors") for layer in layers}
        sliding = _read_sliding((folder / "sliding.npz").read_bytes())
        for layer in sorted({int(name.partition(".")[0]) for name in sliding}):
            new._sliding.write(layer, sliding[f"{layer}.keys"], sliding[f"{layer}.values"])
        new._sliding.advance(new.length)
        held = [len(cache) for cache in new._layers.values()] + [keys.shape[1] for _, (keys, _) in new._sliding.rows()]
        if min(held, default=new.length) < new.length:
            raise ValueError(f"a layer holds {min(held)} of {new.length} tokens")
        return new

    def fork(self):
        """A cache of the same tokens that goes its own way; what is sealed is shared, see `icecore.KVCache.fork`."""
        new = type(self)(plan=self._plan, last_exact=self._last_exact, **self._options)
        new.length = self.length
        new._layers = {layer: cache.fork() for layer, cache in self._layers.items()}
        new._sliding = self._sliding.fork()
        return new

    def truncate(self, length):
        """Hold the first `length` tokens only."""
        self.length = check_length(length, self.length)
        self._sliding.truncate(self.length)
