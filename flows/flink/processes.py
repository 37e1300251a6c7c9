"""Configuration, memory sizes and command lines of Flink's processes, without its start scripts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from beam import tools

RPC_PORT = 6123
REST_PORT = 8081

_OPENED = ("io", "lang", "lang.reflect", "net", "nio", "text", "time", "util", "util.concurrent")
_JVM = (
    # Flink uses reflection on these packages, which Java 17 closes by default.
    *(f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in _OPENED),
    "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED",
    "--add-opens=java.base/java.util.concurrent.atomic=ALL-UNNAMED",
    "--add-opens=java.base/java.util.concurrent.locks=ALL-UNNAMED",
    # Keeps the JVM from leaving files in the machine's temporary folder.
    "-XX:-UsePerfData",
    "-XX:MaxMetaspaceSize=256m",
)

_LOG4J = "log4j.properties"
_LOGGING = """\
rootLogger.level = INFO
rootLogger.appenderRef.console.ref = console
appender.console.name = console
appender.console.type = CONSOLE
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{yyyy-MM-dd HH:mm:ss,SSS} %-5p %-50c{1.} - %m%n
"""


@dataclass(frozen=True)
class Processes:
    """One process of a cluster, or several on one machine.

    Attributes:
        folder: holds their configuration (``conf``) and scratch files (``tmp``).
        job_manager: host of the JobManager.
        host: name or address at which the other processes reach them.
        bind: address that they listen on.
        rpc: the JobManager's port for TaskManagers.
        rest: the JobManager's port for jobs and browsers.
        slots: number of slots of each TaskManager.
        parallelism: of a job that sets none; if None, such a job takes all slots.
    """

    folder: Path
    job_manager: str
    host: str
    bind: str
    slots: int
    rpc: int = RPC_PORT
    rest: int = REST_PORT
    parallelism: int | None = None

    def configure(self) -> None:
        """Writes the configuration files that the commands refer to."""
        conf = self.folder / "conf"
        for folder in (conf, self.folder / "tmp"):
            folder.mkdir(parents=True, exist_ok=True)
        (conf / "config.yaml").write_text(yaml.safe_dump(self._config()), encoding="utf-8")
        (conf / _LOG4J).write_text(_LOGGING, encoding="utf-8")

    def environment(self) -> dict[str, str]:
        """Environment variables of each process; temporary files go to ``folder``."""
        return {**os.environ, "TMPDIR": str(self.folder / "tmp")}

    def job_manager_command(self) -> list[str]:
        """The JobManager's program and arguments.

        Raises:
            UserError: Java or Flink is missing.
        """
        main = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
        jars = f"{tools.flink_jars()}/*"
        mode = ["--executionMode", "cluster"]
        return [*self._jvm(), "-Xmx512m", "-cp", jars, main, *self._conf(), *mode]

    def task_manager_command(self, name: str) -> list[str]:
        """A TaskManager's program and arguments.

        Args:
            name: its resource id; must be unique among the running TaskManagers.

        Raises:
            UserError: Java, Flink or Beam's runner is missing.
        """
        main = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
        jars = f"{tools.flink_jars()}/*:{tools.flink_runner()}"
        memory = _memory(self.slots)
        heap = memory["framework.heap.size"] + memory["task.heap.size"]
        direct = memory["framework.off-heap.size"] + memory["task.off-heap.size"]
        return [
            *self._jvm(),
            f"-Xmx{heap}m",
            f"-XX:MaxDirectMemorySize={direct + memory['network.max']}m",
            *("-cp", jars, main, *self._conf()),
            f"-Dtaskmanager.resource-id={name}",
            # Loads Beam's runner once instead of for each job, so that it keeps its Python workers
            # from one step to the next.
            "-Dclassloader.resolve-order=parent-first",
        ]

    def _jvm(self) -> list[str]:
        folder = self.folder
        log4j = f"-Dlog4j.configurationFile={folder / 'conf' / _LOG4J}"
        return [tools.java(), *_JVM, f"-Djava.io.tmpdir={folder / 'tmp'}", log4j]

    def _conf(self) -> list[str]:
        return ["--configDir", str(self.folder / "conf")]

    def _config(self) -> dict[str, Any]:
        scratch = str(self.folder / "tmp")
        memory = _memory(self.slots).items()
        return {
            "jobmanager.rpc.address": self.job_manager,
            "jobmanager.rpc.port": self.rpc,
            "jobmanager.bind-host": self.bind,
            "taskmanager.host": self.host,
            "taskmanager.bind-host": self.bind,
            "taskmanager.numberOfTaskSlots": self.slots,
            "taskmanager.cpu.cores": self.slots,
            **{f"taskmanager.memory.{name}": f"{size}m" for name, size in memory},
            # Buffers of 32 KiB for each output of a subtask. Many subtasks run in a slot at once,
            # and little data crosses the shuffle; with Flink's default of 512, a job of two slots
            # runs out of buffers.
            "taskmanager.network.sort-shuffle.min-buffers": 64,
            # Spreads a job of few slots over all TaskManagers.
            "cluster.evenly-spread-out-slots": True,
            **({"parallelism.default": self.parallelism} if self.parallelism else {}),
            "rest.address": self.job_manager,
            "rest.bind-address": self.bind,
            "rest.port": self.rest,
            # Otherwise any web page, in a browser that can reach this address, could read its
            # responses and so run code.
            "web.access-control-allow-origin": f"http://{self.job_manager}:{self.rest}",
            # Seconds; an hour by default. A TaskManager keeps 60 MB of each job until then.
            "blob.service.cleanup.interval": 60,
            "io.tmp.dirs": scratch,
            "web.tmpdir": scratch,
            # A TaskManager that has ended refuses heartbeats and is noticed within seconds; one
            # that is slow to answer on busy cores has three minutes.
            "heartbeat.interval": 1000,
            "heartbeat.timeout": 180000,
            # Steps that need data of a lost TaskManager fail one after the other. This strategy,
            # unlike fixed-delay, counts failures within one delay as one.
            "restart-strategy.type": "exponential-delay",
            # Machines may come and go for hours; an hour without a failure resets the count.
            "restart-strategy.exponential-delay.attempts-before-reset-backoff": 50,
            # Longer than a Python worker waits for work, so that no dead worker is used again.
            "restart-strategy.exponential-delay.initial-backoff": "5 s",
            "restart-strategy.exponential-delay.max-backoff": "10 s",
        }


def _memory(slots: int) -> dict[str, int]:
    """Memory of a TaskManager's JVM in MiB, without that of its Python workers.

    All sizes are set here; only Flink's start scripts, which are not used, would derive some.
    """
    network = 64 * slots
    return {
        # Together these make up the heap.
        "framework.heap.size": 128,
        "task.heap.size": 128 + 128 * slots,
        # Together with the network buffers, these make up the direct memory.
        "framework.off-heap.size": 128,
        "task.off-heap.size": 128 * slots,
        "network.min": network,
        "network.max": network,
        # Grouped data is sorted here, or on disk if it does not fit.
        "managed.size": 64 * slots,
        "jvm-metaspace.size": 256,
        "jvm-overhead.min": 192,
        "jvm-overhead.max": 192,
    }
