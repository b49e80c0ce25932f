# SPDX-License-Identifier: Apache-2.0
"""What the gateway says when it refuses a call, for a model and for a program."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

META = "remit.internal/denial"
"""The member of a result's ``_meta`` that holds a denial."""

CALL = "remit.internal/call"
"""The member of ``_meta`` in the result of a call that was made: its decision, run and stage."""

CODE = -32001
"""The code of a JSON-RPC error that is a denial; its ``data`` holds what ``_meta`` holds in a result."""

_TEXT = re.compile(
    r"(?P<held>Held: a person has to agree first|Denied)(?:: (?P<reasons>.*?))?\. (?:To go on: (?P<next>.*?)\. )?"
    r"(?:It waits as (?P<hold>[a-z0-9-]+) until (?P<until>[0-9TZ:.+-]+): make the same call .*?, every (?P<retry>\d+) seconds.*? one time\. )?"
    r"Decision (?P<decision>dec-[a-z2-7]{26})(?:, run (?P<run>run-[a-z2-7]{26}), stage (?P<stage>[^.]+))?\."
)
_REASON = re.compile(r"([a-z_]+)(?: \(([^()]*)\))?")


@dataclass(frozen=True)
class Reason:
    """One reason: its code and what it is about. Limits and evidence are not told to agents."""

    code: str
    of: str = ""

    def __str__(self) -> str:
        return f"{self.code} ({self.of})" if self.of else self.code


@dataclass(frozen=True)
class Denial:
    """A call that was refused, or is held until a person agrees.

    A held one that can be asked for names its ``hold``, ``until`` when it waits (RFC 3339), and after how many seconds to make the same
    call again.
    """

    reasons: tuple[Reason, ...]
    next: str = ""
    decision: str = ""
    run: str = ""
    stage: str = ""
    held: bool = False
    hold: str = ""
    until: str = ""
    retry_after_s: int = 0

    @classmethod
    def parse(cls, data: Any) -> Denial | None:
        """Reads the member of ``_meta``, or the ``data`` of an error. What is neither is None."""
        if not isinstance(data, Mapping) or not isinstance(data.get("reasons"), list):
            return None
        reasons = tuple(Reason(_text(r, "code"), _text(r, "of")) for r in data["reasons"] if isinstance(r, Mapping))
        texts = {k: _text(data, k) for k in ("next", "run", "stage", "hold", "until")}
        after = data.get("retry_after_s")
        after = after if isinstance(after, int) and not isinstance(after, bool) and after > 0 else 0
        return cls(reasons, decision=_text(data, "decision_id"), held=data.get("held") is True, retry_after_s=after, **texts)

    @classmethod
    def of_result(cls, result: Any) -> Denial | None:
        """Finds the denial in a CallToolResult of the mcp package."""
        meta = getattr(result, "meta", None)
        if not getattr(result, "isError", False) or not isinstance(meta, Mapping):
            return None
        return cls.parse(meta.get(META))

    @classmethod
    def of_text(cls, text: str) -> Denial | None:
        """Reads the gateway's text, where a framework kept nothing else."""
        m = _TEXT.search(text)
        if m is None:
            return None
        reasons = tuple(Reason(code, of) for code, of in _REASON.findall(m["reasons"] or ""))
        parts = {k: m[k] or "" for k in ("next", "decision", "run", "stage", "hold", "until")}
        return cls(reasons, held=m["held"] != "Denied", retry_after_s=int(m["retry"] or 0), **parts)

    @classmethod
    def of_error(cls, error: BaseException) -> Denial | None:
        """Finds the denial in an exception: ours, or an McpError of the mcp package."""
        denial = getattr(error, "denial", None)
        if isinstance(denial, Denial):
            return denial
        inner = getattr(error, "error", None)
        return cls.parse(getattr(inner, "data", None)) if getattr(inner, "code", None) == CODE else None

    def render(self) -> str:
        """Says to a model what was missing and how to ask for it."""
        lines = ["Held: a person has to agree before this call is made." if self.held else "Denied: the call was not made."]
        lines += [f"Missing: {r}" for r in self.reasons]
        if self.next:
            lines.append(f"To go on: {self.next}.")
        if self.hold:
            lines.append(f"It waits as {self.hold} until {self.until}: make the same call again after {self.retry_after_s} seconds.")
        where = [f"{k} {v}" for k, v in (("run", self.run), ("stage", self.stage), ("decision", self.decision)) if v]
        if where:
            lines.append(f"[{', '.join(where)}]")
        return "\n".join(lines)

    def tags(self) -> dict[str, Any]:
        """What a trace should carry, so that it can be laid beside the ledger."""
        tags: dict[str, Any] = {"run": self.run, "stage": self.stage, "decision": self.decision, "held": self.held}
        tags["reasons"] = [r.code for r in self.reasons]
        if self.hold:
            tags |= {"hold": self.hold, "until": self.until, "retry_after_s": self.retry_after_s}
        return tags


def call_tags(result: Any) -> dict[str, str]:
    """What a trace should carry of a call that was made, from a CallToolResult of the mcp package; {} where it says nothing."""
    meta = getattr(result, "meta", None)
    said = meta.get(CALL) if isinstance(meta, Mapping) else None
    if not isinstance(said, Mapping):
        return {}
    return {"run": _text(said, "run"), "stage": _text(said, "stage"), "decision": _text(said, "decision_id")}


def _text(of: Mapping[str, Any], name: str) -> str:
    value = of.get(name)
    return value if isinstance(value, str) else ""
