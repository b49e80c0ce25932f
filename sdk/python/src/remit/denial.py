# SPDX-License-Identifier: Apache-2.0
"""What the gateway says when it refuses a call, for a model and for a program."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

META = "remit.internal/denial"
"""The member of a result's ``_meta`` that holds a denial."""

CODE = -32001
"""The code of a JSON-RPC error that is a denial; its ``data`` holds what ``_meta`` holds in a result."""

_TEXT = re.compile(
    r"(?P<held>Held: a person has to agree first|Denied)(?:: (?P<reasons>.*?))?\. (?:To go on: (?P<next>.*?)\. )?"
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
    """A call that was refused, or is held until a person agrees."""

    reasons: tuple[Reason, ...]
    next: str = ""
    decision: str = ""
    run: str = ""
    stage: str = ""
    held: bool = False

    @classmethod
    def parse(cls, data: Any) -> Denial | None:
        """Reads the member of ``_meta``, or the ``data`` of an error. What is neither is None."""
        if not isinstance(data, Mapping) or not isinstance(data.get("reasons"), list):
            return None
        reasons = tuple(Reason(_text(r, "code"), _text(r, "of")) for r in data["reasons"] if isinstance(r, Mapping))
        texts = {k: _text(data, k) for k in ("next", "run", "stage")}
        return cls(reasons, decision=_text(data, "decision_id"), held=data.get("held") is True, **texts)

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
        parts = {k: m[k] or "" for k in ("next", "decision", "run", "stage")}
        return cls(reasons, held=m["held"] != "Denied", **parts)

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
        where = [f"{k} {v}" for k, v in (("run", self.run), ("stage", self.stage), ("decision", self.decision)) if v]
        if where:
            lines.append(f"[{', '.join(where)}]")
        return "\n".join(lines)

    def tags(self) -> dict[str, Any]:
        """What a trace should carry, so that it can be laid beside the ledger."""
        return {"run": self.run, "stage": self.stage, "decision": self.decision, "held": self.held, "reasons": [r.code for r in self.reasons]}


def _text(of: Mapping[str, Any], name: str) -> str:
    value = of.get(name)
    return value if isinstance(value, str) else ""
