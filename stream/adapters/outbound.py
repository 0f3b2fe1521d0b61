"""Outbound connections: the proxy that the environment names, and the authorities that verify certificates.

Rules of this module:
- The rules are the same for `https://`, `wss://` and, without a proxy, `mqtts://`. The libraries are given the result
  and read none of these variables: each has its own rules for them, and raises exceptions that no caller expects.
- A setting that cannot work raises `RefusedError` before anything is sent. Whether a proxy answers shows only in use.
- Loopback never goes through a proxy; its certificates are verified like all others.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from dataclasses import dataclass
from pathlib import Path

import httpx

from stream import urls
from stream.errors import RefusedError

#: The first variable that is set counts. Each is also read in lower case, which takes precedence.
_PROXY_VARIABLES = {
    "https": ("HTTPS_PROXY", "ALL_PROXY"),
    "http": ("HTTP_PROXY", "ALL_PROXY"),
    "wss": ("WSS_PROXY", "HTTPS_PROXY", "ALL_PROXY"),
    "ws": ("WS_PROXY", "HTTP_PROXY", "ALL_PROXY"),
}
_PROXY_PORTS = {"http": 80, "https": 443}
_ENCRYPTED = ("https", "wss")
#: OpenSSL looks authorities up in a directory by the hash of their names.
_HASHED = re.compile(r"[0-9a-f]{8}\.\d+")


@dataclass(frozen=True, slots=True)
class Way:
    """How one URL is reached."""

    #: `http[s]://[user:password@]host:port`.
    proxy: str | None
    #: None where the URL is not encrypted.
    tls: ssl.SSLContext | None
    #: Verifies a proxy that is itself reached by https; None for any other.
    proxy_tls: ssl.SSLContext | None


def way_to(url: str) -> Way:
    """Returns how the environment wants `url` to be reached. Reads certificate files.

    Raises `RefusedError` where the URL or a variable cannot be used; for a variable it names the cure.
    """
    try:
        address = urls.parse(url)
    except ValueError as error:
        raise RefusedError(f"{urls.mask(url)} will not do: {error}") from None
    proxy = proxy_for(address)
    encrypted = address.scheme in _ENCRYPTED
    to_proxy = proxy is not None and proxy.startswith("https:")
    # Without TLS there is nothing to verify, and loading the authorities takes a tenth of a second.
    tls = authorities() if encrypted or to_proxy else None
    return Way(proxy, tls if encrypted else None, tls if to_proxy else None)


def proxy_for(address: urls.Address) -> str | None:
    """Returns the proxy for that address, or None. Raises `RefusedError` where a variable names no usable proxy."""
    if urls.is_loopback(address.host) or _is_excepted(address):
        return None
    for name in _PROXY_VARIABLES.get(address.scheme, ()):
        for variable in (name.lower(), name):
            if value := os.environ.get(variable, "").strip():
                return _proxy(variable, value)
    return None


def _proxy(variable: str, value: str) -> str:
    cure = "name one as http://[user:password@]host:port, or list the hosts that need none in NO_PROXY"
    try:
        proxy = urls.parse(value if "://" in value else f"http://{value}")
    except ValueError as error:
        raise RefusedError(f"{variable}: {urls.mask(value)} is no proxy: {error}; {cure}") from None
    if proxy.scheme not in _PROXY_PORTS:
        kind = "SOCKS proxies" if proxy.scheme.startswith("socks") else "proxies of that kind"
        raise RefusedError(f"{variable}: {urls.mask(value)}: {kind} cannot be used: {cure}")
    if proxy.path:
        raise RefusedError(f"{variable}: {urls.mask(value)} is no proxy: nothing goes after its port; {cure}")
    named = proxy.username is not None or proxy.password is not None
    return str(
        urls.Address(
            proxy.scheme,
            proxy.host,
            proxy.port or _PROXY_PORTS[proxy.scheme],
            (proxy.username or "") if named else None,
            (proxy.password or "") if named else None,
        )
    )


def _is_excepted(address: urls.Address) -> bool:
    """Returns whether NO_PROXY lists the host: by a name, which includes subdomains, an address, a network, or `*`."""
    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    return any(_lists(entry, address) for entry in re.split(r"[,\s]+", listed) if entry)


def _lists(entry: str, address: urls.Address) -> bool:
    if entry == "*":
        return True
    name, port = entry.rpartition("://")[2].rstrip("/"), ""
    if with_port := re.fullmatch(r"(\[.*\]|[^:]*):(\d+)", name):
        name, port = with_port.groups()
    if port and int(port) != (address.port or {"http": 80, "ws": 80}.get(address.scheme, 443)):
        return False
    name = name.strip("[]").lower()
    try:
        return ipaddress.ip_address(address.host) in ipaddress.ip_network(name, strict=False)
    except ValueError:
        # At least one of them is not an address: compare them as names.
        pass
    domain = name.lstrip("*").strip(".")
    host = address.host.lower().rstrip(".")
    return bool(domain) and (host == domain or host.endswith(f".{domain}"))


def authorities(file: Path | None = None, option: str = "") -> ssl.SSLContext:
    """Returns the TLS context that verifies certificates.

    Its authorities are those in `file`, which the user gave with `option`; else those that SSL_CERT_FILE and
    SSL_CERT_DIR name; else the system's. Raises `RefusedError` where no authority can be read.
    """
    if file is not None:
        return _context(option, file=str(file))
    named = os.environ.get("SSL_CERT_FILE", "").strip()
    folders = os.environ.get("SSL_CERT_DIR", "").strip()
    if named:
        return _context("SSL_CERT_FILE", file=named, folders=folders)
    if folders:
        if not any(_HASHED.fullmatch(entry) for folder in folders.split(os.pathsep) for entry in _entries(folder)):
            raise RefusedError(
                f"SSL_CERT_DIR {folders}: no certificates can be found there: name a directory that `openssl rehash` "
                "has gone over, or unset it"
            )
        return _context("SSL_CERT_DIR", folders=folders)
    system = ssl.get_default_verify_paths()
    found = Path(system.openssl_cafile).is_file() or _entries(system.openssl_capath)
    if not found:
        # The machine has no authorities of its own: httpx ships Mozilla's.
        return httpx.create_ssl_context(trust_env=False)
    return _context("", *_existing(system.openssl_cafile, system.openssl_capath))


def _existing(file: str, folder: str) -> tuple[str, str]:
    return file if Path(file).is_file() else "", folder if Path(folder).is_dir() else ""


def _entries(folder: str) -> list[str]:
    try:
        return [entry.name for entry in Path(folder).iterdir()]
    except OSError:
        return []


def _context(source: str, file: str = "", folders: str = "") -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=file or None, capath=folders or None)
        # Some systems leave the minimum to a configuration file, which may allow older versions.
        context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)
        return context
    except OSError as error:
        key_log = os.environ.get("SSLKEYLOGFILE", "")
        if key_log and error.filename == key_log:
            raise RefusedError(f"SSLKEYLOGFILE {key_log}: cannot be written: {error.strerror}; unset it") from None
        cause = error.strerror if error.errno and not isinstance(error, ssl.SSLError) else "it holds none"
        raise RefusedError(
            f"{source} {file}: no certificates in PEM can be read there ({cause}): name a file of certificates in "
            "PEM, or unset it"
        ) from None
