"""DisaggregatedRunner: one object per process, the same line on every rank."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from janus.comm import Exchange, Timeouts, rendezvous
from janus.errors import JanusError, known
from janus.experts.backends import COMPUTES
from janus.experts.checkpoint import Checkpoint
from janus.experts.live import ExpertSource, LiveModel
from janus.experts.quantized import FORMATS
from janus.runner.attention import ExpertLink, disaggregate
from janus.runner.check import agree_ready, check_source, checked_placement, contract
from janus.runner.clock import Clock
from janus.runner.expert import ExpertServer
from janus.runner.generate import Batch, Generation, Sampling, check_prompts, check_room
from janus.sched import Balancer, BalancerStats, RooflineCost
from janus.sched.stats import MEANS
from janus.types import Placement, RoutingTrace, Topology

GATES = ("experts", "attention")
SCOPES = ("batch", "rank")


class DisaggregatedRunner:
    """Serve a Mixture-of-Experts model with attention and experts in separate processes.

    Every rank makes the same object; its role follows from the topology. Expert ranks call `serve()`; attention ranks
    call `generate()`, or drive `model` themselves with equal numbers of forwards (`idle_step()` without work).

    Args:
        model_or_path: local Hugging Face folder (safetensors), of which each role reads only its part, or a live model,
            identical on every rank; on attention ranks it gets the stand-ins itself, and keeps them.
        topology: which rank plays which role.
        placement: which expert sits where; default in order, one replica each.
        gate: ``"experts"`` moves the routers to the expert ranks, which then all see all tokens; ``"attention"`` leaves
            them and sends each instance only its tokens.
        balance: method of `janus.sched.balance`.
        cost: of one expert, for ``balance="cost"`` and no other method; the same on every rank.
        backend: backend of the balancer.
        scope: with the attention-side gate, balance over the ``"batch"`` of all attention ranks or per ``"rank"``.
        regime: of the exchange.
        dtype: of the weights read from a folder; default the checkpoint's. A live model keeps its own.
        max_tokens: most tokens one attention rank sends in one step; longer prompts are prefilled in chunks,
            unless the model has recurrent layers.
        compute: how the chosen experts are run on the expert ranks: ``"auto"``, the fastest way there is (``"mixed"``: in
            this version they run on CPUs), or one by name, as in `JanusMoELayer`; `stats` says which it is. Each rank may
            choose its own: the same weights, and sums that agree to rounding.
        quantize: keep the matrices of the slots in 8 bits: ``"int8"`` (a scale per 128 inputs of an output) or ``"fp8"``
            (e4m3, a scale per 128 x 128 block); default as the model has them. A folder in FP8 gives its bytes and scales
            to ``"fp8"`` unchanged. The same on every rank: replicas of an expert are one expert.
        record: keep every batch's routing for `routing()` (expert-side gate).
        timeouts: deadlines of every wait.

    Raises:
        JanusError: for anything wrong with model, placement, topology or options, on every rank, before serving. Among
            them ``experts.compute`` for a way that is unknown or cannot run there, ``experts.quantize`` for an unknown
            format or weights that are not finite, ``comm.contract`` for options that differ between ranks.
        PeerLost: when another process is lost.

    Example:
        ```python
        with DisaggregatedRunner("path/to/model", topology=Topology.parse("2A4E", gpus_per_node=2)) as runner:
            if runner.role == "expert":
                runner.serve()
            else:
                completions = runner.generate([[1, 2, 3], [4, 5]], max_new_tokens=16)
        ```
    """

    # Which of these exist follows from the role: `_need` stands before every use.
    _ex: Exchange
    _link: ExpertLink
    _balancer: Balancer | None = None
    _server: ExpertServer
    _model: nn.Module

    def __init__(
        self,
        model_or_path: str | Path | nn.Module,
        *,
        topology: Topology,
        placement: Placement | None = None,
        gate: Literal["experts", "attention"] = "experts",
        balance: str = "exact",
        cost: RooflineCost | None = None,
        backend: str = "auto",
        scope: str = "batch",
        regime: str = "auto",
        dtype: torch.dtype | None = None,
        max_tokens: int = 1024,
        compute: str = "auto",
        quantize: str | None = None,
        record: bool = False,
        timeouts: Timeouts | None = None,
    ) -> None:
        if not isinstance(topology, Topology):
            raise JanusError(
                "runner.topology", f"topology must be a janus.Topology, got {topology!r}; try Topology.parse('2A4E')"
            )
        known(gate, GATES, "gate", "runner.gate")
        known(scope, SCOPES, "scope", "runner.scope")
        known(compute, ("auto", *COMPUTES), "compute", "experts.compute")
        if quantize is not None:
            known(quantize, FORMATS, "quantize", "experts.quantize")
        if record and gate != "experts":
            raise JanusError(
                "runner.record", "record=True needs gate='experts', where the experts see every token's routing"
            )
        self.gate: Literal["experts", "attention"] = gate
        self.topology, self.max_tokens, self.record = topology, max_tokens, record
        self.clock, self._balance, self._cost, self._backend, self._scope = Clock(), balance, cost, backend, scope
        self._generations: list[Generation] = []
        self._slot_options: dict[str, Any] = {"compute": compute, "quantize": quantize}
        source = _open_source(model_or_path, dtype)
        try:
            check_source(source, gate)
            self.placement = checked_placement(placement, source, topology)
            self.rank = rendezvous(topology, timeouts or Timeouts())
            self.role = topology.role(self.rank)
            if self.role != "idle":
                self._join(source, regime, timeouts or Timeouts())
        except BaseException:
            self.close()
            raise
        finally:
            source.close()

    def _join(self, source: ExpertSource, regime: str, timeouts: Timeouts) -> None:
        """Agree on the contract, load this role's part, and agree that everyone could."""
        block = source.blocks[0]
        options = {
            "balance": self._balance,
            "balance_cost": str(self._cost),
            "scope": self._scope,
            "weights_dtype": str(block.weights_dtype),
            # not "compute": other ways to run the same weights agree to rounding
            "quantize": self._slot_options["quantize"],
        }
        self._ex = Exchange(
            self.topology,
            hidden_size=block.hidden_size,
            dtype=source.dtype,
            max_tokens=self.max_tokens,
            gate=self.gate,
            top_k=block.top_k,
            slots_per_instance=self.placement.slots_per_instance,
            regime=regime,
            device="cpu",
            timeouts=timeouts,
            contract=contract(source, self.placement, options),
        )
        failure = None
        try:
            self._build(source)
        except JanusError as error:  # told to all, so that nobody waits for a rank that gave up
            failure = error
        agree_ready(self._ex, getattr(self, "_server", None), failure, self.topology)

    def _build(self, source: ExpertSource) -> None:
        """This role's part of the model, with the balancer where the gate is."""
        if self.role == ("expert" if self.gate == "experts" else "attention"):
            self._balancer = self._make_balancer(len(source.blocks))
        if self.role == "expert":
            instance = self.topology.instance(self.rank)
            self._server = ExpertServer(
                source, self.placement, instance, self._balancer, self.record, self.clock, **self._slot_options
            )
        else:
            self._link = ExpertLink(self._ex, source.blocks, self._balancer, self._scope, self.clock, source.dtype)
            self._model = disaggregate(source.load_attention_side(), source.blocks, self._link, self.gate)

    def _make_balancer(self, num_layers: int) -> Balancer:
        most = self.max_tokens * self.topology.n_attention
        chosen = {"method": self._balance, "cost": self._cost, "backend": self._backend}
        return Balancer(self.placement, **chosen, max_tokens=most, num_layers=num_layers)

    @property
    def model(self) -> Any:
        """The user's model with stand-ins for its experts (attention ranks)."""
        self._need("attention", "model")
        return self._model

    def serve(self) -> None:
        """Run the expert side until the attention side closes; returns at once on an idle rank.

        Raises:
            PeerLost: when an attention rank or a fellow is lost.
        """
        if self.role == "idle":
            return
        self._need("expert", "serve()")
        self._server.serve(self._ex)

    def idle_step(self) -> bool:
        """Take part in one forward of the other attention ranks without tokens of one's own.

        Returns:
            False if no attention rank had tokens.
        """
        self._need("attention", "idle_step()")
        return self._link.idle_step()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int = 32,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop_at_eos: bool = True,
    ) -> list[list[int]]:
        """Complete prompts; every attention rank calls it with the same arguments and gets the same result.

        Prompt i is served by attention instance i mod n_a. Greedy completions are those of the undivided model; with
        `quantize`, of that model converted with the same.

        Args:
            prompts: token ids of each prompt, any lengths >= 1.
            max_new_tokens: most new tokens per prompt.
            do_sample: sample instead of taking the most likely token.
            temperature: > 0; sampling only.
            top_k: sampling only.
            top_p: sampling only.
            seed: sampling only; a completion depends on it and the prompt's index, not on the topology's spread.
            stop_at_eos: end a completion with the model's end-of-sequence token.

        Returns:
            New token ids of each prompt, in order, prompt excluded, end-of-sequence token included.

        Raises:
            JanusError: ``generate.prompts``, ``generate.length``, ``generate.sampling``, ``generate.differ`` (the
                attention ranks were called with different arguments).
            PeerLost: when another process is lost.
        """
        self._need("attention", "generate()")
        config = self.model.config.get_text_config()
        check_prompts(prompts, max_new_tokens, config.vocab_size, getattr(config, "max_position_embeddings", None))
        stateful = getattr(self.model, "_is_stateful", False)  # transformers' mark of recurrent layers
        check_room(prompts, self.topology.n_attention, self.max_tokens, one_step=stateful)
        sampling = Sampling(do_sample, temperature, top_k, top_p, seed)
        self._check_same_call([list(map(list, prompts)), max_new_tokens, repr(sampling), stop_at_eos])
        mine = range(self.topology.instance(self.rank), len(prompts), self.topology.n_attention)
        stop = self._stop_ids() if stop_at_eos else frozenset()
        batch = Batch([prompts[i] for i in mine], mine, max_new_tokens, stop, sampling, pad=0)
        run = Generation(self.model, self._link, batch, self.max_tokens)
        self._generations.append(run)
        return self._gather(run.run(), len(prompts))

    def stats(self) -> dict[str, Any]:
        """What this rank did so far: role, seconds by phase, traffic sent, TPOT (attention ranks), and of expert ranks how
        their slots are run and kept (``compute``, one name or several where layers differ; ``quantize``).

        Where the balancer runs (expert ranks, or attention ranks with the attention-side gate) also ``layers``: per MoE
        layer the number of batches and routing entries, and the means of `BalancerStats` per batch, None before the
        first one.
        """
        out: dict[str, Any] = {"rank": self.rank, "role": self.role, "seconds": self.clock.to_dict()}
        if self.role != "idle":
            out["traffic"] = {
                link: {"messages": t.messages, "bytes": t.bytes} for link, t in self._ex.traffic().items()
            }
        if self.role == "attention":
            out |= self._attention_stats()
        if self.role == "expert":
            ways = sorted({slots.compute for slots in self._server.slots})
            out |= {"compute": ", ".join(ways), "quantize": self._slot_options["quantize"]}
        if self._balancer is not None:
            out["layers"] = _layer_rows(self._balancer.stats)
        return out

    def routing(self) -> RoutingTrace:
        """Routing of every batch served so far (expert ranks, `record=True`): one row per token, in order served."""
        self._need("expert", "routing()")
        whole = len(self.batch_sizes())
        if not whole:
            raise JanusError(
                "runner.record", "nothing was recorded; make the runner with record=True and serve some tokens"
            )
        ids = np.stack([np.concatenate(ids[:whole]) for ids in self._server.recorded], axis=1)
        return RoutingTrace(ids, self.placement.num_experts, source="recorded by DisaggregatedRunner")

    def batch_sizes(self) -> list[int]:
        """Tokens of every batch behind `routing()`, in order served; one cut short by a lost peer is left out."""
        self._need("expert", "batch_sizes()")
        return [len(ids) for ids in self._server.recorded[-1]]  # layers are served in order: the last has the fewest

    def close(self) -> None:
        """Leave; on the attention side this ends the expert side's `serve()`. Bounded, may be called again."""
        if hasattr(self, "_ex"):
            self._ex.close()

    def __enter__(self) -> DisaggregatedRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _need(self, role: str, what: str) -> None:
        if self.role != role:
            raise JanusError(
                "runner.role", f"{what} is for {role} ranks; rank {self.rank} of {self.topology} is {self.role}"
            )

    def _stop_ids(self) -> frozenset[int]:
        generation = getattr(self.model, "generation_config", None)
        eos = getattr(generation, "eos_token_id", None)
        eos = getattr(self.model.config.get_text_config(), "eos_token_id", None) if eos is None else eos
        return frozenset() if eos is None else frozenset([eos] if isinstance(eos, int) else eos)

    def _check_same_call(self, arguments: list[Any]) -> None:
        mine = hashlib.sha256(json.dumps(arguments).encode()).hexdigest()
        seen = self._ex.share(
            f"generate-{len(self._generations)}",
            mine,
            ranks=self.topology.attention_ranks,
            timeout_s=self._ex.timeouts.idle_s,
        )
        other = next((rank for rank, digest in seen.items() if digest != mine), None)
        if other is not None:
            raise JanusError(
                "generate.differ",
                f"every attention rank must call generate() with the same arguments; ranks {self.rank} and {other} differ",
            )

    def _gather(self, completions: list[list[int]], n_prompts: int) -> list[list[int]]:
        name = f"completions-{len(self._generations)}"
        parts = self._ex.share(name, completions, ranks=self.topology.attention_ranks)
        by_instance = [parts[rank] for rank in self.topology.attention_ranks]
        return [by_instance[i % len(by_instance)][i // len(by_instance)] for i in range(n_prompts)]

    def _attention_stats(self) -> dict[str, Any]:
        timings = [run.timing for run in self._generations]
        steps = [s for timing in timings for s in timing.decode_s]
        return {
            "generate_s": sum(timing.total_s for timing in timings),
            "prefill_s": sum(timing.prefill_s for timing in timings),
            "decode_steps": len(steps),
            "tokens": sum(timing.tokens for timing in timings),
            "tpot_ms": 1e3 * sum(steps) / len(steps) if steps else None,
        }


def _layer_rows(stats: BalancerStats) -> list[dict[str, Any]]:
    columns = {name: getattr(stats, name).tolist() for name in MEANS}
    rows = zip(stats.batches.tolist(), stats.column("entries").tolist(), *columns.values(), strict=True)
    return [
        {"batches": batches, "entries": entries}
        | {name: value if batches else None for name, value in zip(columns, means, strict=True)}
        for batches, entries, *means in rows
    ]


def _open_source(model_or_path: str | Path | nn.Module, dtype: torch.dtype | None) -> ExpertSource:
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise JanusError("runner.dtype", f"dtype must be a torch dtype such as torch.bfloat16, got {dtype!r}")
    if isinstance(model_or_path, nn.Module):
        live = LiveModel(model_or_path)
        if dtype not in (None, live.dtype):
            raise JanusError(
                "runner.dtype",
                f"the live model's experts are {live.dtype}, dtype={dtype}; convert the model: model.to({dtype})",
            )
        return live
    if isinstance(model_or_path, (str, Path)):
        return Checkpoint(model_or_path, dtype=dtype)
    raise JanusError("runner.model", f"give a model folder or a live torch module, got {type(model_or_path).__name__}")
