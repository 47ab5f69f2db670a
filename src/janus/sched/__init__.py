"""Routing and placement to an assignment: one replica for every activated expert, and the placement itself.

Works without torch and triton; numba is imported on first use, torch and triton for a GPU alone.
"""

from janus.sched.api import Assignment, Balancer, balance
from janus.sched.cost import RooflineCost
from janus.sched.placing import place
from janus.sched.replicas import replicate
from janus.sched.stats import BalancerStats

__all__ = ["Assignment", "Balancer", "BalancerStats", "RooflineCost", "balance", "place", "replicate"]
