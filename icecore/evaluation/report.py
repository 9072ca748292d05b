"""What an evaluation found, as tables, as JSON and as a figure."""

import platform

import numpy as np

import icecore

from .methods import EXACT
from .run import IMAGES, LANGUAGE

VERSION = 1
TASKS = {**LANGUAGE, **IMAGES}
#: Column -> how its numbers are written; others as they are.
FORMATS = {
    "perplexity": "{:.3f}", "ratio": "{:.4f}", "worst_ratio": "{:.4f}", "equal_tokens": "{:.1%}", "near_keys": "{:.0f}",
    "captured_mass": "{:.3f}", "accuracy": "{:.1%}", "retained": "{:.1%}", "common_prefix": "{:.0f}", "patch_cosine": "{:.4f}",
    "pooled_cosine": "{:.4f}", "equal_neighbours": "{:.1%}", "matched": "{:.1%}", "exact_matched": "{:.1%}",
    "log_probability": "{:.3f}", "divergence": "{:.5f}", "depth": "{:.0%}", "sparse_calls": "{:.0%}", "seconds": "{:.1f}",
}


def summary(records):
    """What each method did in each case, compared with exact attention, and in all cases of a task together.

    Parameters
    ----------
    records : list of dict
        Of `run.evaluate`: in each case exact attention's first.

    Returns
    -------
    dict
        Task -> ``cases``: a list of dictionaries with ``case``, ``method``, ``seconds`` and the task's columns, and
        ``overall``: a list of dictionaries with ``method`` and the task's columns. All of it is JSON.
    """
    found, pairs = {}, {}
    for record in records:
        task = record["task"]
        if record["method"]["name"] == EXACT.name:
            exact = record["result"]
        part = found.setdefault(task, {"cases": [], "overall": []})
        columns = TASKS[task].compare(record["result"], exact)
        part["cases"].append({"case": record["case"], "method": record["method"], "seconds": record["seconds"], **columns})
        method = tuple(record["method"].items())
        pairs.setdefault(task, {}).setdefault(method, []).append((record["result"], exact))
    for task, methods in pairs.items():
        for method, results in methods.items():
            found[task]["overall"].append({"method": dict(method), **TASKS[task].overall(results)})
    return found


def as_json(model, found, machine):
    """The whole of an evaluation for a file.

    Parameters
    ----------
    model : str
    found : dict
        Of `summary`.
    machine : dict
        What it ran on.

    Returns
    -------
    dict
        ``version`` of this layout, ``icecore``, ``python``, ``machine``, ``model`` and ``tasks``, which is `found`.
    """
    return {
        "version": VERSION,
        "icecore": icecore.__version__,
        "python": platform.python_version(),
        "machine": machine,
        "model": model,
        "tasks": found,
    }


def tables(found):
    """The summary as text: for each task a table of its cases, and one of all together."""
    parts = []
    for task, part in found.items():
        parts += [f"{task}: {TASKS[task].__doc__.splitlines()[0]}", "", table(part["cases"])]
        if len({str(row["case"]) for row in part["cases"]}) > 1:
            parts += ["", "all together", "", table(part["overall"])]
        parts.append("")
    return "\n".join(parts).rstrip()


def table(rows):
    """A Markdown table of dictionaries: cases and methods in words, numbers by `FORMATS`; empty columns are left out."""
    rows = [row.get("case", {}) | row | {"method": words(row["method"])} for row in rows]
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in ("case", "seed")]
    names = [name for name in names if any(row.get(name) is not None for row in rows)]
    cells = [[name.replace("_", " ") for name in names]] + [[cell(name, row.get(name)) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def words(method):
    """A method with its options, as `methods.parse` takes it."""
    options = ",".join(f"{name}={value}" for name, value in method.items() if name != "name")
    return method["name"] + (f":{options}" if options else "")


def cell(name, value):
    """A value in words."""
    if value is None:
        return ""
    if name == "interval":
        return "{:.1%} to {:.1%}".format(*value)
    return FORMATS.get(name, "{}").format(value)


#: Task -> what its panel of the figure shows: column, what 1 or 100 % would be, label.
SHOWN = {
    "perplexity": ("ratio", "perplexity ratio"),
    "facts": ("retained", "share retained"),
    "lines": ("accuracy", "share of answers right"),
    "needles": ("accuracy", "share of needles found"),
    "ruler": ("accuracy", "share of answers right"),
    "babi": ("accuracy", "share of answers right"),
    "copying": ("accuracy", "share copied right"),
    "generation": ("equal_tokens", "equal tokens"),
    "image": ("retained", "share of matches retained"),
}


def plot(found, path):
    """Write a figure: a panel for each task with a bar for each method, a point for each case; and of needles heat maps."""
    from matplotlib.figure import Figure

    maps = heat_maps(found["needles"]["cases"]) if "needles" in found else {}
    heights = [1.6] * len(found) + [3] * bool(maps)
    figure = Figure(figsize=(8, 1 + sum(heights)), layout="constrained")
    panels = figure.subfigures(len(heights), squeeze=False, height_ratios=heights)[:, 0]
    for panel, (task, part) in zip(panels, found.items(), strict=False):
        axes, (column, label) = panel.subplots(), SHOWN[task]
        rows = [row for row in part["overall"] if row["method"]["name"] != EXACT.name and row[column] is not None]
        names = [words(row["method"]) for row in rows]
        axes.barh(names, [row[column] for row in rows], color="C0", alpha=0.5)
        points = [row for row in part["cases"] if words(row["method"]) in names and row[column] is not None]
        axes.plot([row[column] for row in points], [words(row["method"]) for row in points], "o", color="C1", markersize=4)
        axes.axvline(1.0, color="black", linewidth=1)
        axes.set(title=task, xlabel=label)
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
    if maps:
        draw_maps(panels[-1], maps)
    figure.savefig(path)


def draw_maps(panel, maps):
    """Heat maps of `heat_maps` beside one another."""
    places = panel.subplots(1, len(maps), squeeze=False)[0]
    for axes, (method, (lengths, depths, shares)) in zip(places, maps.items(), strict=True):
        image = axes.imshow(shares, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        axes.set_xticks(range(len(lengths)), lengths)
        axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
        axes.set_title(method, fontsize="small")
        axes.set(xlabel="tokens", ylabel="depth")
    panel.colorbar(image, ax=panel.axes, label="needles found")


def heat_maps(rows):
    """Shares of needles found by depth and length: method -> (lengths, depths, shares), means over texts; NaN where none is.

    Parameters
    ----------
    rows : list of dict
        The cases of the task needles, as in `summary`.

    Returns
    -------
    dict of str to (list of int, list of float, ndarray, (depths, lengths))
    """
    lengths, depths = (sorted({row["case"][name] for row in rows}) for name in ("length", "depth"))
    found = {}
    for row in rows:
        cell = depths.index(row["case"]["depth"]), lengths.index(row["case"]["length"])
        found.setdefault(words(row["method"]), {}).setdefault(cell, []).append(row["accuracy"])
    maps = {}
    for method, cells in found.items():
        shares = np.full((len(depths), len(lengths)), np.nan)
        for cell, values in cells.items():
            shares[cell] = np.mean(values)
        maps[method] = lengths, depths, shares
    return maps
