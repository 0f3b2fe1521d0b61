"""URLs as people write them: their parts, whether they leave this machine, and what may be shown of them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

#: What a host name is made of once it is encoded for the wire.
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_USER_INFO = re.compile(r"^(\s*[A-Za-z][A-Za-z0-9+.-]*://)?.*@", re.DOTALL)
_URL_WITHIN = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)\S*@")
_AFTER_PATH = re.compile(r"([?#]).*", re.DOTALL)
_ENCODE = (
    "user name and password must be percent-encoded, such as %23 for #, %2F for /, %3F for ?, %40 for @, %5B for [ "
    "and %25 for %"
)


@dataclass(frozen=True, slots=True)
class Address:
    """The parts of a URL, decoded; `path` is without the slash at its end."""

    scheme: str
    host: str
    port: int | None = None
    username: str | None = None
    password: str | None = None
    path: str = ""

    def __str__(self) -> str:
        """Returns the URL in its plain form: lower-case scheme, no slash at the end, encoded where it must be."""
        user = "" if self.username is None else quote(self.username, safe="")
        secret = "" if self.password is None else f":{quote(self.password, safe='')}"
        at = "@" if user or secret else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port is None else f":{self.port}"
        return f"{self.scheme}://{user}{secret}{at}{host}{port}{self.path}"


def mask(url: str) -> str:
    """Returns the URL without user name, password and query. Parses nothing: the secrets of an invalid URL are hidden
    too."""
    return _AFTER_PATH.sub(r"\1***", _USER_INFO.sub(r"\1***@", url))


def mask_within(text: str) -> str:
    """Returns the text with the user name and password of every URL in it masked, as far as the URL's end is clear."""
    return _URL_WITHIN.sub(r"\1***@", text)


def parse(url: str) -> Address:
    """Returns the parts of a URL. Raises `ValueError` with a reason that repeats nothing of the URL."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(_ENCODE if "@" in url else "it is no URL") from None
    beyond = parts.path + parts.query + parts.fragment
    if "@" in beyond or any(char in parts.netloc.rpartition("@")[0] for char in "[]"):
        raise ValueError(_ENCODE)
    if any(char.isspace() or not char.isprintable() for char in url):
        raise ValueError("white space and control characters cannot be in it")
    if parts.query or parts.fragment:
        raise ValueError("nothing goes after its path: leave out what begins with ? or #")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError("its port must be a number from 1 to 65535")
    try:
        username = None if parts.username is None else unquote(parts.username, errors="strict")
        password = None if parts.password is None else unquote(parts.password, errors="strict")
    except UnicodeDecodeError:
        raise ValueError(_ENCODE) from None
    return Address(parts.scheme, _host(parts.hostname), port, username, password, parts.path.rstrip("/"))


def _host(host: str | None) -> str:
    if not host:
        raise ValueError("it names no host")
    try:
        if ":" in host:
            return str(ipaddress.IPv6Address(host))
        if not _HOST.fullmatch(host.encode("idna").decode("ascii")):
            raise ValueError
    except ValueError:
        raise ValueError("its host is neither a name nor an address") from None
    return host


def is_loopback(host: str) -> bool:
    """Returns whether data sent to this host stays on this machine, as far as its name shows."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool(address.is_loopback or (mapped is not None and mapped.is_loopback))
