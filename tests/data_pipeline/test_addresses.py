# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Addresses as people have them: signed, with blanks and accents, behind a proxy; what is secret is never shown.

Covers: data_pipeline/addresses.py, data_pipeline/far.py, data_pipeline/opening.py, memformer/config/addresses.py
"""

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_pipeline import DocumentIndex, FarSettings, SegmentStream, UserError, open_data
from data_pipeline.addresses import Address, beneath, location, proxy_for, shown, told
from data_pipeline.far import RemoteMode, is_address
from data_pipeline.opening import holds_data
from data_pipeline.verify import check_sizes, verify_dataset
from memformer.config.schema import load_config
from tests.data_pipeline.faulty_server import FaultyServer, serving

SECRET = "s3cr3t"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the proxies nor the passwords of whoever runs the tests."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def served(dataset: Path, tmp_path: Path) -> Iterator[FaultyServer]:
    shutil.copytree(dataset, tmp_path / "served" / "set")
    with serving(tmp_path / "served") as server:
        yield server


def settings(tmp_path: Path, mode: RemoteMode = "spool", **others: Any) -> FarSettings:
    return FarSettings(cache_dir=tmp_path / "cache", mode=mode, timeout_seconds=2, attempts=2, **others)


def tokens_of(address: str, far: FarSettings) -> int:
    index = open_data(address, far)
    with SegmentStream(index, num_lanes=3, segment_length=64, num_segments=2, epochs=1) as stream:
        return sum(batch.valid_tokens for batch in stream)


@pytest.mark.parametrize(
    ("address", "server", "target"),
    [
        ("http://host", "host", "/"),
        ("http://host:8080/set/", "host:8080", "/set"),
        ("https://host:443/a b/é%20c%", "host", "/a%20b/%C3%A9%20c%25"),
        ("http://[::1]:8080/set", "[::1]:8080", "/set"),
        ("http://bücher.example/set#part", "xn--bcher-kva.example", "/set"),
        ("http://host/set?sig=a%2Fb+c==&name=é", "host", "/set?sig=a%2Fb+c==&name=%C3%A9"),
    ],
)
def test_addresses_are_parsed(address: str, server: str, target: str) -> None:
    parsed = Address.parse(address)
    assert (parsed.server, parsed.target) == (server, target)
    assert is_address(address)


@pytest.mark.parametrize(
    "address", ["http://", "http:///set", "http://host:port/set", "http://[::1/set", f"http://host:{SECRET}/set"]
)
def test_what_is_no_address_is_one_line(address: str) -> None:
    with pytest.raises(UserError, match=r"is no address|host or port cannot be read"):
        is_address(address)


@pytest.mark.parametrize(
    ("name", "beside", "seen", "place"),
    [
        ("data/set", "data/set/train", "data/set", "data/set"),
        ("http://host/set/", "http://host/set/train", "http://host/set/", "http://host/set"),
        ("http://host/set?sig=1", "http://host/set/train?sig=1", "http://host/set?***", "http://host/set"),
        ("s3://bucket/set", "s3://bucket/set/train", "s3://bucket/set", "s3://bucket/set"),
        ("pipe:cat set/{}", "pipe:cat set/train/{}", "pipe:cat set/{}", "pipe:cat set/{}"),
        (
            "pipe:curl -s 'http://me:pw@host/{}?sig=1' -o -",
            "pipe:curl -s 'http://me:pw@host/train/{}?sig=1' -o -",
            "pipe:curl -s 'http://***@host/{}?***' -o -",
            "pipe:curl -s 'http://***@host/{}?***' -o -",
        ),
        ("http://me:pw@host/set", "http://me:pw@host/set/train", "http://***@host/set", "http://***@host/set"),
        ("ftp://me:p/w@host/set", "ftp://me:p/w@host/set/train", "ftp://***@host/set", "ftp://***@host/set"),
        ("http://host:80/a@b/set", "http://host:80/a@b/set/train", "http://host:80/a@b/set", "http://host:80/a@b/set"),
    ],
)
def test_a_part_of_an_address_and_what_people_see_of_it(name: str, beside: str, seen: str, place: str) -> None:
    assert (beneath(name, "train"), shown(name), location(name)) == (beside, seen, place)


def test_what_services_and_logs_are_told_of_settings() -> None:
    path = {"https://host/set?sig=1": 2, "pipe:curl -u me:pw host": 1}
    given = {"data": {"path": path, "num_segments": {0: 4}}, "lists": ("--data.path=pipe:cat x", "a pipe:b"), "seed": 1}
    path_told = {"https://host/set?***": 2, "pipe:...": 1}
    assert told(given) == {
        "data": {"path": path_told, "num_segments": {"0": 4}},
        "lists": ["--data.path=pipe:...", "a pipe:b"],
        "seed": 1,
    }


@pytest.mark.parametrize("mode", ["spool", "range"])
def test_a_signature_is_sent_with_every_file_and_shown_nowhere(
    served: FaultyServer, dataset: Path, tmp_path: Path, mode: RemoteMode
) -> None:
    served.query = f"X-Amz-Signature={SECRET}"
    address = f"{served.address}/set?{served.query}"
    far = settings(tmp_path, mode)
    index = open_data(address, far)
    assert isinstance(index, DocumentIndex) and SECRET not in index.location + index.shard_location(0)
    assert tokens_of(address, far) == DocumentIndex.load(dataset).num_tokens
    assert verify_dataset(index) == [] and check_sizes(index) == []
    assert all(target.endswith(f"?{served.query}") for target, _ in served.asked)
    assert holds_data(address, far) and not holds_data(beneath(address, "train"), far)
    # A fresh signature is not another data set: what was copied is used.
    before = served.requests["set/documents.npz"]
    served.query = "X-Amz-Signature=fresh"
    renewed = open_data(f"{served.address}/set?{served.query}", far)
    assert renewed.path == index.path and served.requests["set/documents.npz"] == before
    with pytest.raises(UserError) as caught:
        open_data(address, far)
    assert "the server answers 403" in str(caught.value) and "may have expired" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_blanks_and_accents_are_quoted(served: FaultyServer, dataset: Path, tmp_path: Path) -> None:
    shutil.move(served.root / "set", served.root / "données d'été 100%")
    tokens = DocumentIndex.load(dataset).num_tokens
    for name in ("données d'été 100%", "donn%C3%A9es%20d'%C3%A9t%C3%A9%20100%25"):
        assert tokens_of(f"{served.address}/{name}", settings(tmp_path)) == tokens


def test_a_password_in_an_address_is_refused_and_not_shown(served: FaultyServer, tmp_path: Path) -> None:
    host = served.address.removeprefix("http://")
    for name in (f"http://me:{SECRET}@{host}/set", f"ftp://me:{SECRET}@{host}/set", f"http://me:{SECRET}/x@{host}/set"):
        for call in (is_address, lambda name: open_data(name, settings(tmp_path))):
            with pytest.raises(UserError) as caught:
                call(name)
            assert SECRET not in str(caught.value) and "***@" in str(caught.value)
    assert not served.asked


def test_a_configuration_with_a_password_is_refused_before_it_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"run_dir: {tmp_path / 'run'}\ndata: {{path: 'http://me:{SECRET}@host/set'}}\n")
    with pytest.raises(UserError, match=r"data: http://\*\*\*@host/set: has a name or password") as caught:
        load_config(file, [])
    assert SECRET not in str(caught.value)


def test_passwords_come_from_netrc(served: FaultyServer, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login me password {SECRET}\n")
    assert tokens_of(f"{served.address}/set", settings(tmp_path)) == DocumentIndex.load(dataset).num_tokens
    expected = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()
    assert {headers.get("Authorization") for _, headers in served.asked} == {expected}


@pytest.mark.parametrize("mode", ["spool", "range"])
def test_the_proxy_of_the_environment_is_asked(
    served: FaultyServer, dataset: Path, tmp_path: Path, mode: RemoteMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", served.address.replace("//", f"//me:{SECRET}@"))
    assert tokens_of("http://data.internal/set", settings(tmp_path, mode)) == DocumentIndex.load(dataset).num_tokens
    for target, headers in served.asked:
        assert target.startswith("http://data.internal/set/") and headers["Host"] == "data.internal"
        assert headers["Proxy-Authorization"] == "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()
    served.asked.clear()
    monkeypatch.setenv("no_proxy", "elsewhere,127.0.0.1")
    open_data(f"{served.address}/set", settings(tmp_path, mode))
    assert all(target.startswith("/set/") and "Proxy-Authorization" not in headers for target, headers in served.asked)


def test_https_goes_through_a_tunnel(served: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", served.address)
    with pytest.raises(UserError, match=r"data\.internal/set/manifest\.json .*\(.*502.*through the proxy 127\.0\.0\.1"):
        open_data("https://data.internal/set", settings(tmp_path))
    assert {target for target, _ in served.asked} == {"data.internal:443"}


def test_proxies_of_other_kinds_are_refused_without_their_password(monkeypatch: pytest.MonkeyPatch) -> None:
    address = Address.parse("https://data.internal/set")
    assert proxy_for(address) is None
    monkeypatch.setenv("https_proxy", "proxy.internal:3128")
    found = proxy_for(address)
    assert found is not None and (found.host, found.port, found.headers) == ("proxy.internal", 3128, {})
    for proxy in (f"socks5://me:{SECRET}@proxy.internal:1080", f"http://proxy.internal:{SECRET}"):
        monkeypatch.setenv("https_proxy", proxy)
        with pytest.raises(UserError, match="only proxies http://HOST:PORT can be asked") as caught:
            proxy_for(address)
        assert f"{SECRET}@" not in str(caught.value)


def test_a_redirection_is_followed_and_its_signature_not_shown(
    served: FaultyServer, dataset: Path, tmp_path: Path
) -> None:
    for path in (served.root / "set").iterdir():
        served.redirects[f"/get/{path.name}"] = f"../set/{path.name}"
    assert tokens_of(f"{served.address}/get", settings(tmp_path)) == DocumentIndex.load(dataset).num_tokens
    served.redirects["/get/manifest.json"] = f"{served.address}/set/manifest.json?sig={SECRET}"
    with pytest.raises(UserError, match=r"/get/manifest\.json: the server answers 403") as caught:
        open_data(f"{served.address}/get", settings(tmp_path))
    assert SECRET not in str(caught.value)


def test_sizes_are_compared_without_reading(served: FaultyServer, tmp_path: Path) -> None:
    near = DocumentIndex.load(served.root / "set")
    for ranges in (True, False):
        served.ranges = ranges
        index = open_data(f"{served.address}/set", settings(tmp_path))
        assert isinstance(index, DocumentIndex) and check_sizes(index) == check_sizes(near) == []
    shard = served.root / "set" / near.manifest.shards[1].name
    for content, problem in ((b"short", "has 5 bytes, not"), (b"", "has 0 bytes, not"), (None, "cannot be read")):
        shard.unlink()
        if content is not None:
            shard.write_bytes(content)
        for ranges in (True, False):
            served.ranges = ranges
            for faults in (check_sizes(index), check_sizes(near)):
                assert [fault.file for fault in faults] == [shard.name] and problem in faults[0].problem
        shard.touch()
