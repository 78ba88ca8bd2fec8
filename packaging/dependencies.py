# SPDX-License-Identifier: Apache-2.0
"""See that an interpreter has what tierd needs; fetch the rest into tierd's private directory.

Run with any Python 3.11; the interpreter that will run tierd is asked from outside.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
DEBIAN = {
    "numpy": "python3-numpy",
    "pydantic": "python3-pydantic",
    "PyYAML": "python3-yaml",
    "prometheus-client": "python3-prometheus-client",
}

# Runs in the other interpreter, isolated as tierd's own commands are.
PROBE = """
import importlib.metadata, json, sys
sys.path.insert(0, sys.argv[1])
found = {}
for name in sys.argv[2:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found[name] = None
json.dump({"python": sys.version_info[:2], "found": found}, sys.stdout)
"""


def requirements() -> dict[str, str]:
    """Names of the run-time dependencies and the least version of each."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    return dict(line.split(">=", 1) for line in project["dependencies"])


def release(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: 2.4 of 2.4rc1."""
    return tuple(int(part) for part in re.match(r"\d+(\.\d+)*", version)[0].split("."))


def missing(python: str, directory: Path) -> list[str]:
    """Requirements that the interpreter does not meet with `directory` on its path."""
    needed = requirements()
    command = [python, "-I", "-c", PROBE, str(directory), *needed]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    if tuple(answer["python"]) < (3, 11):
        sys.exit(f"{python} is Python {'.'.join(map(str, answer['python']))}; tierd needs 3.11")
    found = answer["found"]
    return [
        f"{name}>={least}"
        for name, least in needed.items()
        if found[name] is None or release(found[name]) < release(least)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True)
    parser.add_argument("--bundle", choices=("auto", "no"), default="auto")
    parser.add_argument("directory", type=Path)
    args = parser.parse_args()
    lacking = missing(args.python, args.directory)
    if not lacking:
        return
    print(f"make: {args.python} lacks {', '.join(lacking)}", flush=True)
    if args.bundle == "auto":
        print(f"make: installing them into {args.directory}", flush=True)
        pip = [args.python, "-m", "pip", "install", "--quiet", "--upgrade"]
        # Into a directory of our own, so the warning against mixing with the system is beside it.
        pip += ["--root-user-action=ignore"]
        done = subprocess.run([*pip, "--target", str(args.directory), *lacking], check=False)
        if done.returncode == 0:
            return
    packages = " ".join(DEBIAN[line.split(">=")[0]] for line in lacking)
    sys.exit(
        f"make: cannot install tierd for {args.python} without {', '.join(lacking)}.\n"
        f"make: On Debian 13: apt-get install {packages}; elsewhere install python3-pip and a"
        " way to the package index, or give PYTHON= an interpreter that has them."
    )


if __name__ == "__main__":
    main()
