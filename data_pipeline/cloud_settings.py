# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Addresses in clouds, and how a cloud is reached: by the variables that its own programs read.

The package obstore reads most of them by itself (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `AWS_REGION`,
`GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_ACCOUNT_NAME`, ...). What it leaves out is added here: the keys of
`~/.aws/credentials`, and plain HTTP to this machine itself, where nobody can listen.
"""

import configparser
import os
import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.addresses import shown
from data_pipeline.errors import UserError

CLOUDS = ("s3://", "gs://", "az://")
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (with AWS_SESSION_TOKEN, if they are temporary)",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS (a service account's file)",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (or a SAS token, AZURE_STORAGE_SAS_KEY)",
}
"""What gives a program access, by scheme."""

_OTHER_SOURCES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
_ALLOW_HTTP = {"s3": "AWS_ALLOW_HTTP", "gs": "GOOGLE_ALLOW_HTTP", "az": "AZURE_ALLOW_HTTP"}
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class CloudAddress:
    """A bucket, and what the names of objects in it begin with.

    Attributes:
        scheme: s3, gs or az.
        bucket: Its name; Azure calls it a container.
        prefix: Without slashes at its ends; may be empty.
    """

    scheme: str
    bucket: str
    prefix: str

    @classmethod
    def parse(cls, name: str) -> "CloudAddress":
        """The parts of an address.

        Raises:
            UserError: It is not one, or has something in it that does not belong there, such as a password.
        """
        scheme, _, rest = name.partition("://")
        bucket, _, prefix = rest.partition("/")
        if f"{scheme}://" not in CLOUDS:
            raise UserError(
                f"{shown(name)}: is no address of the kind {', '.join(f'{each}BUCKET/PATH' for each in CLOUDS)}"
            )
        if "@" in bucket:
            raise UserError(
                f"{shown(name)}: has a name or password in it, which would be kept in logs and configurations: leave "
                f"them out and set {CREDENTIALS[scheme]}"
            )
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", bucket):
            raise UserError(f"{shown(name)}: names no bucket: give {scheme}://BUCKET/PATH")
        prefix = prefix.strip("/")
        if "?" in prefix or "#" in prefix or any(part in ("", ".", "..") for part in prefix.split("/") if prefix):
            raise UserError(
                f"{shown(name)}: its path cannot be used: give {scheme}://{bucket}/ and names between slashes"
            )
        return cls(scheme, bucket, prefix)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")


def is_cloud(name: object) -> bool:
    """Whether a name is an address in a cloud, sound or not."""
    return isinstance(name, str) and name.startswith(CLOUDS)


def options_of(address: CloudAddress) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of the library for a bucket, and for its connections, beside those it takes from the environment.

    Raises:
        UserError: The environment names an endpoint that cannot be used.
    """
    settings = _shared_keys() if address.scheme == "s3" else {}
    for each in _ENDPOINTS[address.scheme]:
        if os.environ.get(each) == "":  # the library would take it, and panic
            raise UserError(f"{each} is set, and empty: unset it, or give https://HOST")
    name = next((each for each in _ENDPOINTS[address.scheme] if os.environ.get(each)), None)
    if name is None:
        return settings, {}
    try:
        endpoint = urllib.parse.urlsplit(os.environ[name])
        host, sound = endpoint.hostname, endpoint.scheme in ("http", "https") and endpoint.username is None
    except ValueError:
        host, sound = None, False
    if host is None or not sound:
        raise UserError(f"{name} is {shown(os.environ[name])}: give https://HOST or https://HOST:PORT")
    allowed = os.environ.get(_ALLOW_HTTP[address.scheme], "").lower() in ("true", "1", "yes")
    if endpoint.scheme == "http" and host not in _LOOPBACK and not allowed:
        raise UserError(
            f"{name} is {shown(os.environ[name])}, which others on the way can read: give https://, or set "
            f"{_ALLOW_HTTP[address.scheme]} to true in a network that you trust"
        )
    return settings, {"allow_http": True} if endpoint.scheme == "http" else {}


def _shared_keys() -> dict[str, Any]:
    """The keys and the region of a profile in ~/.aws, where the environment has none; other programs read them, too."""
    found: dict[str, Any] = {}
    profile = os.environ.get("AWS_PROFILE") or "default"
    if not any(os.environ.get(each) for each in _OTHER_SOURCES):
        file = os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials"
        names = {"aws_access_key_id": "access_key_id", "aws_secret_access_key": "secret_access_key"}
        found = _section(file, profile, {**names, "aws_session_token": "session_token"})
    if not any(os.environ.get(each) for each in ("AWS_REGION", "AWS_DEFAULT_REGION")):
        section = profile if profile == "default" else f"profile {profile}"
        found |= _section(os.environ.get("AWS_CONFIG_FILE") or "~/.aws/config", section, {"region": "region"})
    return found


def _section(file: str, section: str, names: dict[str, str]) -> dict[str, str]:
    parser = configparser.RawConfigParser()
    try:
        parser.read(Path(file).expanduser(), encoding="utf-8")
    except (configparser.Error, UnicodeError):
        return {}
    return {ours: parser[section][theirs] for theirs, ours in names.items() if parser.has_option(section, theirs)}
