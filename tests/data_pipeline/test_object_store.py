# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""Objects and data sets in a cloud, on a real S3 server: what comes back is what was put, whatever fails on the way.

Covers: data_pipeline/object_store.py, data_pipeline/cloud_settings.py, data_pipeline/transport.py
"""

import hashlib
import itertools
import os
import sys
from pathlib import Path

import pytest

from data_pipeline import DocumentIndex, FarSettings, SegmentStream, UserError, object_store, open_data
from data_pipeline.cloud_settings import CloudAddress, options_of
from data_pipeline.far import is_address
from data_pipeline.object_store import BeyondTheEnd, CloudError, Exists, NoObject, ObjectStore
from data_pipeline.verify import verify_dataset
from tests import clouds
from tests.clouds import FaultyProxy
from tests.data_pipeline.test_segment_stream import assert_same

pytest.importorskip("obstore")
SHAPE = {"num_lanes": 5, "segment_length": 64, "num_segments": 3, "seed": 2}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def store(folder: str, attempts: int = 2, timeout_seconds: float = 1.0) -> ObjectStore:
    return ObjectStore(f"s3://{clouds.BUCKET}/{folder}", attempts, timeout_seconds)


def test_what_is_put_is_what_comes_back(s3_proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "PART_BYTES", 5 << 20)  # the least that S3 takes as a part
    objects, large = store("plain", timeout_seconds=10), os.urandom((11 << 20) + 7)
    (tmp_path / "large").write_bytes(large)
    (tmp_path / "empty").write_bytes(b"")
    objects.put_file("a/large", tmp_path / "large", sha256(large))
    objects.put_file("a/empty", tmp_path / "empty", sha256(b""))
    objects.put("small", b"content")
    assert s3_proxy.requests["POST large"] == 2 and s3_proxy.requests["PUT large"] == 3  # begun, three parts, completed
    assert objects.read("a/large") == large and objects.read("a/empty") == b"" and objects.read("small") == b"content"
    assert objects.sizes() == {"a/large": len(large), "a/empty": 0, "small": 7}
    assert objects.sizes("a") == {"a/large": len(large), "a/empty": 0} and objects.folders() == ["a"]
    assert objects.sha256("a/large") == sha256(large) and objects.sha256("none") is None
    assert objects.part("a/large", 3, 4) == (large[3:7], len(large))
    assert objects.part("small", 5, 100) == (b"nt", 7)
    with pytest.raises(Exists, match=r"s3://bucket/plain/small: exists already"):
        objects.put("small", b"another", new=True)
    objects.delete(["a/large", "a/empty", "never-there"])
    assert objects.sizes() == {"small": 7}
    with pytest.raises(NoObject, match=r"s3://bucket/plain/a/large: there is no such object"):
        objects.read("a/large")
    with pytest.raises(BeyondTheEnd):
        objects.part("small", 8, 1)


@pytest.mark.parametrize("size", [100, (5 << 20) + 1], ids=["small", "large"])
def test_a_file_that_changed_is_not_put(
    s3_proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(object_store, "PART_BYTES", 5 << 20)
    (tmp_path / "file").write_bytes(bytes(size))
    with pytest.raises(CloudError, match=r"file is not what it was \(SHA-256 differs\)"):
        store("changed", timeout_seconds=10).put_file("file", tmp_path / "file", sha256(b"what it was"))
    assert store("changed").sizes() == {}


FAULTS = {
    "busy": (
        clouds.refusing(503, "SlowDown"),
        r"could not be read in 2 attempts: status 503 SlowDown: look at the net",
    ),
    "cut": (clouds.cut_body, r"could not be read in 2 attempts: the answer was cut off: look"),
    "short": (clouds.short_body, r"could not be read in 2 attempts: the answer was cut off: look"),
    "stalled": (clouds.stalled_body, r"could not be read in 2 attempts: no answer within the time limit: look"),
    "gone": (clouds.cut_connection, r"could not be read in 2 attempts: the connection broke off: look"),
    "expired": (
        clouds.refusing(403, "ExpiredToken"),
        r"the credentials have expired \(status 403 ExpiredToken\): renew",
    ),
    "denied": (
        clouds.refusing(403, "AccessDenied"),
        r"access is denied \(status 403 AccessDenied\): look at AWS_ACCESS",
    ),
    "region": (clouds.refusing(301, "PermanentRedirect"), r"the bucket is in another region: set AWS_REGION to its"),
    "skewed": (clouds.refusing(400, "RequestTimeTooSkewed"), r"this machine's clock is wrong: synchronise it"),
}
LASTING = ("expired", "denied", "region", "skewed")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_that_names_the_mend(s3_proxy: FaultyProxy, fault: str) -> None:
    objects, (answer, words) = store(f"faults-{fault}", timeout_seconds=0.5), FAULTS[fault]
    objects.put("object", bytes(100_000))
    s3_proxy.faults = [("GET /bucket/faults", answer)]
    if fault not in (*LASTING, "short"):  # the library does not see that it is short
        assert objects.read("object") == bytes(100_000), "one that passes is tried again"
    s3_proxy.always, s3_proxy.faults = [("/bucket/faults", answer)], []
    with pytest.raises(CloudError, match=rf"^s3://bucket/faults-{fault}/object:? {words}") as caught:
        objects.read("object")
    assert caught.value.passing == (fault not in LASTING) and caught.value.exit_code == 1
    assert "\n" not in str(caught.value) and clouds.SECRET not in str(caught.value)
    if fault not in ("cut", "short", "stalled"):  # of bodies, which this answer has none of
        with pytest.raises(CloudError, match=words.replace("read", "(written|read)")):
            objects.put("object", b"another")


def test_what_cannot_be_reached_is_told(s3_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        CloudError, match=r"^s3://no-bucket/run: there is no bucket no-bucket: make it, or mend the address"
    ):
        ObjectStore("s3://no-bucket/run", 1, 1).read("object")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    with pytest.raises(
        CloudError, match=r"access is denied \(status 403 SignatureDoesNotMatch\): look at AWS_ACCESS"
    ) as caught:
        store("keys").read("object")
    assert "not-the-secret" not in str(caught.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(
        CloudError, match=r"could not be read in 2 attempts: the connection was refused: look at the net"
    ):
        store("refused").read("object")


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        (
            "s3://name:secret@bucket/set",
            r"s3://\*\*\*@bucket/set: has a name or password in it, .* set AWS_ACCESS_KEY_ID",
        ),
        ("s3:///set", r"names no bucket: give s3://BUCKET/PATH"),
        ("gs://bucket/a/../b", r"gs://bucket/a/\.\./b: its path cannot be used"),
        ("az://container/a//b", r"its path cannot be used"),
        ("s3://bucket/set?versionId=1", r"s3://bucket/set\?\*\*\*: its path cannot be used"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_at_a_glance(address: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        is_address(address)


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_the_parts_of_an_address(scheme: str) -> None:
    address = CloudAddress.parse(f"{scheme}://bucket/a/b/")
    assert (address.scheme, address.bucket, address.prefix) == (scheme, "bucket", "a/b")
    assert is_address(f"{scheme}://bucket") and str(address) == f"{scheme}://bucket/a/b"


def test_http_is_for_this_machine_or_by_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    clouds.use("http://minio.cluster:9000", monkeypatch)
    address = CloudAddress.parse("s3://bucket/run")
    with pytest.raises(
        UserError, match=r"AWS_ENDPOINT_URL is http://minio\.cluster:9000, which others .* AWS_ALLOW_HTTP"
    ):
        options_of(address)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    assert options_of(address)[1] == {"allow_http": True}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "")
    with pytest.raises(UserError, match=r"^AWS_ENDPOINT_URL is set, and empty: unset it, or give https://HOST$"):
        ObjectStore("s3://bucket")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://name:password@host")
    with pytest.raises(UserError, match=r"AWS_ENDPOINT_URL is https://\*\*\*@host: give https://HOST"):
        options_of(address)


def test_an_environment_that_does_not_say_enough_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in os.environ if each.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    with pytest.raises(
        CloudError, match=r"^az://box/run: the environment does not say .*: look at AZURE_STORAGE_ACCOUNT_N"
    ):
        ObjectStore("az://box/run")


def test_keys_of_a_profile_are_used_where_the_environment_has_none(
    s3_proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.delenv(name)
    keys, settings = tmp_path / "credentials", tmp_path / "config"
    keys.write_text(
        "[default]\naws_access_key_id = other\naws_secret_access_key = other\n"
        f"[lab]\naws_access_key_id = {clouds.KEY}\naws_secret_access_key = {clouds.SECRET}\n"
    )
    settings.write_text("[profile lab]\nregion = eu-central-1\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(keys))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(settings))
    with pytest.raises(CloudError, match="access is denied"):
        store("profile").put("object", b"content")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    store("profile").put("object", b"content")
    assert options_of(CloudAddress.parse("s3://bucket"))[0]["region"] == "eu-central-1"


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(
        UserError, match=r"s3://bucket/set: needs the package obstore: pip install 'memformer-train\[far\]'"
    ):
        open_data("s3://bucket/set")


@pytest.fixture
def far_set(dataset: Path, s3_proxy: FaultyProxy) -> str:
    """The data set in the bucket."""
    objects = store("set", timeout_seconds=10)
    if not objects.sizes():
        for path in dataset.rglob("*"):
            if path.is_file():
                objects.put(path.relative_to(dataset).as_posix(), path.read_bytes())
    return f"s3://{clouds.BUCKET}/set"


@pytest.mark.parametrize("mode", ["spool", "range"])
def test_far_batches_are_the_near_ones_whatever_fails(
    dataset: Path, far_set: str, s3_proxy: FaultyProxy, tmp_path: Path, mode: str
) -> None:
    faults = [clouds.refusing(503, "SlowDown"), clouds.cut_body, clouds.cut_connection, clouds.flipped_bit]
    s3_proxy.faults = [("GET /bucket/set/manifest.json", faults[0])]
    s3_proxy.faults += [("GET /bucket/set/shard-000001.tar", fault) for fault in faults]
    far = open_data(far_set, FarSettings(cache_dir=tmp_path, mode=mode, timeout_seconds=2, attempts=6))  # type: ignore[arg-type]
    assert far.fingerprint == DocumentIndex.load(dataset).fingerprint
    with SegmentStream(dataset, **SHAPE, epochs=1) as near, SegmentStream(far, **SHAPE, epochs=1) as stream:
        for expected, found in itertools.zip_longest(near, stream):
            assert_same(expected, found)
    assert not s3_proxy.faults, "every fault was met"


def test_a_far_set_is_verified_and_what_is_wrong_is_named(far_set: str, s3_proxy: FaultyProxy, tmp_path: Path) -> None:
    far = FarSettings(cache_dir=tmp_path, attempts=2, timeout_seconds=1)
    index = open_data(far_set, far)
    assert isinstance(index, DocumentIndex) and verify_dataset(index) == []
    with pytest.raises(UserError, match=r"no data set at s3://bucket/none: it has no manifest\.json"):
        open_data(f"s3://{clouds.BUCKET}/none", far)
    s3_proxy.always = [("shard-000001.tar", clouds.refusing(503, "SlowDown"))]
    with pytest.raises(UserError, match=r"shard-000001\.tar could not be read in 2 attempts \(status 503 SlowDown\)"):
        verify_dataset(index)
    s3_proxy.always = []
    store("set").delete(["shard-000001.tar"])
    assert [(fault.file, fault.problem) for fault in verify_dataset(index)] == [
        ("shard-000001.tar", "cannot be read (No such file or directory)")
    ]
