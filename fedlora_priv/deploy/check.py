"""What would keep a party from starting, found on its own machine before Flower starts: one line each.

Every check costs nothing of the budget and sends nothing but the beginning of a TLS connection. The start scripts run
them first, because Flower's own errors come late, on the other side, or not at all.
"""

from __future__ import annotations

import datetime
import email.utils
import http.client
import importlib.metadata
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cryptography import x509

from accounting.chain import Charge
from accounting.errors import LedgerError
from accounting.transfer import read as read_ledger
from fedlora_priv.deploy import certificates
from fedlora_priv.deploy.keys import load_flower_private, require_flower_public, require_owner_only
from fedlora_priv.doctor import Finding
from fedlora_priv.errors import ConfigError, EnvironmentProblem, FedloraError, RunFolderError
from fedlora_priv.federation.agreement import Agreement
from fedlora_priv.federation.home import ClientHome
from fedlora_priv.federation.node import require_identity, require_listed
from fedlora_priv.federation.parties import NodeLink, NodeSettings, ServerLink, ServerSettings, require_data
from fedlora_priv.federation.plans import plan_clients, require_room

CONNECT_TIMEOUT_S = 5.0
MAX_AHEAD_S, MAX_BEHIND_S = 5, 300
"""How far a node's clock may be from the SuperLink's: Flower 1.41 dates and signs every request of a node."""

FLOWER = (1, 41)
"""The version of Flower that the engine was written for and is tested with."""

Check = tuple[str, Callable[[], str]]
"""What is looked at, and what looks: it returns what to say, or raises a `FedloraError`."""


def check_node(file: Path, *, connect: bool = True, now: datetime.datetime | None = None) -> list[Finding]:
    """Return what was found of a node's settings, keys, rows, budget and connection, most basic first.

    Args:
        file: its node.toml.
        connect: whether to call the server.
        now: aware time; by default this machine's clock.

    Raises:
        FedloraError: settings or agreement cannot be read, or do not know each other: there is nothing to check.
    """
    settings = NodeSettings.load(file)
    agreement = Agreement.load(settings.agreement)
    require_listed(settings.client_id, agreement.roster)
    return list(_findings(_node_checks(settings, agreement, now or _clock(), connect=connect)))


def check_server(file: Path, *, now: datetime.datetime | None = None) -> list[Finding]:
    """Return what was found of the server's settings, certificate, port and admitted keys, most basic first.

    Raises:
        FedloraError: the settings or the agreement cannot be read, so there is nothing to check.
    """
    settings = ServerSettings.load(file)
    agreement = Agreement.load(settings.agreement)
    return list(_findings(_server_checks(settings, agreement, now or _clock())))


def check_admission(file: Path, *, now: datetime.datetime | None = None) -> list[Finding]:
    """Return what was found of that which admitting nodes and submitting a run need: keys, and a running SuperLink.

    Raises:
        FedloraError: as `check_server`.
    """
    settings = ServerSettings.load(file)
    agreement = Agreement.load(settings.agreement)
    return list(_findings(_admission_checks(settings, agreement, now or _clock())))


def require_all(findings: Sequence[Finding]) -> None:
    """Raise the first thing that was found to fail, called by what it is of.

    Raises:
        FedloraError: of the kind that the check gave.
    """
    for finding in findings:
        if finding.problem is not None:
            raise type(finding.problem)(f"{finding.what}: {finding.detail}")


def _findings(checks: Iterator[Check]) -> Iterator[Finding]:
    """Run the checks; one that fails does not keep the others from being run."""
    for what, look in checks:
        try:
            yield Finding(what, "OK", look())
        except FedloraError as error:
            yield Finding(what, "FAIL", str(error), error)


def _node_checks(
    settings: NodeSettings, agreement: Agreement, now: datetime.datetime, *, connect: bool
) -> Iterator[Check]:
    """Yield the checks of a node."""
    yield "agreement", lambda: _agreement(settings, agreement)
    yield "identity", lambda: _identity(settings, agreement)
    yield "data", lambda: _data(settings, agreement)
    yield "budget", lambda: _budget(settings, agreement)
    if (link := settings.flower) is not None:
        yield "Flower", _flower
        yield "key for Flower", lambda: _node_key(link)
        yield "port", lambda: require_free_port("127.0.0.1", link.local_port)
        if connect:
            yield "server", lambda: reach(link, now)


def _server_checks(settings: ServerSettings, agreement: Agreement, now: datetime.datetime) -> Iterator[Check]:
    """Yield the checks of a server."""
    yield "agreement", lambda: _agreement(settings, agreement)
    if (link := settings.flower) is not None:
        yield "Flower", _flower
        yield "certificate", lambda: _own_certificate(link, now)
        yield "nodes", lambda: _admitted(link, agreement)
        yield "port", lambda: require_free_port(link.bind, link.port)


def _admission_checks(
    settings: ServerSettings, agreement: Agreement, now: datetime.datetime
) -> Iterator[Check]:
    """Yield the checks before a server's SuperLink is asked for something."""
    yield "agreement", lambda: _agreement(settings, agreement)
    if (link := settings.flower) is not None:
        yield "nodes", lambda: _admitted(link, agreement)
        yield "server", lambda: reach(link, now)


def _agreement(settings: NodeSettings | ServerSettings, agreement: Agreement) -> str:
    """Compare versions; show the fingerprint, which people compare."""
    settings.agreed()
    return f"{agreement.fingerprint} (compare it with the other parties')"


def _identity(settings: NodeSettings, agreement: Agreement) -> str:
    """Compare the key at home with the pinned one."""
    home = ClientHome(settings.home)
    require_identity(home, settings.client_id, agreement.roster)
    require_owner_only(home.identity_path)
    return f"{settings.client_id}, as the roster pins it"


def _data(settings: NodeSettings, agreement: Agreement) -> str:
    """Read this party's rows; how many there are is nobody's business."""
    require_data(settings, agreement)
    if settings.data is None:
        return f"its part of {agreement.experiment.data.source}"
    from fedlora_priv.data.sources import own_rows

    own_rows(agreement.experiment, settings.data)
    return f"{settings.data} can be read"


def _budget(settings: NodeSettings, agreement: Agreement) -> str:
    """Ask the ledger whether the run fits, if it has not begun."""
    experiment, client_id = agreement.experiment, settings.client_id
    declared, dataset_id = experiment.declared_sizes, experiment.data.dataset_id
    if not declared or dataset_id is None:
        return "asked when the node starts: the sizes are those of public data"
    plan = plan_clients(experiment, declared)[client_id]
    limit = settings.limit(experiment)
    charges = _charges(ClientHome(settings.home).ledger_path, client_id, dataset_id)
    if any(charge.run == agreement.run.hex() for charge in charges):
        return "the run has begun, and had room for all of itself"
    require_room(plan, [charge.charged for charge in charges], limit)
    return f"the whole run fits into the lifetime limit of ε {limit:g}"


def _charges(path: Path, client_id: str, dataset_id: str) -> list[Charge]:
    """Return what the ledger of a client's data has charged, without changing it."""
    if not path.exists():
        return []
    try:
        chain = read_ledger(path).chains.get((client_id, dataset_id))
    except LedgerError as error:
        raise RunFolderError(str(error), "restore the ledger: without it the budget is unknown") from None
    return [] if chain is None else list(chain.charges.values())


def _flower() -> str:
    """Compare Flower's version with the one that the engine is for."""
    try:
        version = importlib.metadata.version("flwr")
    except importlib.metadata.PackageNotFoundError:
        raise EnvironmentProblem("Flower is not installed", "pip install 'fedlora-priv[flower]'") from None
    if tuple(int(part) for part in version.split(".")[:2]) != FLOWER:
        wanted = ".".join(map(str, FLOWER))
        raise EnvironmentProblem(
            f"Flower is {version}, and the engine is for {wanted}", f"install flwr {wanted}"
        )
    return version


def _node_key(link: NodeLink) -> str:
    """Look at the form and the mode of the node's key."""
    load_flower_private(link.key)
    return f"{link.key} is a P-384 key that its owner alone may read"


def _own_certificate(link: ServerLink, now: datetime.datetime) -> str:
    """Look at the server's own certificate as nodes will see it."""
    require_owner_only(link.key)
    key = certificates.load_key(certificates.read(link.key, "the server's key"), "the server's key")
    own, authority = _loaded(link.certificate), _loaded(link.ca)
    certificates.require_matching(key, own, "the server's key")
    return _days(certificates.require_usable(own, authority, link.host, now), link.host)


def _admitted(link: ServerLink, agreement: Agreement) -> str:
    """Look for a public key of each client, of the form that Flower takes."""
    for client_id in agreement.roster:
        path = link.nodes / f"{client_id}.pub"
        if not path.is_file():
            raise ConfigError(
                f"there is no {path}", "put the node's public key for Flower there, from its card"
            )
        require_flower_public(path.read_text(encoding="utf-8", errors="replace"), str(path))
    return f"a key of each of the {len(agreement.roster)} clients"


def require_free_port(host: str, port: int) -> str:
    """Return that a port is free to listen on.

    Raises:
        EnvironmentProblem: it is taken, or this machine has no such address.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        raise EnvironmentProblem(
            f"port {port} on {host} cannot be listened on ({error.strerror})",
            "stop what uses it, or choose another port in [flower]",
        ) from None
    return f"{host}:{port} is free"


def reach(link: NodeLink | ServerLink, now: datetime.datetime) -> str:
    """Return that the server answers with a certificate that may be trusted, and that its clock is near this one.

    The certificate is fetched without verification and judged here, so that the reason can be told; nothing is sent
    over that connection. The clock is asked over a second one, which is verified.

    Raises:
        EnvironmentProblem: nothing answers, or somebody else does, or one of the two clocks is wrong.
    """
    certificate = x509.load_der_x509_certificate(_presented(link))
    days = _days(certificates.require_usable(certificate, _loaded(link.ca), link.host, now), link.host)
    _require_near(_server_clock(link), now)
    return days


def _presented(link: NodeLink | ServerLink) -> bytes:
    """Return the certificate that whoever answers shows, DER."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((link.host, link.port), timeout=CONNECT_TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=link.host) as secure,
        ):
            presented = secure.getpeercert(binary_form=True)
    except ssl.SSLError:
        raise EnvironmentProblem(
            f"{link.host}:{link.port} answers without TLS", "have the server started with its certificate"
        ) from None
    except OSError as error:
        raise EnvironmentProblem(
            f"nothing answers at {link.host}:{link.port} ({error.strerror or error})",
            "start the server, or mend host and port in [flower]",
        ) from None
    if presented is None:
        raise EnvironmentProblem(f"{link.host}:{link.port} shows no certificate", "ask whoever runs it")
    return presented


def _server_clock(link: NodeLink | ServerLink) -> datetime.datetime | None:
    """Return the time that the server's answer to an empty request bears; None if it bears none."""
    connection = http.client.HTTPSConnection(
        link.host,
        link.port,
        timeout=CONNECT_TIMEOUT_S,
        context=ssl.create_default_context(cafile=str(link.ca)),
    )
    try:
        connection.request("HEAD", "/")
        dated = connection.getresponse().getheader("Date")
        return None if dated is None else email.utils.parsedate_to_datetime(dated)
    except (OSError, http.client.HTTPException) as error:
        raise EnvironmentProblem(
            f"{link.host}:{link.port} does not answer like a SuperLink ({type(error).__name__})",
            "mend host and port in [flower], or ask whoever runs it",
        ) from None
    except ValueError:  # a date of another form
        return None
    finally:
        connection.close()


def _require_near(server: datetime.datetime | None, now: datetime.datetime) -> None:
    """Raise if this clock is so far from the server's that Flower would turn this node away."""
    ahead = 0.0 if server is None else (now - server).total_seconds()
    if not -MAX_BEHIND_S <= ahead <= MAX_AHEAD_S:
        raise EnvironmentProblem(
            f"this machine's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's, and "
            f"Flower turns nodes away that are {MAX_AHEAD_S} s ahead or {MAX_BEHIND_S} s behind",
            "set the one that is wrong",
        )


def _loaded(path: Path) -> x509.Certificate:
    """Return the certificate in a file."""
    return certificates.load_certificate(certificates.read(path, "the certificate"), str(path))


def _days(days: int, host: str) -> str:
    """Say for how long a certificate holds."""
    soon = ": have it renewed soon" if days < certificates.WARN_DAYS else ""
    return f"the certificate holds for {host}, {days} more days{soon}"


def _clock() -> datetime.datetime:
    """Return this machine's time."""
    return datetime.datetime.now(datetime.UTC)
