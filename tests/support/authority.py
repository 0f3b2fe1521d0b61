"""Test certificates, made by `openssl`, for brokers, exchanges and clients on this machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

from programs import need

_NEW = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def openssl(*args: object) -> None:
    subprocess.run([need("openssl"), *map(str, args)], check=True, capture_output=True)


class Authority:
    """A certificate authority for tests, and a server certificate for 127.0.0.1 and 127.0.0.2 that it has issued."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir()
        self._folder = folder
        self.ca, self._ca_key = folder / "ca.pem", folder / "ca.key"
        openssl("req", "-x509", *_NEW, "-keyout", self._ca_key, "-out", self.ca, "-subj", f"/CN={name}", "-days", 2,
                "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip
        self.certificate, self.key = self.issue("server", "subjectAltName=IP:127.0.0.1,IP:127.0.0.2")

    def issue(self, name: str, extension: str = "extendedKeyUsage=clientAuth") -> tuple[Path, Path]:
        """Issues a certificate for `name`; returns its path and that of its key."""
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        request, extensions = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        extensions.write_text(f"{extension}\n")
        openssl("req", *_NEW, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        openssl("x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", self._ca_key, "-CAcreateserial",
                "-out", certificate, "-days", 2, "-extfile", extensions)  # fmt: skip
        return certificate, key
