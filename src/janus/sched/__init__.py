"""Routing and placement to an assignment: one replica for every activated expert, and the placement itself.

Works without torch and triton; numba is imported on first use.
"""

from janus.sched.api import Assignment, Balancer, balance
from janus.sched.placing import place
from janus.sched.replicas import replicate

__all__ = ["Assignment", "Balancer", "balance", "place", "replicate"]
