# SPDX-License-Identifier: Apache-2.0
"""A hook for CrewAI: a denial reads as what was missing, and is kept with its run and stage.

    gateway = Gateway()
    with MCPServerAdapter(gateway.crewai()) as tools, DenialHook() as hook:
        Crew(agents=[Agent(..., tools=tools)], tasks=[...]).kickoff()
    hook.denials  # for the trace

CrewAI's adapters keep only the text of a result, so the hook reads the text.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from crewai.hooks import ToolCallHookContext, register_after_tool_call_hook, unregister_after_tool_call_hook

from remit.denial import Denial


class DenialHook:
    """Renders denials for the model while it is entered, and keeps them.

    told is called with each denial and with the call's context. CrewAI swallows exceptions of hooks: nothing here enforces anything.
    """

    def __init__(self, told: Callable[[Denial, ToolCallHookContext], Any] | None = None) -> None:
        self.denials: list[Denial] = []
        self._told = told

    def __call__(self, context: ToolCallHookContext) -> str | None:
        denial = Denial.of_text(context.tool_result or "")
        if denial is None:
            return None
        self.denials.append(denial)
        if self._told is not None:
            self._told(denial, context)
        return denial.render()

    def __enter__(self) -> DenialHook:
        register_after_tool_call_hook(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        unregister_after_tool_call_hook(self)
