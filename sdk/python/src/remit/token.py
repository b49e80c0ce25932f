# SPDX-License-Identifier: Apache-2.0
"""Access tokens of the gateway: bound to one agent and one run, for at most five minutes.

Two sources, the same for what uses them. ``Workload`` asks with the identity of this very process, over the SPIFFE Workload API;
``Command`` lets the ``remit`` program ask, which needs ``inherit: true`` in the agent's file where the process was launched.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import ssl
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

URL, RUN_TOKEN = "REMIT_URL", "REMIT_RUN_TOKEN_FILE"
_MAX = 1 << 20  # bytes of an answer


class RemitError(Exception):
    """No token could be had; the text says why and what to do."""


@dataclass(frozen=True)
class Token:
    """An access token, and the trust domain whose server it may be shown to."""

    value: str = field(repr=False)
    ends: float  # time.monotonic()
    server: str  # the SPIFFE ID of the server
    bundle: str  # PEM of the trust domain's authorities


class Source(Protocol):
    def fetch(self) -> Token: ...


class Tokens:
    """Keeps the token of a source until shortly before it ends. Safe for use from several threads."""

    def __init__(self, source: Source, margin: float = 30.0) -> None:
        self._source, self._margin = source, margin
        self._lock = threading.Lock()
        self._token: Token | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Tokens:
        return self  # CrewAI's adapter copies the parameters that it is given; the copy shares the tokens

    def get(self) -> Token:
        with self._lock:
            if self._token is None or time.monotonic() > self._token.ends - self._margin:
                self._token = self._source.fetch()
            return self._token

    def drop(self, token: Token) -> None:
        """Forgets a token that the gateway refused."""
        with self._lock:
            if self._token is token:
                self._token = None


@dataclass(frozen=True)
class Command:
    """Asks through ``remit credential token``."""

    url: str
    program: str = "remit"

    def fetch(self) -> Token:
        call = [self.program, "credential", "token", "--resource", resource(self.url), "--url", self.url, "-o", "json"]
        try:
            done = subprocess.run(call, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as e:
            raise RemitError(f"{self.program} credential token: {type(e).__name__}") from None
        if done.returncode != 0:
            raise RemitError(done.stderr.strip()[:2000] or f"{self.program} exited {done.returncode}")
        answer = _answer(done.stdout)
        return _token(answer, str(answer.get("server", "")), str(answer.get("bundle", "")))


class Workload:
    """Asks with the SVID of this process. Needs the extra ``workload``."""

    def __init__(self, url: str, run_token: Callable[[], str] | None = None, socket: str | None = None) -> None:
        self._url, self._run_token, self._socket = url.rstrip("/"), run_token or run_token_file, socket

    def fetch(self) -> Token:
        from spiffe import WorkloadApiClient

        with WorkloadApiClient(self._socket) as api:
            context = api.fetch_x509_context()
        svid = context.default_svid
        domain = svid.spiffe_id.trust_domain
        bundle = context.x509_bundle_set.get_bundle_for_trust_domain(domain)
        if bundle is None:
            raise RemitError(f"the Workload API has no bundle of {domain.name}")
        pem = "".join(_pem(a) for a in bundle.x509_authorities)
        server = f"spiffe://{domain.name}/remit/server"
        form = {"grant_type": "client_credentials", "client_id": str(svid.spiffe_id), "resource": resource(self._url)}
        answer = self._post(_client_context(svid, server, pem), form)
        return _token(answer, server, pem)

    def _post(self, context: ssl.SSLContext, form: dict[str, str]) -> dict[str, Any]:
        at = urllib.parse.urlsplit(self._url)
        if at.scheme != "https" or not at.hostname:
            raise RemitError(f"{URL} must be an https address")
        head = {"Content-Type": "application/x-www-form-urlencoded", "Txn-Token": self._run_token()}
        c = http.client.HTTPSConnection(at.hostname, at.port or 443, timeout=30, context=context)
        try:
            c.request("POST", "/oauth2/token", urllib.parse.urlencode(form), head)
            res = c.getresponse()
            body = res.read(_MAX)
        except OSError as e:
            raise RemitError(f"the token endpoint cannot be used: {e}") from None
        finally:
            c.close()
        answer = _answer(body.decode("utf-8", "replace"))
        if res.status != 200:
            raise RemitError(f"{answer.get('error', res.status)}: {answer.get('error_description', '')}")
        return answer


def run_token_file() -> str:
    """Reads the run token that ``remit exec`` wrote: anew each time, since it is replaced."""
    name = os.environ.get(RUN_TOKEN, "")
    if not name:
        raise RemitError(f"no run token: set {RUN_TOKEN}, or run this under remit exec")
    with open(name, encoding="ascii") as f:
        return f.read(8192).strip()


def run_id(token: str) -> str:
    """The run that a run token names, unverified: for traces, not for decisions."""
    try:
        part = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        return claims["txn"] if isinstance(claims["txn"], str) else ""
    except (IndexError, KeyError, TypeError, ValueError):
        return ""


def resource(url: str) -> str:
    """The gateway's resource identifier (RFC 8707)."""
    return url.rstrip("/") + "/mcp"


def _answer(text: str) -> dict[str, Any]:
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise RemitError("the token endpoint's answer is not understood")
    return answer


def _token(answer: dict[str, Any], server: str, bundle: str) -> Token:
    value, seconds = answer.get("access_token"), answer.get("expires_in")
    if not isinstance(value, str) or not value or not isinstance(seconds, int) or not server or not bundle:
        raise RemitError("the token endpoint's answer is not understood")
    return Token(value, time.monotonic() + seconds, server, bundle)


def _pem(certificate: Any) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM).decode("ascii")


def server_context(server: str, bundle: str) -> ssl.SSLContext:
    """Trusts the server with this SPIFFE ID, certified by this bundle, and nobody else: names in DNS count for nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the SPIFFE ID is checked instead, once the chain is verified
    context.load_verify_locations(cadata=bundle)

    def check(of: Any) -> None:
        names = [v for k, v in (of.getpeercert() or {}).get("subjectAltName", ()) if k == "URI"]
        if names != [server]:
            raise ssl.SSLCertVerificationError(f"the server is not {server}")

    class Socket(ssl.SSLSocket):
        def do_handshake(self, *args: Any, **kw: Any) -> None:
            super().do_handshake(*args, **kw)
            check(self)

    class Object(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            check(self)

    context.sslsocket_class, context.sslobject_class = Socket, Object
    return context


def _client_context(svid: Any, server: str, bundle: str) -> ssl.SSLContext:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    context = server_context(server, bundle)
    key = svid.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    fd = os.memfd_create("svid", os.MFD_CLOEXEC)  # ssl reads keys from files only; this one is in no file system
    try:
        with os.fdopen(os.dup(fd), "wb") as f:
            f.write(key + "".join(_pem(c) for c in svid.cert_chain).encode("ascii"))
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    return context
