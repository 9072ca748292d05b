"""Build of the C core: one static library a set of compiler flags, all linked into icecore._native.

Per-file flags are what setuptools' C libraries are for: each instruction set is a library with its own flags, everything
else is built for the baseline processor.  What the compiler lacks is left out with a log line; the package then still works.
"""

import logging
import os
import platform
import sys
import tempfile
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_clib import build_clib
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

log = logging.getLogger("icecore")

WARNINGS = ["-Wall", "-Wextra"]
COMMON = ["-std=gnu11", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", *WARNINGS]
# ICECORE_CFLAGS adds to every compilation and ICECORE_LDFLAGS to the link: sanitizers, -Werror, debugging.
EXTRA_COMPILE = os.environ.get("ICECORE_CFLAGS", "").split()
EXTRA_LINK = os.environ.get("ICECORE_LDFLAGS", "").split()

INCLUDE = ["csrc", "csrc/include"]
HEADERS = sorted(str(path) for path in Path("csrc").rglob("*.h"))
ROOMS = ("base", "cluster", "segment", "tree", "index", "attend", "select", "attention", "cache")
SOURCES = sorted(str(path) for room in ROOMS for path in Path("csrc", room).glob("*.c"))

MACHINE = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())


def instruction_sets():
    """(name, compiler flags, code that must compile with them) of each that can exist on this machine, worst first."""
    lines = [line for line in Path("csrc/isa/sets.txt").read_text().splitlines() if not line.startswith("#")]
    for name, machine, flags, probe in ([part.strip() for part in line.split("|")] for line in lines):
        if machine == MACHINE:
            yield name, flags.split(), probe.replace("\\n", "\n") + "\n"


def compiles(compiler, code, compile_flags, link_flags=None):
    """Whether a small program compiles, and also links when link_flags is a list."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text(code)
        # the compiler's complaints about a probe are not the user's concern
        saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        sys.stderr.flush()
        os.dup2(null, 2)
        try:
            objects = compiler.compile([str(source)], output_dir=folder, extra_postargs=compile_flags)
            if link_flags is not None:
                compiler.link_executable(objects, str(Path(folder, "probe")), extra_postargs=link_flags)
        except (CompileError, LinkError):
            return False
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            os.close(null)
    return True


def openmp_flags(compiler):
    """(compile flags, link flags) that build an OpenMP program here, or ([], []) for the serial fallback."""
    program = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"
    for compile_flags, link_flags in [
        (["-fopenmp"], ["-fopenmp"]),
        (["-Xpreprocessor", "-fopenmp"], ["-lomp"]),  # Apple's clang with a separate libomp
    ]:
        if compiles(compiler, program, compile_flags, link_flags):
            return compile_flags, link_flags
    log.warning("icecore: no OpenMP here, building the serial version")
    return [], []


class BuildLibraries(build_clib):
    """Decides what this compiler can build, then builds it."""

    def build_libraries(self, libraries):
        openmp, openmp_link = openmp_flags(self.compiler)
        built = []
        for name, flags, probe in instruction_sets():
            if compiles(self.compiler, probe, [*flags, *(f"-I{d}" for d in INCLUDE)]):
                built.append((name, flags))
            else:
                log.warning("icecore: this compiler cannot build %s kernels, leaving them out", name)
        core = [*SOURCES, "csrc/isa/dispatch.c", *sorted(str(path) for path in Path("csrc/isa").glob("selftest*.c"))]
        names = " ".join(f"X({name})" for name, _ in built)
        plan = {"icecore_core": (core, [*openmp, f"-DICE_BUILT_SETS(X)={names}"])}
        for name, flags in [("scalar", []), *built]:
            plan[f"icecore_{name}"] = ([f"csrc/isa/{name}.c"], flags)
        includes = sorted(str(path) for path in Path("csrc").rglob("*.inc.h"))
        libraries[:] = [
            (name, {
                "sources": sources,
                "include_dirs": INCLUDE,
                "cflags": [*COMMON, *flags, *EXTRA_COMPILE],
                "obj_deps": {"": [*HEADERS, *includes]},
            })
            for name, (sources, flags) in plan.items()
        ]
        super().build_libraries(libraries)
        self.link_flags = openmp_link


class BuildExtension(build_ext):
    """Builds the C libraries first, whichever command asked for the extension, and links them in order."""

    def run(self):
        libraries = self.get_finalized_command("build_clib")
        libraries.ensure_finalized()
        self.run_command("build_clib")
        for extension in self.extensions:
            extension.libraries = [name for name, _ in libraries.libraries] + ["m"]
            extension.library_dirs = [libraries.build_clib]
            extension.extra_link_args += [*libraries.link_flags, *EXTRA_LINK]
            extension.depends += [str(Path(libraries.build_clib, f"lib{name}.a")) for name, _ in libraries.libraries]
        super().run()


setup(
    # the real list is made by BuildLibraries; a list here is what makes setuptools run it
    libraries=[("icecore_core", {"sources": SOURCES})],
    ext_modules=cythonize(
        [Extension("icecore._native", ["pyx/_native.pyx"], include_dirs=INCLUDE, depends=["csrc/include/icecore.h"],
                   extra_compile_args=["-O2", "-fvisibility=hidden", *EXTRA_COMPILE])],
        language_level=3,
        compiler_directives={"binding": True, "embedsignature": True, "freethreading_compatible": False},
    ),
    cmdclass={"build_clib": BuildLibraries, "build_ext": BuildExtension},
)
