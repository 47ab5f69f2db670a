"""The nouns every part of Janus shares: frozen, torch-free, checked when they are made.

Legend of the shape letters used in names everywhere (``x_BH``, ``ids_TK``):

| letter | meaning |
|---|---|
| T | tokens in one call |
| B | in-flight batch: the tokens of all attention instances together |
| b | tokens of one attention instance, B / n_a on average |
| H | hidden size |
| F | intermediate size of one expert |
| K | experts per token (top-k) |
| E | logical experts of one layer |
| G | expert instances, n_e |
| C | expert slots per instance and layer |
| R | physical slots of one layer, G * C |
| L | MoE layers (dense layers do not count) |
"""

from janus.types.moves import Moves
from janus.types.placement import Placement
from janus.types.requests import RequestTrace
from janus.types.routing import RoutingTrace
from janus.types.routing_files import read_cross_layer_counts, read_expert_counts
from janus.types.samples import sample
from janus.types.slo import Slo
from janus.types.topology import Topology

__all__ = [
    "Moves",
    "Placement",
    "RequestTrace",
    "RoutingTrace",
    "Slo",
    "Topology",
    "read_cross_layer_counts",
    "read_expert_counts",
    "sample",
]
