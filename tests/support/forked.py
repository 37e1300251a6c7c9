"""Runs ``python -m module`` in forks of one process that has imported the modules already.

Started as a program by ``forks.Forks``; a command is a line of JSON on standard input, its answer,
the exit code, a line on standard output.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import runpy
import signal
import sys
import traceback
import warnings
from collections import Counter
from typing import Any

LIGHT = ("analysis.", "beam.")
"""Modules that may be imported before a fork: they start no threads and no TensorFlow."""

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate", "shutil.rmtree"}
"""Audit events, raised before each change to the file system after which something else is visible.

Files that are being written and empty folders are seen by nobody until they get their names.
"""

_NAMES = re.compile(
    r"(?<=staging-)\w+|[0-9a-f]{12,32}|\d{5}|(?<=small-)(?:train|validation|test)"
    r"|(?<=/)(?:classes|masks|class_stats|confusion|rejects|runs)(?=/|$)"
)
"""Names of staging folders, unfinished files and tables, hashes, numbers of shards, splits."""


def kind_of(event: str, args: tuple[Any, ...], root: str) -> str | None:
    """What an event changes below ``root``, without random names and numbers; None if nothing.

    Running counters are left out: their number depends on the time a job takes.
    """
    if event not in CHANGES:
        return None
    paths = [os.fspath(one) for one in args if isinstance(one, str | os.PathLike)]
    inside = [path.removeprefix(root) for path in paths if path.startswith(f"{root}/")]
    if not inside or any("/progress" in path for path in inside):
        return None
    return f"{event} {' -> '.join(_NAMES.sub('*', path) for path in inside)}"


def watch(root: str, kill: tuple[str, int] | None, record: str) -> None:
    """Records the changes below ``root`` in a file, and kills this process before one of them."""
    seen: Counter[str] = Counter()
    file = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)

    def see(event: str, args: tuple[Any, ...]) -> None:
        kind = kind_of(event, args, root)
        if kind is None:
            return
        seen[kind] += 1
        if kill == (kind, seen[kind]):
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(file, f"{kind}\n".encode())

    sys.addaudithook(see)


def child(command: dict[str, Any]) -> int:
    """Runs the module as a program; returns its exit code."""
    for number, name in ((0, os.devnull), (1, command["stdout"]), (2, command["stderr"])):
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    # Those of the forked process are pipes' buffers.
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(command["env"])
    if command["watched"]:
        root, kill, record = command["watched"]
        watch(root, tuple(kill) if kill else None, record)
    sys.argv = [command["module"], *command["argv"]]
    # That the module is imported already is the point of it all.
    warnings.filterwarnings(
        "ignore", ".* found in sys.modules after import of package", RuntimeWarning
    )
    try:
        runpy.run_module(command["module"], run_name="__main__", alter_sys=True)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    """Answers commands until standard input ends."""
    for line in sys.stdin:
        command = json.loads(line)
        if command["module"].startswith(LIGHT):
            importlib.import_module(command["module"])
        elif command["module"].startswith("model."):
            # Most of them need it; it starts no threads either.
            importlib.import_module("mlflow")
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = child(command)
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
