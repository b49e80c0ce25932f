# SPDX-License-Identifier: Apache-2.0
"""Hooks for LangChain 1.x: a denial becomes a message for the model, with run and stage for whoever reads the trace.

    gateway = Gateway()
    client = MultiServerMCPClient({"remit": gateway.connection()}, tool_interceptors=[denials])
    agent = create_agent(model, await client.get_tools(), middleware=[RemitMiddleware(gateway)])
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from langchain.agents.middleware import AgentMiddleware
from langchain.messages import ToolMessage
from langchain.tools import ToolException
from langchain.tools.tool_node import ToolCallRequest

from remit.denial import Denial, call_tags
from remit.gateway import Gateway


# Where the interceptor leaves, for the middleware around it, what a result said. The middleware sets it anew for each call, and both
# see one dict, in whatever task or copied context the call runs.
_said: ContextVar[dict[str, str]] = ContextVar("remit_said")


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
    _said.get({}).update(call_tags(result))
    return result


class RemitMiddleware(AgentMiddleware):
    """Answers the model with what was missing when a tool's call is denied, and goes on.

    Each tool message carries ``additional_kwargs["remit"]``: the run, its stage and the decision (without the interceptor, of a call
    that was made the run only), and of a denial the codes of the reasons and what is held until when. Other errors are left to other
    middleware.
    """

    def __init__(self, gateway: Gateway | None = None) -> None:
        super().__init__()
        self._run = gateway.run if gateway else ""

    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Any]) -> Any:
        said: dict[str, str] = {}
        before = _said.set(said)
        try:
            return self._tagged(handler(request), said)
        except Exception as e:
            return self._answer(request, e)
        finally:
            _said.reset(before)

    async def awrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Any]]) -> Any:
        said: dict[str, str] = {}
        before = _said.set(said)
        try:
            return self._tagged(await handler(request), said)
        except Exception as e:
            return self._answer(request, e)
        finally:
            _said.reset(before)

    def _tagged(self, message: Any, said: dict[str, str]) -> Any:
        tags = said or ({"run": self._run} if self._run else {})
        if isinstance(message, ToolMessage) and tags:
            message.additional_kwargs.setdefault("remit", dict(tags))
        return message

    def _answer(self, request: ToolCallRequest, error: Exception) -> ToolMessage:
        denial = Denial.of_error(error)
        if denial is None:
            raise error
        call = request.tool_call
        return ToolMessage(
            denial.render(), tool_call_id=call["id"], name=call["name"], status="error", additional_kwargs={"remit": denial.tags()}
        )
