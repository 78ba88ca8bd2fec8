# SPDX-License-Identifier: Apache-2.0
"""Copy the package into its private directory and write the two commands.

A plain copy: no build back end, no network, the same result in a chroot of another release.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "daemon" / "tierd"
COMMANDS = {"tierd": "main", "tierctl": "tierctl"}

# -I: neither the environment, nor a user's site directory, nor the working directory may
# bring another module into a daemon that runs as root.
LAUNCHER = """\
#!{python} -I
# SPDX-License-Identifier: Apache-2.0
import sys

sys.path.insert(0, "{libdir}")

from tierd.cli import {function}

sys.exit({function}())
"""


def real(python: str) -> str:
    """Path of the interpreter itself: a shebang must not name a script that finds one."""
    command = [python, "-I", "-c", "import sys; print(sys.executable)"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True)
    parser.add_argument("--destdir", default="")
    parser.add_argument("--libdir", required=True)
    parser.add_argument("--bindir", required=True)
    args = parser.parse_args()
    python = real(args.python)
    if python.startswith(("/home/", "/root/")):
        print(f"make: warning: {python} is in a home directory, which tierd.service cannot see")

    target = Path(args.destdir + args.libdir) / "tierd"
    # First away with the old one: a module that is gone must not live on.
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(SOURCE, target, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (target, *target.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    # The daemon cannot write there, so it would compile everything at every start.
    strip = ["-s", args.destdir, "-p", "/"] if args.destdir else []
    subprocess.run([python, "-m", "compileall", "-q", *strip, target], check=True)

    bindir = Path(args.destdir + args.bindir)
    bindir.mkdir(parents=True, exist_ok=True)
    for name, function in COMMANDS.items():
        command = bindir / name
        command.write_text(LAUNCHER.format(python=python, libdir=args.libdir, function=function))
        command.chmod(0o755)


if __name__ == "__main__":
    main()
