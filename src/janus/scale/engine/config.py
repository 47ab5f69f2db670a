"""A colocated engine: its model, its GPUs, how they are split between them, and what it serves."""

from __future__ import annotations

from dataclasses import dataclass

from janus.errors import JanusError
from janus.scale.hardware import Cluster, whole
from janus.scale.model import ModelSpec, dtype_bytes


@dataclass(frozen=True)
class EngineConfig:
    """One colocated engine (attention and experts on every GPU) and what it serves.

    Args:
        model: with the dtypes it is served in.
        cluster: the GPUs; their memory bounds how many requests run.
        batch: requests in flight on the whole engine.
        isl: prompt tokens of a request.
        osl: output tokens of a request, at least 2 (the first one is not part of TPOT).
        tp: tensor-parallel width of attention; the experts use all tp x dp GPUs of a stage.
        dp: attention data parallelism: groups of tp GPUs with requests of their own.
        ep: ranks whole experts are spread over; inside each, experts are cut over tp x dp / ep GPUs.
        pp: pipeline stages.

    Raises:
        JanusError: ``engine.range``, ``engine.parallel``.

    Example:
        >>> config = EngineConfig(ModelSpec.from_config("gpt-oss-120b"), Cluster("h200-sxm"), 16, 1024, 1024, tp=4, ep=2)
        >>> config.gpus, config.moe_tp
        (4, 2)
    """

    model: ModelSpec
    cluster: Cluster
    batch: int
    isl: int
    osl: int
    tp: int = 1
    dp: int = 1
    ep: int = 1
    pp: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.model, ModelSpec) or not isinstance(self.cluster, Cluster):
            rule = "an EngineConfig takes a ModelSpec and a Cluster"
            raise JanusError("engine.range", f"{rule}, got {type(self.model).__name__}, {type(self.cluster).__name__}")
        for name in ("batch", "isl", "osl", "tp", "dp", "ep", "pp"):
            whole(getattr(self, name), name, "engine.range", least=2 if name == "osl" else 1)
        if self.stage_gpus % self.ep or self.ep > self.model.experts:
            rule = f"ep must divide tp x dp and be at most the model's {self.model.experts} experts"
            raise JanusError("engine.parallel", f"{rule}; got tp={self.tp}, dp={self.dp}, ep={self.ep}")
        if self.tp > self.model.attention.heads or self.pp > self.model.layers:
            rule = f"tp is at most {self.model.attention.heads} heads, pp at most {self.model.layers} layers"
            raise JanusError("engine.parallel", f"{rule}; got tp={self.tp}, pp={self.pp}")

    @property
    def stage_gpus(self) -> int:
        """GPUs of one pipeline stage."""
        return self.tp * self.dp

    @property
    def gpus(self) -> int:
        """GPUs of the engine."""
        return self.stage_gpus * self.pp

    @property
    def moe_tp(self) -> int:
        """GPUs one expert is cut over."""
        return self.stage_gpus // self.ep

    @property
    def context(self) -> float:
        """Mean cached tokens of a running request, half its output written."""
        return self.isl + self.osl / 2

    @property
    def cache_bytes_per_token(self) -> float:
        """One GPU's share of one token's cache in one layer: heads are cut, MLA's latent is copied to every rank."""
        attention = self.model.attention
        cut = 1 if attention.kind == "mla" else min(self.tp, attention.kv_heads)
        return self.model.kv_bytes_per_token() / cut

    @property
    def weight_bytes(self) -> float:
        """Weights on one GPU: experts cut over the stage, the rest over tp."""
        m = self.model
        return (
            m.routed_params * dtype_bytes(m.expert_dtype) / self.stage_gpus + m.attention_side_bytes / self.tp
        ) / self.pp

    def running(self) -> float:
        """Requests that run at once: `batch`, or as many mean contexts as the memory beside the weights holds.

        Raises:
            JanusError: ``engine.memory`` when the weights and one request do not fit.
        """
        room = self.cluster.usable_bytes - self.weight_bytes
        each = self.model.attention.kept(self.context, self.model.layers) * self.cache_bytes_per_token / self.pp
        if room < each:
            need, have = (self.weight_bytes + each) / 2**30, self.cluster.usable_bytes / 2**30
            rule = f"weights and one request of {self.context:.0f} tokens need {need:.0f} GiB per GPU"
            raise JanusError("engine.memory", f"{rule}, usable are {have:.0f} GiB; raise tp, ep or pp")
        return min(self.batch, self.dp * room / each)
