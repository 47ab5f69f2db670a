"""The small real recordings that come with the package."""

from __future__ import annotations

from pathlib import Path

from janus.errors import known

SAMPLES = {
    "azure-conversation": "azure_conversation_600.csv",
    "gptoss20b-routing": "gptoss20b_routing.npz",
    "olmoe-mixtral-counts": "olmoe_mixtral_counts.json",
}


def sample(name: str) -> Path:
    """The path of a recording shipped with the package; what they are and their licences: NOTICE and docs/types.md.

    Args:
        name: ``"azure-conversation"`` (for `RequestTrace.load`), ``"gptoss20b-routing"`` (for `RoutingTrace.load`) or
            ``"olmoe-mixtral-counts"`` (for `read_expert_counts`).

    Raises:
        JanusError: ``sample.name`` for any other name, with the known ones.

    Example:
        >>> sample("azure-conversation").name
        'azure_conversation_600.csv'
    """
    return Path(__file__).parents[1] / "data" / SAMPLES[known(name, SAMPLES, "a sample", "sample.name")]
