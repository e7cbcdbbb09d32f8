"""Many replicas: routers, an autoscaler, faults, and prefill apart from decode, around the same scheduler."""

from simulator.cluster.cluster import Cluster
from simulator.cluster.errors import ClusterError
from simulator.cluster.journey import Journey
from simulator.cluster.listener import Listener
from simulator.cluster.plan import ClusterPlan
from simulator.cluster.simulation import simulate_cluster

__all__ = ["Cluster", "ClusterError", "ClusterPlan", "Journey", "Listener", "simulate_cluster"]
