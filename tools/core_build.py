"""The build hook of the compiled core: `mmcache/_core.abi3.so` from core/*.c, on the limited API of CPython 3.11.

It is optional. Without a compiler the package is pure Python, and the log of the build says so. MMCACHE_COMPILED in
the environment decides otherwise: "require" makes the build fail instead, "never" does not try. An editable install
compiles into the source tree. A wheel takes the module from a directory of its own, and is tagged cp311-abi3.

    python tools/core_build.py            # into the source tree, as an editable install does
    python tools/core_build.py --sanitize # the same, with AddressSanitizer and UndefinedBehaviorSanitizer
"""

from __future__ import annotations

import argparse
import os
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run as a script
    BuildHookInterface = object

ROOT = Path(__file__).resolve().parent.parent
VARIABLE = "MMCACHE_COMPILED"
FLAGS = [
    "-std=c11",
    "-O3",
    "-D_DEFAULT_SOURCE",
    "-ffp-contract=off",  # sums are those of numpy, which rounds each product
    "-Wall",
    "-Wextra",
    "-Wno-cast-function-type",
    "-Wno-missing-field-initializers",
]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g", "-O1"]


def compiled_into(directory: Path, root: Path = ROOT, *, sanitize: bool = False) -> Path:
    """The module's file. Raises whatever setuptools raises where it cannot be compiled."""
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise RuntimeError("a free-threaded interpreter has no limited API")
    if sys.implementation.name != "cpython":
        raise RuntimeError(f"{sys.implementation.name} runs Python faster than it calls C")
    from setuptools import Distribution, Extension
    from setuptools.command.build_ext import build_ext

    more = SANITIZERS if sanitize else []
    extension = Extension(
        "_core",
        sorted(str(source) for source in (root / "core").glob("*.c")),
        depends=sorted(str(header) for header in (root / "core").glob("*.h")),
        include_dirs=[str(root / "core")],
        extra_compile_args=FLAGS + more,
        extra_link_args=more,
        py_limited_api=True,
    )
    command = build_ext(Distribution({"name": "mmcache", "ext_modules": [extension]}))
    with tempfile.TemporaryDirectory() as objects:
        command.build_lib, command.build_temp = str(directory), objects
        command.ensure_finalized()
        command.run()
    return Path(command.get_ext_fullpath("_core"))


class CoreBuildHook(BuildHookInterface):  # type: ignore[misc]
    """For hatchling."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and put the module into the wheel; or say why the wheel is pure."""
        if self.target_name != "wheel":
            return
        wanted = os.environ.get(VARIABLE, "")
        root = Path(self.root)
        if version == "editable":  # the one before would be imported, whatever becomes of this one
            for stale in (root / "mmcache").glob("_core.*.so"):
                stale.unlink()
        if wanted == "never":
            self.app.display_info(f"{VARIABLE}=never: the pure Python implementation is installed")
            return
        directory = root / "mmcache" if version == "editable" else Path(tempfile.mkdtemp(prefix="mmcache-core-"))
        try:
            module = compiled_into(directory, root)
        except (Exception, SystemExit) as error:
            if wanted == "require":
                raise RuntimeError(f"{VARIABLE}=require, and the core cannot be compiled: {error}") from error
            self.app.display_warning(
                f"the compiled core cannot be built ({error}): the pure Python implementation is installed, which "
                f"answers the same, and slower; {VARIABLE}=require makes this an error"
            )
            return
        self.app.display_info(f"the compiled core is installed: {module.name}")
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"cp311-abi3-{platform}"
        if version != "editable":
            build_data["force_include"][str(module)] = f"mmcache/{module.name}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sanitize", action="store_true", help="with AddressSanitizer and UndefinedBehaviorSanitizer")
    parser.add_argument("--into", type=Path, default=ROOT / "mmcache", help="a directory; by default the package")
    given = parser.parse_args()
    print(compiled_into(given.into, sanitize=given.sanitize))


if __name__ == "__main__":
    main()
