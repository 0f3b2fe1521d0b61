"""Where the bulk archive is, for every command that fetches."""

from __future__ import annotations

from stream import urls
from stream.errors import MisuseError
from stream.settings import bare
from training.data import fetch as fetching


def of(given: str | None, rest_url: str, *, allow_plaintext: bool) -> str:
    """Returns the archive's URL. Raises `MisuseError` where the one that was given will not do."""
    url = bare(given) or None
    if url is None:
        # An exchange on this machine has its own market: the archive of another one would not match it.
        url = rest_url if urls.is_loopback(urls.parse(rest_url).host) else fetching.ARCHIVE_URL
    try:
        address = urls.parse(url)
    except ValueError as error:
        raise MisuseError(f"--archive-url: {urls.mask(url)} will not do: {error}") from None
    if address.scheme not in ("http", "https"):
        raise MisuseError(f"--archive-url: {urls.mask(url)} must be https://host")
    if address.scheme == "http" and not urls.is_loopback(address.host) and not allow_plaintext:
        raise MisuseError(f"--archive-url: {urls.mask(url)} is not encrypted: use https://, or say --allow-plaintext")
    return str(url)
