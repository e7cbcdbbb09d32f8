"""Many replicas: routers, an autoscaler, faults, and prefill apart from decode, around the same scheduler."""

from simulator.cluster.cluster import Cluster, ClusterPlan, Listener, simulate_cluster
from simulator.cluster.errors import ClusterError
from simulator.cluster.journey import Journey

__all__ = ["Cluster", "ClusterError", "ClusterPlan", "Journey", "Listener", "simulate_cluster"]
