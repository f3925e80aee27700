"""A Ray cluster of two nodes with a made-up GPU each on this machine; the first is its head."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import psutil

CLUSTERS: list[Any] = []
_STORE_BYTES = 100 << 20


@contextmanager
def two_nodes() -> Iterator[Any]:
    """The cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "num_gpus": 1, "object_store_memory": _STORE_BYTES, "include_dashboard": False},
    )
    try:
        add_node(cluster)
        cluster.wait_for_nodes()
        CLUSTERS.append(cluster)
        yield cluster
    finally:
        CLUSTERS.clear()
        ray.shutdown()
        cluster.shutdown()


def add_node(cluster: Any) -> Any:
    """One more node."""
    return cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=_STORE_BYTES)


def kill_node(node: Any, spare: Collection[int]) -> None:
    """As when a machine is cut off: Ray's own processes there are gone, those to be spared live on."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for process in [raylet, *raylet.children(recursive=True)]:
        if process.pid not in spare:
            process.kill()
