"""Checks of single fields of a parsed file: each takes (value, name) and gives the value or a `JanusError`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from janus.errors import JanusError
from janus.types.checks import integer, number, shown

CODE = "plan.file"
Check = Callable[[Any, str], Any]


def text(value: Any, name: str) -> str:
    """`value` if it is a text."""
    if not isinstance(value, str):
        raise JanusError(CODE, f"{name} must be a text, got {shown(value)}")
    return value


def flag(value: Any, name: str) -> bool:
    """`value` if it is true or false."""
    if not isinstance(value, bool):
        raise JanusError(CODE, f"{name} must be true or false, got {shown(value)}")
    return value


def count(value: Any, name: str) -> int:
    """`value` if it is a whole number >= 1."""
    return integer(value, name, CODE, low=1)


def least(low: float, *, above: bool = False) -> Check:
    """A check for a finite number >= `low`, or > `low`."""
    rule = f"must be a finite number {'>' if above else '>='} {low:g}"

    def check(value: Any, name: str) -> float:
        out = number(value, f"{name} {rule}", CODE)
        if out < low or (above and out == low):
            raise JanusError(CODE, f"{name} {rule}, got {shown(value)}")
        return out

    return check


def optional(check: Check) -> Check:
    """A check that lets None through."""
    return lambda value, name: None if value is None else check(value, name)


def plain_object(value: Any, name: str) -> dict[str, Any]:
    """`value` if it is a JSON object."""
    if not isinstance(value, dict):
        raise JanusError(CODE, f"{name} must be an object, got {shown(value)}")
    return value


def record(checks: dict[str, Check]) -> Check:
    """An object with these fields at least."""

    def check(value: Any, name: str) -> dict[str, Any]:
        found = plain_object(value, name)
        for field, of_field in checks.items():
            if field not in found:
                raise JanusError(CODE, f"{name} holds {field}; it is missing")
            of_field(found[field], f"{name}.{field}")
        return found

    return check
