# SPDX-License-Identifier: Apache-2.0
"""Hooks for LangChain 1.x: a denial becomes a message for the model, with run and stage for whoever reads the trace.

    gateway = Gateway()
    client = MultiServerMCPClient({"remit": gateway.connection()}, tool_interceptors=[denials])
    agent = create_agent(model, await client.get_tools(), middleware=[RemitMiddleware(gateway)])
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from langchain.agents.middleware import AgentMiddleware
from langchain.messages import ToolMessage
from langchain.tools import ToolException
from langchain.tools.tool_node import ToolCallRequest

from remit.denial import Denial
from remit.gateway import Gateway


class Denied(ToolException):
    """A call that the gateway refused or holds."""

    def __init__(self, denial: Denial) -> None:
        super().__init__(denial.render())
        self.denial = denial


async def denials(request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
    """An interceptor of langchain-mcp-adapters: raises Denied, where the adapter would keep only the text."""
    result = await handler(request)
    denial = Denial.of_result(result)
    if denial is not None:
        raise Denied(denial)
    return result


class RemitMiddleware(AgentMiddleware):
    """Answers the model with what was missing when a tool's call is denied, and goes on.

    Each tool message carries ``additional_kwargs["remit"]``: the run, and of a denial the stage, the decision and the codes of
    the reasons. Other errors are left to other middleware.
    """

    def __init__(self, gateway: Gateway | None = None) -> None:
        super().__init__()
        self._run = gateway.run if gateway else ""

    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Any]) -> Any:
        try:
            return self._tagged(handler(request))
        except Exception as e:
            return self._answer(request, e)

    async def awrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Any]]) -> Any:
        try:
            return self._tagged(await handler(request))
        except Exception as e:
            return self._answer(request, e)

    def _tagged(self, message: Any) -> Any:
        if isinstance(message, ToolMessage) and self._run:
            message.additional_kwargs.setdefault("remit", {"run": self._run})
        return message

    def _answer(self, request: ToolCallRequest, error: Exception) -> ToolMessage:
        denial = Denial.of_error(error)
        if denial is None:
            raise error
        call = request.tool_call
        return ToolMessage(
            denial.render(), tool_call_id=call["id"], name=call["name"], status="error", additional_kwargs={"remit": denial.tags()}
        )
