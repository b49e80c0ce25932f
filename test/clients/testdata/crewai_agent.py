# SPDX-License-Identifier: Apache-2.0
# An agent of CrewAI whose model follows a script. Prints what the model is told, a message a line.
import json
import os
import sys
from typing import Any

os.environ.update(CREWAI_DISABLE_TELEMETRY="true", OTEL_SDK_DISABLED="true", CREWAI_TRACING_ENABLED="false", CREWAI_STORAGE_DIR=os.path.dirname(os.environ["REMIT_RUN_TOKEN_FILE"]))

from crewai import Agent, BaseLLM, Crew, Task  # noqa: E402
from crewai_tools import MCPServerAdapter  # noqa: E402

from remit import Command, Gateway, Workload  # noqa: E402
from remit.crewai import DenialHook  # noqa: E402


def act(name: str, customer: int) -> str:
    return f'Thought: I need it.\nAction: {name}\nAction Input: {{"customer": {customer}}}'


# CrewAI shows the model no name with two underscores in a row.
SCRIPT = [act("crm_look", 7), act("crm_look", 8), act("crm_drop", 7), act("crm_close", 7), "Thought: I now know.\nFinal Answer: done"]


class Scripted(BaseLLM):
    told: list[str] = []

    def call(self, messages: Any, *args: Any, **kw: Any) -> str:
        text = messages if isinstance(messages, str) else "\n".join(str(m["content"]) for m in messages)
        self.told.append(text[text.rindex("Observation:") :] if "Observation:" in text else text)
        return SCRIPT[len(self.told) - 1]

    def supports_function_calling(self) -> bool:
        return False


def main() -> None:
    gateway = Gateway(source={"workload": Workload, "command": Command}[sys.argv[1]](os.environ["REMIT_URL"]))
    llm = Scripted(model="scripted")
    with MCPServerAdapter(gateway.crewai()) as tools, DenialHook() as hook:
        print(json.dumps({"tools": sorted(t.name for t in tools)}))
        agent = Agent(role="support", goal="answer", backstory="-", tools=list(tools), llm=llm, allow_delegation=False, max_iter=6)
        task = Task(description="what do you know of customer 7?", expected_output="an answer", agent=agent)
        Crew(agents=[agent], tasks=[task]).kickoff()
    denials = iter(hook.denials)
    for text in llm.told[1:]:
        denied = "the call was not made" in text or "before this call is made" in text
        print(json.dumps({"status": "error" if denied else "success", "text": text, "remit": next(denials).tags() if denied else {}}))


main()
