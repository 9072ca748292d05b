"""The arrows of the house point one way.

    icecore -> _native -> icecore.h -> cache -> attention -> select -> attend, segment -> kernels -> simd -> base
                                       index -> tree; segment, tree -> cluster

The checker reads #include lines, imports and cimports. It is itself tested on made-up violations.
"""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Folder of csrc -> the folders whose headers its files may include. All may include icecore.h.
ROOMS = {
    "include": set(),
    "base": {"base"},
    "simd": {"simd", "base"},
    "kernels": {"kernels", "simd", "base"},
    "isa": {"isa", "kernels", "simd", "base"},
    "cluster": {"cluster", "kernels", "base"},
    "segment": {"segment", "cluster", "kernels", "base"},
    "tree": {"tree", "cluster", "kernels", "base"},
    "index": {"index", "tree", "cluster", "kernels", "base"},
    "attend": {"attend", "kernels", "base"},
    "select": {"select", "attend", "segment", "tree", "cluster", "kernels", "base"},
    "attention": {"attention", "select", "attend", "segment", "cluster", "kernels", "base"},
    "cache": {"cache", "attention", "select", "attend", "segment", "kernels", "base"},
}
#: What only these may use.
INTRINSICS = re.compile(r"\w*intrin\.h|arm_\w+\.h")
INTRINSIC = re.compile(r"\b(_mm\d*_\w+|__m\d+\w*|_tile_\w+|v\w+q_[fsu]\d+|vcvt\w*_[fsu]\d+)\b")
INTRINSICS_ROOMS = {"simd", "isa"}
OPENMP_FILE = "base/parallel.c"
#: Kernel bodies are compiled once for each instruction set, nowhere else.
KERNEL_BODY_ROOMS = {"kernels", "isa"}

#: Of the package, what knows nothing of attention: every room may use it.
EVERYBODYS = {"icecore._files"}

#: Where float64 input goes to the oracles; nothing else that is shipped leans on them.
FLOAT64_DOORS = {"icecore/_call.py", "icecore/_attend_indices.py", "icecore/_indexer.py", "icecore/selectors/selector.py"}

#: Packages that icecore depends on; every other one is optional and imported where it is used.
REQUIRED = {"numpy", "scipy"}

#: Modules for users of other packages, and what each imports at once. They use icecore's public names; nothing imports them.
BRIDGES = {"torch": {"torch"}, "transformers": {"torch", "transformers", "safetensors"}}


def c_violations(csrc):
    """Lines of csrc that turn an arrow round."""
    found = []
    for file in sorted(p for p in csrc.rglob("*") if p.suffix in (".c", ".h")):
        name = file.relative_to(csrc).as_posix()
        room = name.split("/")[0]
        if room not in ROOMS:
            found.append(f"{name}: folder {room} has no place in ROOMS")
            continue
        text = file.read_text()
        if re.search(r'#\s*pragma\s+omp|_Pragma\s*\(\s*"omp|<omp\.h>', text) and name != OPENMP_FILE:
            found.append(f"{name}: OpenMP belongs in {OPENMP_FILE}")
        for used in set(INTRINSIC.findall(text)) if room not in INTRINSICS_ROOMS else ():
            found.append(f"{name}: uses {used}; intrinsics belong in simd and isa")
        for brackets, header in re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)', text, re.MULTILINE):
            if re.match(r"Python\.h|numpy/", header):
                found.append(f"{name}: includes {header}; the core knows no Python")
            elif INTRINSICS.fullmatch(header) and room not in INTRINSICS_ROOMS:
                found.append(f"{name}: includes {header}; intrinsics belong in simd and isa")
            elif brackets == '"' and header != "icecore.h":
                if header.split("/")[0] not in ROOMS[room]:
                    found.append(f"{name}: includes {header}; {room} may use {sorted(ROOMS[room])}")
                elif header.endswith(".inc.h") and room not in KERNEL_BODY_ROOMS:
                    found.append(f"{name}: includes {header}; other rooms go through the table")
    return found


def include_circles(csrc):
    """Modules, a header and its source file, that include one another in a circle."""
    included = {}
    for file in sorted(csrc.glob("*/*.[ch]")):
        name = f"{file.parent.name}/{file.name.split('.')[0]}"
        headers = re.findall(r'^\s*#\s*include\s*"([^"]+)"', file.read_text(), re.MULTILINE)
        own = {header.split(".")[0] for header in headers if header.split("/")[0] == file.parent.name}
        included.setdefault(name, set()).update(own - {name})
    found, done = [], set()

    def visit(name, path):
        if name in path:
            found.append(" -> ".join([*path[path.index(name) :], name]) + ": a circle of includes")
        elif name not in done:
            for other in sorted(included.get(name, ())):
                visit(other, [*path, name])
            done.add(name)

    for name in included:
        visit(name, [])
    return found


def pyx_violations(pyx):
    """Lines of pyx that use more than the C interface."""
    found = []
    for file in sorted(p for p in pyx.rglob("*") if p.suffix in (".pyx", ".pxd", ".pxi")):
        text = file.read_text()
        for header in re.findall(r'extern\s+from\s+["<]([^">]+)', text):
            if header not in ("icecore.h", "Python.h"):
                found.append(f"{file.name}: uses {header}; expected icecore.h")
        for line in re.findall(r"^\s*((?:from|c?import)\b.*)$", text, re.MULTILINE):
            if re.search(r"\bnumpy\b", line):
                found.append(f"{file.name}: {line}; typed memoryviews need no NumPy")
            elif re.match(r"(from|c?import)\s+icecore\b", line):
                found.append(f"{file.name}: {line}; _native is below the Python package")
    return found


def imports_of(tree, package):
    """(line number, module, name or None, at module level?) of each import; relative ones made absolute."""

    def visit(node, at_module_level):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, None, at_module_level
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, module, alias.name, at_module_level
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
            "import_extra",
        ):
            if node.args and isinstance(node.args[0], ast.Constant):
                yield node.lineno, node.args[0].value, None, at_module_level
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_module_level and not inside)

    return visit(tree, True)


def within(module, package):
    return module == package or module.startswith(package + ".")


def public_names(package):
    """__all__ of the package, and its public subpackage nn."""
    for node in ast.parse((package / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return {*ast.literal_eval(node.value), "nn"}
    raise AssertionError("icecore/__init__.py has no __all__")


def python_violations(package):
    """Imports in the Python package that turn an arrow round."""
    found, public = [], public_names(package)
    for file in sorted(package.rglob("*.py")):
        name = file.relative_to(package.parent).as_posix()
        own = ".".join(file.relative_to(package.parent).parts[:-1])
        tree = ast.parse(file.read_text())
        room = file.relative_to(package).parts[0] if file.parent != package else ""
        if file.stem in BRIDGES and not room:
            room = file.stem
        bridged = {f"icecore.{name}" for name in BRIDGES if BRIDGES[name] <= BRIDGES.get(room, set())}
        for line, module, member, at_module_level in imports_of(tree, own):
            top, full = module.split(".")[0], f"{module}.{member}" if member else module
            standard = top in sys.stdlib_module_names
            say = f"{name}:{line}: imports {full}; "
            if at_module_level and not standard and top not in (REQUIRED | {"icecore"} | BRIDGES.get(room, set())):
                found.append(say + "optional packages are imported where they are used")
            elif room in BRIDGES and top == "icecore":
                inside = within(full, f"icecore.{room}") or full in bridged or module in bridged
                if not inside and full != "icecore" and full.removeprefix("icecore.") not in public:
                    found.append(say + f"{room} uses icecore's public names")
            elif any(within(full, f"icecore.{name}") for name in BRIDGES):
                found.append(say + f"only users import {full}")
            elif room != "reference" and within(full, "icecore.reference") and name not in FLOAT64_DOORS:
                found.append(say + "the oracles serve float64 input and tests")
            elif room == "reference":
                if not (standard or top == "numpy" or within(module, "icecore.reference")):
                    found.append(say + "reference uses NumPy only")
            elif room == "nn" and top == "icecore" and not within(full, "icecore.nn") and module not in EVERYBODYS:
                if full != "icecore" and full.removeprefix("icecore.") not in public:
                    found.append(say + "nn uses icecore's public names")
            elif room == "evaluation" and top == "icecore" and not (within(full, "icecore.nn") or within(full, own)):
                if full != "icecore" and full.removeprefix("icecore.") not in public:
                    found.append(say + "evaluation uses icecore's public names and nn")
            elif room == "" and file.name != "__main__.py":
                if any(within(full, f"icecore.{above}") for above in ("nn", "evaluation", "commands")):
                    found.append(say + "nn, evaluation and commands are above")
        if room == "nn" or room in BRIDGES:
            for node in ast.walk(tree):
                of_icecore = isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "icecore"
                if of_icecore and node.attr not in public and f"icecore.{node.attr}" not in bridged:
                    found.append(f"{name}:{node.lineno}: icecore.{node.attr} is not a public name")
    return found


def violations(root):
    csrc, package = root / "csrc", root / "icecore"
    return [*c_violations(csrc), *include_circles(csrc), *pyx_violations(root / "pyx"), *python_violations(package)]


def test_the_arrows_point_one_way():
    assert violations(ROOT) == []


HOUSE = {
    "csrc/include/icecore.h": "#include <stdint.h>\n",
    "csrc/base/parallel.c": '#include "icecore.h"\n#include <omp.h>\n#pragma omp parallel\n',
    "csrc/simd/avx2.h": "#include <immintrin.h>\n",
    "csrc/isa/avx2.c": '#include "simd/avx2.h"\n#include "kernels/table.inc.h"\n',
    "csrc/segment/build.c": '#include "kernels/kernels.h"\n',
    "csrc/attention/exact.c": '#include "segment/stack.h"\n',
    "pyx/_native.pyx": 'from libc.stdint cimport int32_t\ncdef extern from "icecore.h":\n    pass\n',
    "icecore/__init__.py": "from icecore._attention import attention\n__all__ = ['attention']\n",
    "icecore/_attention.py": "import numpy as np\nfrom icecore import _native\n",
    "icecore/_call.py": "def reference():\n    from icecore import reference\n    return reference\n",
    "icecore/reference/dense.py": "import numpy as np\nfrom icecore.reference.cells import Cells\n",
    "icecore/nn/llama.py": "import icecore\nfrom .layers import linear\nout = icecore.attention\n",
    "icecore/nn/tokenizer.py": "def load():\n    import tokenizers\n    return tokenizers\n",
    "icecore/evaluation/facts.py": "import icecore\nfrom icecore import nn\nfrom icecore.evaluation import texts\n",
    "icecore/commands/demo.py": "import icecore\nfrom icecore import nn\nfrom icecore.evaluation import texts\n",
    "icecore/torch.py": "import icecore\nimport torch\nout = icecore.attention\n",
    "icecore/transformers/__init__.py": "import transformers\nfrom icecore.transformers.masks import mask\n",
    "icecore/transformers/masks.py": "import torch\nimport icecore\nfrom icecore.torch import attention\n",
}


def build(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_checker_sees_a_circle_of_includes(tmp_path):
    files = {
        "csrc/index/search.h": "",
        "csrc/index/search.c": '#include "index/search.h"\n#include "index/tree.h"\n',
        "csrc/index/tree.h": "",
        "csrc/index/tree.c": '#include "index/tree.h"\n#include "index/search.h"\n',
    }
    (found,) = include_circles(build(tmp_path, files) / "csrc")
    assert found == "index/search -> index/tree -> index/search: a circle of includes"


def test_the_checker_accepts_a_small_house(tmp_path):
    assert violations(build(tmp_path, HOUSE)) == []


@pytest.mark.parametrize(
    "name, text",
    [
        ("csrc/base/memory.c", '#include "segment/segment.h"\n'),
        ("csrc/simd/scalar.h", '#include "kernels/kernels.h"\n'),
        ("csrc/kernels/kernels.h", '#include "segment/segment.h"\n'),
        ("csrc/segment/stack.c", '#include "attend/request.h"\n'),
        ("csrc/segment/stack.c", '#include "simd/avx2.h"\n'),
        ("csrc/attention/panel.c", '#include "kernels/panel.inc.h"\n'),
        ("csrc/attention/panel.c", '  #  include <arm_neon.h>\n'),
        ("csrc/attention/panel.c", "#include <immintrin.h>\n"),
        ("csrc/attention/panel.c", "__m512 x;\n"),
        ("csrc/kernels/rows.inc.h", "x = _mm256_add_ps(x, y);\n"),
        ("csrc/kernels/rows.inc.h", "x = vaddq_f32(x, y);\n"),
        ("csrc/attention/panel.c", '#include "cache/cache.h"\n'),
        ("csrc/attention/panel.c", "#include <Python.h>\n"),
        ("csrc/attention/panel.c", '#include "numpy/arrayobject.h"\n'),
        ("csrc/attention/panel.c", "void f(void) {\n#pragma omp parallel\n}\n"),
        ("csrc/attention/panel.c", "#include <omp.h>\n"),
        ("csrc/attention/panel.c", '#include "panel.h"\n'),
        ("csrc/include/icecore.h", '#include "base/memory.h"\n'),
        ("csrc/cellar/wine.c", "#include <stdint.h>\n"),
        ("pyx/_native.pyx", "cimport numpy as np\n"),
        ("pyx/_native.pyx", "import numpy\n"),
        ("pyx/_native.pyx", "from icecore import attention\n"),
        ("pyx/_native.pyx", 'cdef extern from "segment/segment.h":\n    pass\n'),
        ("icecore/_attention.py", "from icecore import nn\n"),
        ("icecore/_attention.py", "def f():\n    from .commands import demo\n    return demo\n"),
        ("icecore/_attention.py", "import torch\n"),
        ("icecore/_attention.py", "try:\n    import gguf\nexcept ImportError:\n    gguf = None\n"),
        ("icecore/_cost_model.py", "from icecore.reference.near_far import sealed_ranges\n"),
        ("icecore/_info.py", "def f():\n    from icecore import reference\n    return reference\n"),
        ("icecore/commands/tune.py", "from icecore import reference\n"),
        ("icecore/commands/demo.py", "import matplotlib.pyplot as plt\n"),
        ("icecore/commands/demo.py", "from importlib import import_module\ntqdm = import_module('tqdm')\n"),
        ("icecore/commands/demo.py", "class Reader:\n    import safetensors\n"),
        ("icecore/reference/dense.py", "from icecore import _native\n"),
        ("icecore/reference/dense.py", "from .._arrays import check_problem\n"),
        ("icecore/reference/dense.py", "import scipy\n"),
        ("icecore/nn/llama.py", "from icecore import _native\n"),
        ("icecore/nn/llama.py", "from icecore._arrays import integer\n"),
        ("icecore/nn/llama.py", "from icecore.reference import attention\n"),
        ("icecore/nn/llama.py", "import icecore\nicecore._native.set_isa('scalar')\n"),
        ("icecore/nn/llama.py", "def f():\n    from .. import _runtime\n    return _runtime\n"),
        ("icecore/nn/llama.py", "from icecore.evaluation import texts\n"),
        ("icecore/_attention.py", "from icecore.evaluation import texts\n"),
        ("icecore/evaluation/facts.py", "from icecore.commands import demo\n"),
        ("icecore/evaluation/facts.py", "from icecore._attention import CELL_SIZE\n"),
        ("icecore/evaluation/facts.py", "import tqdm\n"),
        ("icecore/torch.py", "import transformers\n"),
        ("icecore/torch.py", "from icecore._arrays import integer\n"),
        ("icecore/torch.py", "import icecore\nicecore._native.set_isa('scalar')\n"),
        ("icecore/torch.py", "from icecore.transformers import register\n"),
        ("icecore/transformers/masks.py", "from icecore.torch import attention\nfrom icecore import _cache\n"),
        ("icecore/_attention.py", "def f():\n    from icecore import torch\n    return torch\n"),
        ("icecore/nn/llama.py", "def f():\n    from icecore.torch import attention\n    return attention\n"),
    ],
)
def test_the_checker_sees_a_turned_arrow(tmp_path, name, text):
    (found,) = violations(build(tmp_path, {**HOUSE, name: text}))
    assert found.startswith((name, name.removeprefix("csrc/"), name.removeprefix("pyx/")))
