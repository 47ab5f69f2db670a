"""How soon an `Autoscaler` acts: what is measured, what is assumed, each a plain number."""

from __future__ import annotations

from dataclasses import dataclass

from janus.errors import JanusError
from janus.scale.hardware import positive, whole
from janus.types.checks import number


@dataclass(frozen=True)
class Tuning:
    """Hysteresis and prices of an `Autoscaler`.

    Args:
        patience: decision windows that a saving of GPUs has to persist before pools shrink; pools grow at once.
        horizon_s: seconds that a saving or a better placement is expected to last: what it brings in that time has to
            exceed what the move costs. 900: the paper decides every 15 minutes.
        startup_s: from asking for a GPU to the moment it can take weights, seconds. An assumption.
        replace_at: predicted share of the step time that another placement takes off, from which re-placing the same
            pools is worth a look. The break-even that ``benchmarks/prove/scale_regret.py`` measures and prints.
        memory: weight of earlier windows in the popularity that placements are made for, 0 (the last window alone) to
            below 1.

    Raises:
        JanusError: ``scale.tuning``.

    Example:
        >>> Tuning(patience=4).horizon_s
        900.0
    """

    patience: int = 3
    horizon_s: float = 900.0
    startup_s: float = 60.0
    replace_at: float = 0.0002
    memory: float = 0.2

    def __post_init__(self) -> None:
        code = "scale.tuning"
        whole(self.patience, "patience (windows)", code)
        positive(self.horizon_s, "horizon_s", code)
        for name in ("startup_s", "replace_at", "memory"):
            value = number(getattr(self, name), f"{name} must be a finite number >= 0", code)
            if value < 0 or (name == "memory" and value >= 1):
                rule = f"{name} must be >= 0{' and below 1' if name == 'memory' else ''}"
                raise JanusError(code, f"{rule}, got {value}")
