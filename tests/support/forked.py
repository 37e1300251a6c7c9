"""Runs jobs in forks of one process that has imported Beam, and kills them where it is told to.

Started as a program by ``kills.Forks``; a command is a line of JSON on standard input, its answer a
line on standard output.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import sys
from collections import Counter
from typing import Any

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate", "shutil.rmtree"}
"""Audit events, raised before each change to the file system after which something else is visible.

Files that are being written and empty folders are seen by nobody until they get their names.
"""


_NAMES = re.compile(
    r"(?<=staging-)\w+|[0-9a-f]{12,32}|\d{5}|(?<=small-)(?:train|validation|test)"
    r"|(?<=/)(?:classes|masks|class_stats|confusion|_rejects|runs)(?=/|$)"
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


def run(job: str, argv: list[str], root: str, kill: tuple[str, int] | None, record: str) -> None:
    """Runs a job in this process; writes the changes it makes to ``record``, or dies before one."""
    seen: Counter[str] = Counter()
    changes: list[str] = []

    def watch(event: str, args: tuple[Any, ...]) -> None:
        kind = kind_of(event, args, root)
        if kind is None:
            return
        seen[kind] += 1
        changes.append(kind)
        if kill == (kind, seen[kind]):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    importlib.import_module(job).main(argv)
    done = list(changes)
    with open(record, "w", encoding="utf-8") as file:
        json.dump(done, file)


def main() -> None:
    """Answers commands until standard input ends."""
    for job in sys.argv[1:]:
        importlib.import_module(job)
    print("ready", flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        log = command.pop("log")
        kill = command.pop("kill")
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with open(log, "ab") as file:
                    os.dup2(file.fileno(), 1)
                    os.dup2(file.fileno(), 2)
                run(**command, kill=tuple(kill) if kill else None)
                code = 0
            except BaseException:  # noqa: BLE001 - the child must not go on as its parent
                import traceback

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
