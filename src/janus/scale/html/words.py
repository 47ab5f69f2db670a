"""The planner's words for people who do not run GPUs."""

from __future__ import annotations

from janus.scale.html.page import Markup, tag

RULES = {
    "expert_slots": "all experts of the model must fit into the memory of the expert GPUs",
    "attention_memory": "the requests in flight must fit into the memory of the attention GPUs",
    "prefill": "reading the prompts must leave time for answering",
    "max_batch": "the requests in flight must not exceed the largest batch",
    "slo": "an output token must not take longer than the objective allows",
    "cluster_gpus": "no more GPUs than the cluster has",
    "time_limit": "the search was cut short before it found one; there may be one",
}
ASSUMPTIONS = {
    "memory": "share of the peak memory bandwidth that a read reaches",
    "compute": "share of the peak arithmetic rate that a large product reaches",
    "attention_us": "fixed time of an attention layer, microseconds",
    "moe_us": "fixed time of an expert layer, microseconds",
    "dense_us": "fixed time of a dense part, microseconds",
    "step_us": "fixed time of a step outside the layers, microseconds",
}
MEMORY = {
    "usable": "all that may be used",
    "weights": "weights",
    "requests": "requests in flight",
    "routers_and_buffers": "routers and exchange buffers",
}
GLOSSARY = {
    "Split (disaggregated), unsplit (colocated)": (
        "Split: some GPUs hold the attention of the model, others its experts, and they exchange every token in every "
        "layer. Unsplit: every GPU holds both."
    ),
    "2A7E": "2 attention GPUs and 7 expert GPUs. 3 x EP10: three copies of an unsplit deployment of 10 GPUs.",
    "TPOT": "Time per output token: how long a reader waits for the next token, the first one excluded.",
    "SLO": "The objective: the longest TPOT that is acceptable.",
    "Tokens": "Pieces of words. Prices and rates count the tokens of the answers, not of the prompts.",
    "Expert": "A part of the model that only some tokens use. The more experts a batch touches, the longer a step.",
}


def synthetic_notice(source: str) -> Markup:
    """A warning when the routing was not recorded on the model itself; nothing otherwise."""
    if "synthetic routing" not in source:
        return Markup()
    said = " No recording of this model was used: how often its experts are chosen is borrowed from another model. "
    if source.startswith("uniform routing"):
        said = " Every expert was taken to be chosen equally often, as asked for; no trained model does that. "
    return tag("p", tag("strong", "Synthetic routing."), said, f"Source: {source}.", class_="notice", role="note")
