# SPDX-License-Identifier: Apache-2.0
"""Kernels with a mutant in them, built beside those of the rig and from its objects."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import rig
from mutants import Mutant

CACHE = Path(
    os.environ.get("TIERD_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tierd"
)
OBJECTS = {"release": "out", "debug": "out-debug"}
FILE = "mm/move_phys_pages.c"


class Workshop:
    """A copy of the rig's kernel tree and objects, so that one file and the link are all to do.

    The objects know the tree by its path. So the copy takes its place, in a mount namespace of
    make's own: nobody else sees it."""

    def __init__(self, made: rig.Artefacts, kernel: str, jobs: int) -> None:
        version = (made.kernels[kernel] / "source-version").read_text().strip()
        self._tree = (CACHE / "kernel-tree").resolve() / version
        self._copy = CACHE / "mutants" / f"tree-{kernel}"
        self._objects = OBJECTS[kernel]
        self._jobs = jobs
        self.kernel = kernel
        shutil.rmtree(self._copy, ignore_errors=True)
        self._copy.mkdir(parents=True)
        with open(self._tree.parent / ".lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for part in ("src", self._objects):
                subprocess.run(["cp", "-a", str(self._tree / part), str(self._copy)], check=True)
        # The kernel without the option is built from the same objects, and may have been the last.
        shutil.copy(made.kernels[kernel] / "config", self._copy / self._objects / ".config")
        self._pristine = (self._copy / "src" / FILE).read_bytes()
        # The cache may drop the rig's own while we are at it.
        self.selftest = Path(shutil.copy(made.kernels[kernel] / "move_phys_pages", self._copy))

    def build(self, mutant: Mutant) -> Path:
        """The directory with its bzImage. CalledProcessError when it does not apply or build;
        the end of the output is on stderr."""
        (self._copy / "src" / FILE).write_bytes(self._pristine)
        if mutant.patch is not None:
            patch = ["patch", "-s", "-p1", "--no-backup-if-mismatch"]
            subprocess.run(
                [*patch, "-d", str(self._copy / "src"), "-i", str(mutant.patch)], check=True
            )
        self._make(f"LOCALVERSION=-tierd-{self.kernel}", "bzImage")
        result = CACHE / "mutants" / mutant.name.replace(" ", "-")
        result.mkdir(parents=True, exist_ok=True)
        built = self._copy / self._objects / "arch/x86/boot/bzImage"
        shutil.copy(built, result / "bzImage")
        return result

    def _make(self, *arguments: str) -> None:
        objects = self._tree / self._objects
        script = 'mount --make-rprivate / && mount --bind "$1" "$2" && shift 2 && exec "$@"'
        # As in the rig's kernel step, or make would build everything anew.
        fixed = (
            "KBUILD_BUILD_TIMESTAMP=@0 KBUILD_BUILD_USER=tierd KBUILD_BUILD_HOST=rig"
            " KBUILD_BUILD_VERSION=1"
        )
        done = subprocess.run(
            [
                *("unshare", "-m", "sh", "-c", script, "make", self._copy, self._tree),
                *("make", "-s", "-C", self._tree / "src", f"O={objects}", f"-j{self._jobs}"),
                *fixed.split(),
                *arguments,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode != 0:
            print(done.stdout[-4000:], flush=True)
            done.check_returncode()
