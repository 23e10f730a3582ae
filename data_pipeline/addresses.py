# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Addresses of data sets, in their parts: what is asked for, what people are shown, and which proxy is asked.

A query belongs to the address as a whole (a signature, a token of access) and is sent with every file of the data set.
It is as secret as a password: what people are shown has neither. A name and password in an address are refused, since
addresses are kept in configurations and logs; those of `~/.netrc` are used, as other programs do.
"""

import base64
import netrc
import os
import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError

_PATH_CHARACTERS = "/%!$&'()*+,;=:@~-._"
_QUERY_CHARACTERS = _PATH_CHARACTERS + "?[]"
_PORTS = {"http": 80, "https": 443}
_PIPE = re.compile(r"^(--[^=\s]+=)?pipe:.*", re.DOTALL)  # a setting's value, or a word of a command that sets it
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)([^\s'\"]*)")


@dataclass(frozen=True)
class Address:
    """An `http://` or `https://` address, ready to be asked for.

    Attributes:
        scheme: http or https.
        host: In ASCII, an IPv6 number without its brackets.
        port: Of the server.
        path: Quoted, without a slash at its end.
        query: Quoted, without its question mark; empty if there is none.
    """

    scheme: str
    host: str
    port: int
    path: str
    query: str

    @classmethod
    def parse(cls, address: str) -> "Address":
        """The parts of an address.

        Raises:
            UserError: It is not one, or has a name and password in it.
        """
        try:
            parts = urllib.parse.urlsplit(address)
            if parts.scheme not in _PORTS or not parts.hostname:
                raise UserError(f"{shown(address)}: is no address of the kind http://HOST/PATH or https://HOST/PATH")
            if parts.username is not None or parts.password is not None:
                raise UserError(
                    f"{shown(address)}: has a name or password in it, which would be kept in logs and configurations; "
                    "leave them out and write them into ~/.netrc (machine, login, password)"
                )
            host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode("ascii")
            port = parts.port or _PORTS[parts.scheme]
        except ValueError:  # a port that is no number, a bracket that is not closed; what it says may have a password
            raise UserError(f"{shown(address)}: its host or port cannot be read; give http://HOST:PORT/PATH") from None
        path, query = _quoted(parts.path, _PATH_CHARACTERS), _quoted(parts.query, _QUERY_CHARACTERS)
        return cls(parts.scheme, host, port, path.rstrip("/"), query)

    @property
    def server(self) -> str:
        """Host and port, as in an address."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def target(self) -> str:
        """Path and query, as a server is asked."""
        return (self.path or "/") + (f"?{self.query}" if self.query else "")

    @property
    def url(self) -> str:
        """The whole, query included: not to be shown."""
        return f"{self.scheme}://{self.server}{self.target}"

    def of(self, name: str) -> "Address":
        """The address of a file beneath this one; `name` is its plain name, with folders."""
        path = f"{self.path}/{urllib.parse.quote(name)}"
        return Address(self.scheme, self.host, self.port, path, self.query)


@dataclass(frozen=True)
class Proxy:
    """A proxy that is asked for addresses: its place, and what it is told of who asks."""

    host: str
    port: int
    headers: dict[str, str]


def beneath(name: str | Path, part: str) -> str:
    """A directory or an address, and a folder in it: `beneath("http://host/set?key=1", "train")`."""
    text = str(name)
    if text.startswith("pipe:"):
        return text.replace("{}", f"{part}/{{}}") if "{}" in text else f"{text}/{part}"
    if "://" not in text:
        return str(Path(name, part))
    path, mark, query = text.partition("?")
    return f"{path.partition('#')[0].rstrip('/')}/{part}{mark}{query}"


def shown(name: str | Path) -> str:
    """A name of a data set as people may see it: names, passwords and queries in addresses are left out."""
    return _URL.sub(lambda match: match[1] + _without_secrets(match[2]), str(name))


def told(value: Any) -> Any:
    """Settings as services and logs may keep them: as `shown`, keys too, and without the commands of `pipe:`."""
    if isinstance(value, dict):
        return {str(told(key)): told(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [told(each) for each in value]
    return _PIPE.sub(r"\1pipe:...", shown(value)) if isinstance(value, str) else value


def location(name: str) -> str:
    """What names an address in messages, with names of files to follow: it has no query and no slash at its end."""
    return shown(name) if name.startswith("pipe:") else shown(name).partition("?***")[0].rstrip("/")


def proxy_for(address: Address) -> Proxy | None:
    """The proxy that the environment names for an address (`http_proxy`, `https_proxy`, `all_proxy`, `no_proxy`).

    Raises:
        UserError: It is of a kind that is not supported.
    """
    import urllib.request  # an HTTP client of its own, for what it knows of proxies; near data needs none of it

    proxies = urllib.request.getproxies()
    name = address.scheme if address.scheme in proxies else "all"
    if not proxies.get(name) or urllib.request.proxy_bypass(address.server):
        return None
    given = proxies[name] if "://" in proxies[name] else f"http://{proxies[name]}"
    try:
        parts = urllib.parse.urlsplit(given)
        host, port = parts.hostname, parts.port or 80
    except ValueError:
        host, port = None, 0
    if not host or parts.scheme != "http":
        raise UserError(
            f"{name}_proxy is {shown(given)}: only proxies http://HOST:PORT can be asked; name one, or the server "
            f"{address.host} in no_proxy"
        )
    if parts.username is None:
        return Proxy(host, port, {})
    user, password = urllib.parse.unquote(parts.username), urllib.parse.unquote(parts.password or "")
    return Proxy(host, port, {"Proxy-Authorization": _basic(user, password)})


def credentials(address: Address) -> dict[str, str]:
    """The header with the name and password that `~/.netrc` (or `$NETRC`) has for a server; nothing without them."""
    file = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        found = netrc.netrc(str(file)).authenticators(address.host)
    except (OSError, netrc.NetrcParseError, UnicodeError):
        return {}
    return {"Authorization": _basic(found[0] or found[1] or "", found[2] or "")} if found else {}


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii")


def _quoted(text: str, kept: str) -> str:
    """Quoted for HTTP; what is quoted already stays."""
    return urllib.parse.quote(re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", text), safe=kept)


def _without_secrets(rest: str) -> str:
    authority, tail = re.split(r"(?=[/?#])", rest, maxsplit=1) if re.search(r"[/?#]", rest) else (rest, "")
    if "@" in authority:
        authority = "***@" + authority.rpartition("@")[2]
    elif "@" in tail and not re.fullmatch(r"\[[^]]*\](:\d*)?|[^:]*(:\d*)?", authority):
        authority, tail = "***", "@" + tail.rpartition("@")[2]  # a password with a slash in it
    path, mark, _ = tail.partition("?")
    return authority + path + ("?***" if mark else "")
