"""Certificates by two independent judges, and the reason that a person is told for each that is refused."""

from __future__ import annotations

import datetime
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fedlora_priv.deploy import certificates
from fedlora_priv.deploy.certificates import (
    Authority,
    hosts_of,
    issue,
    new_authority,
    new_key,
    require_usable,
)
from fedlora_priv.errors import ConfigError, EnvironmentProblem

NOW = datetime.datetime(2026, 11, 22, 12, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
HOSTS = ["fl.example.org", "192.0.2.7", "::1", "localhost"]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return new_authority("wards", NOW)


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> x509.Certificate:
    return issue(authority, new_key().public_key(), HOSTS, NOW, days=90)


@pytest.mark.parametrize("host", HOSTS)
def test_a_certificate_is_for_each_of_its_hosts(
    authority: Authority, certificate: x509.Certificate, host: str
) -> None:
    assert require_usable(certificate, authority.certificate, host, NOW) == 90
    assert require_usable(certificate, authority.certificate, host.upper(), NOW + 89 * DAY) == 1
    assert sorted(hosts_of(certificate)) == sorted(HOSTS)


@pytest.mark.parametrize(
    ("host", "days", "reason"),
    [
        ("fl.example.org", -2, "set this machine's clock"),
        ("fl.example.org", 91, "expired 2027-02-20 12:00"),
        ("www.example.org", 0, "is for fl.example.org, localhost, 192.0.2.7, ::1, not for www.example.org"),
        ("192.0.2.8", 0, "not for 192.0.2.8"),
    ],
)
def test_time_and_host_are_told_apart(
    authority: Authority, certificate: x509.Certificate, host: str, days: int, reason: str
) -> None:
    with pytest.raises(EnvironmentProblem) as refused:
        require_usable(certificate, authority.certificate, host, NOW + days * DAY)
    assert reason in str(refused.value)


def test_a_clock_that_is_a_day_behind_is_borne(authority: Authority, certificate: x509.Certificate) -> None:
    require_usable(certificate, authority.certificate, "localhost", NOW - datetime.timedelta(hours=23))


def test_another_authority_of_the_same_name_is_another(certificate: x509.Certificate) -> None:
    impostor = new_authority("wards", NOW)
    with pytest.raises(EnvironmentProblem, match="not from this federation's authority"):
        require_usable(certificate, impostor.certificate, "localhost", NOW)


def test_a_servers_certificate_is_no_authority(authority: Authority) -> None:
    """A server that signs a certificate for another host with its own key convinces nobody."""
    key = new_key()
    own = issue(authority, key.public_key(), ["localhost"], NOW)
    forged = issue(Authority(key, own), new_key().public_key(), ["fl.example.org"], NOW)
    for trusted in (authority.certificate, own):
        with pytest.raises(EnvironmentProblem, match="not from this federation's authority"):
            require_usable(forged, trusted, "fl.example.org", NOW)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not on this machine")
def test_openssl_agrees(authority: Authority, certificate: x509.Certificate, tmp_path: Path) -> None:
    """An oracle of its own: the chain, the purpose and each host, at the time of the test."""
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    (tmp_path / "server.pem").write_bytes(certificate.public_bytes(Encoding.PEM))

    def judged(*options: str) -> int:
        command = [
            "openssl",
            "verify",
            "-x509_strict",
            "-purpose",
            "sslserver",
            "-CAfile",
            str(tmp_path / "ca.pem"),
        ]
        at = ["-attime", str(int(NOW.timestamp()))]
        done = subprocess.run(
            [*command, *at, *options, str(tmp_path / "server.pem")], capture_output=True, check=False
        )
        return done.returncode

    assert judged("-verify_hostname", "fl.example.org") == 0
    assert judged("-verify_ip", "192.0.2.7") == 0
    assert judged("-verify_hostname", "www.example.org") != 0
    assert judged("-verify_ip", "192.0.2.8") != 0


def test_an_authority_is_restored_from_its_own_two_files_only(authority: Authority) -> None:
    assert Authority.load(authority.key_pem, authority.pem).certificate == authority.certificate
    with pytest.raises(ConfigError, match="does not belong"):
        Authority.load(certificates.key_pem(new_key()), authority.pem)
    with pytest.raises(ConfigError, match="not an unencrypted"):
        Authority.load(authority.pem, authority.pem)
    with pytest.raises(ConfigError, match="not a certificate"):
        Authority.load(authority.key_pem, b"-----BEGIN CERTIFICATE-----")
    assert "wards" in repr(authority)
    assert "PRIVATE" not in repr(authority)


def test_a_certificate_outlives_its_authority_never(authority: Authority) -> None:
    late = authority.certificate.not_valid_after_utc - 3 * DAY
    made = issue(authority, new_key().public_key(), ["localhost"], late, days=90)
    assert made.not_valid_after_utc <= authority.certificate.not_valid_after_utc
    with pytest.raises(ConfigError, match="authority has expired"):
        issue(authority, new_key().public_key(), ["localhost"], late + 4 * DAY, days=90)


@pytest.mark.parametrize(
    "hosts", [[], [""], ["two words"], ["fl.example.org:8000"], ["https://fl.example.org"], ["ünïcode"]]
)
def test_what_is_no_host_is_refused(authority: Authority, hosts: list[str]) -> None:
    with pytest.raises(ConfigError):
        issue(authority, new_key().public_key(), hosts, NOW)
