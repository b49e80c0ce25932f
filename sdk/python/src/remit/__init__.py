# SPDX-License-Identifier: Apache-2.0
"""Remit for agents in Python: tokens, an httpx.Auth, and hooks that say what was missing when a call is denied.

What is here runs inside the agent, so it enforces nothing: the gateway decides. See ``remit.langchain`` and ``remit.crewai``.
"""

from remit.denial import Denial, Reason
from remit.gateway import Auth, Gateway
from remit.token import Command, RemitError, Token, Tokens, Workload

__all__ = ["Auth", "Command", "Denial", "Gateway", "Reason", "RemitError", "Token", "Tokens", "Workload"]
