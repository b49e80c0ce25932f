# SPDX-License-Identifier: Apache-2.0
"""How any HTTP client of Python reaches the gateway: an address, an httpx.Auth and a way to know the server."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Generator
from typing import Any

import httpx

from remit.token import RUN_TOKEN, URL, Command, RemitError, Source, Tokens, Workload, run_id, run_token_file, server_context


class Auth(httpx.Auth):
    """Sends the access token, and another one once if the gateway no longer takes it."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        token = self._tokens.get()
        request.headers["Authorization"] = "Bearer " + token.value
        response = yield request
        if response.status_code == 401:
            self._tokens.drop(token)
            request.headers["Authorization"] = "Bearer " + self._tokens.get().value
            yield request


class Gateway:
    """The MCP gateway, for the run that this process is in.

    url is the server's https address; without it, and without a source, what ``remit exec`` set is used.
    """

    def __init__(self, url: str | None = None, source: Source | None = None) -> None:
        url = url or os.environ.get(URL, "")
        if not url:
            raise RemitError(f"the server's address is not known: set {URL}, or run this under remit exec")
        self.url = url.rstrip("/")
        if source is None:
            source = Workload(self.url) if importlib.util.find_spec("spiffe") else Command(self.url)
        self._tokens = Tokens(source)

    @property
    def auth(self) -> Auth:
        return Auth(self._tokens)

    @property
    def run(self) -> str:
        """The run's id, for traces; "" where this process holds no run token."""
        return run_id(run_token_file()) if os.environ.get(RUN_TOKEN) else ""

    def address(self, tool: str = "") -> str:
        """The address of every tool that the stage shows, or of one tool's server alone."""
        return self.url + "/mcp" + (f"/{tool}" if tool else "")

    def client(
        self, headers: dict[str, str] | None = None, timeout: httpx.Timeout | None = None, auth: httpx.Auth | None = None
    ) -> httpx.AsyncClient:
        """Makes the HTTP client of an MCP session; it has the shape of ``httpx_client_factory`` in the mcp package."""
        token = self._tokens.get()
        return httpx.AsyncClient(
            headers=headers,
            timeout=timeout or httpx.Timeout(30, read=300),
            auth=auth or self.auth,
            verify=server_context(token.server, token.bundle),
            follow_redirects=False,
        )

    def headers(self) -> dict[str, str]:
        """The header for clients that take fixed ones. It is good for some minutes: connect anew with another one."""
        return {"Authorization": "Bearer " + self._tokens.get().value}

    def connection(self, tool: str = "") -> dict[str, Any]:
        """A server's entry for MultiServerMCPClient of langchain-mcp-adapters."""
        return {"transport": "http", "url": self.address(tool), "auth": self.auth, "httpx_client_factory": self.client}

    def crewai(self, tool: str = "") -> dict[str, Any]:
        """The server's parameters for MCPServerAdapter of crewai-tools."""
        return {"transport": "streamable-http", "url": self.address(tool), "auth": self.auth, "httpx_client_factory": self.client}
