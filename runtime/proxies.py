"""HTTP proxies: the servers of this machine are reached without them."""

from __future__ import annotations

import os

_LOOPBACK = ("127.0.0.1", "localhost")


def exempt_loopback() -> None:
    """Has this process and its children reach this machine's servers without a proxy.

    Where the environment names a proxy (``http_proxy`` and the like), Python's clients send
    requests for 127.0.0.1 to it, too, unless ``no_proxy`` says otherwise; the proxy cannot reach
    the server.
    """
    if not any(name.lower().endswith("_proxy") and value for name, value in os.environ.items()):
        return
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host.strip() for host in given.split(",") if host.strip()]
    if "*" in hosts:
        return
    hosts += [host for host in _LOOPBACK if host not in hosts]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(hosts)
