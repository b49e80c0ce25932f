# SPDX-License-Identifier: Apache-2.0
# An agent of LangChain whose model follows a script. Prints its conversation, a message a line.
import asyncio
import json
import sys
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_mcp_adapters.client import MultiServerMCPClient

from remit import Command, Gateway, Workload
from remit.langchain import RemitMiddleware, denials


class Scripted(GenericFakeChatModel):
    def bind_tools(self, tools: Any, **kw: Any) -> "Scripted":
        return self


def call(n: int, name: str, customer: int) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": name, "args": {"customer": customer}, "id": f"call-{n}"}])


async def main() -> None:
    gateway = Gateway()
    source = {"workload": Workload, "command": Command}[sys.argv[1]](gateway.url)
    gateway = Gateway(source=source)
    client = MultiServerMCPClient({"remit": gateway.connection()}, tool_interceptors=[denials])
    tools = await client.get_tools()
    print(json.dumps({"tools": sorted(t.name for t in tools)}))
    script = [call(1, "crm__look", 7), call(2, "crm__look", 8), call(3, "crm__drop", 7), call(4, "crm__close", 7), AIMessage("done")]
    agent = create_agent(Scripted(messages=iter(script)), tools, middleware=[RemitMiddleware(gateway)])
    result = await agent.ainvoke({"messages": [("user", "what do you know of customer 7?")]})
    for m in result["messages"]:
        if isinstance(m, ToolMessage):
            text = m.content if isinstance(m.content, str) else " ".join(b.get("text", "") for b in m.content)
            print(json.dumps({"tool": m.name, "status": m.status, "text": text, "remit": m.additional_kwargs.get("remit", {})}))


asyncio.run(main())
