"""``fedlora keys``, ``fedlora deploy``, ``fedlora node`` and ``fedlora server``: a federation across machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora_priv.cli_base import AsJson, Debug, ExperimentFile, Overrides, console, one_line_errors
from fedlora_priv.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedlora_priv.deploy.keys import Card
    from fedlora_priv.doctor import Finding

keys = typer.Typer(
    help="Make a node's keys, show their fingerprints, and pin them in a roster.", no_args_is_help=True
)
node = typer.Typer(help="Check or start a node with its own rows.", no_args_is_help=True)
server = typer.Typer(help="Check or start the server, and run the federation on it.", no_args_is_help=True)

NodeFile = Annotated[Path, typer.Argument(metavar="node.toml", help="The node's own file.")]
ServerFile = Annotated[Path, typer.Argument(metavar="server.toml", help="The server's own file.")]
Cards = Annotated[list[Path], typer.Argument(metavar="CARD.json...", help="The nodes' cards.")]

# --- keys ----------------------------------------------------------------------------------------------------


@keys.command("new")
@one_line_errors
def keys_new(
    home: Annotated[Path, typer.Argument(metavar="HOME", help="The node's home; it stays on the node.")],
    client_id: Annotated[str, typer.Argument(metavar="CLIENT_ID", help="As in client-1 to client-N.")],
    card: Annotated[
        Path | None, typer.Option(help="Where to write the card.", show_default="CLIENT_ID.card.json")
    ] = None,
    debug: Debug = False,  # noqa: ARG001 - read by one_line_errors
) -> None:
    """Make this node's keys, and the card with their public halves that goes to whoever deploys."""
    from fedlora_priv.deploy.keys import new_keys
    from fedlora_priv.federation.files import write_atomically

    path = card or Path(f"{client_id}.card.json")
    if path.exists():  # nothing would bring it back: it is made with the keys alone
        raise ConfigError(f"{path} is there already", "name another file with --card")
    made = new_keys(home, client_id)
    write_atomically(path, made.to_text().encode())
    _print_cards([made])
    console.print(f"\nkeep    {home}  (never send it; back it up)\nsend    {path}", markup=False)


@keys.command("show")
@one_line_errors
def keys_show(cards: Cards, debug: Debug = False) -> None:  # noqa: ARG001 - read by one_line_errors
    """Show the cards' fingerprints: compare each with its node by telephone."""
    from fedlora_priv.deploy.keys import Card

    _print_cards([Card.load(path) for path in cards])


@keys.command("roster")
@one_line_errors
def keys_roster(
    cards: Cards,
    out: Annotated[Path, typer.Option(help="Where to write the roster.")] = Path("roster.json"),
    debug: Debug = False,  # noqa: ARG001 - read by one_line_errors
) -> None:
    """Write the roster that pins the nodes' keys, for an audit by somebody who collected the cards himself."""
    from fedlora_priv.deploy.keys import Card, roster_of

    loaded = [Card.load(path) for path in cards]
    roster = roster_of(loaded)
    if out.exists():
        raise ConfigError(f"{out} is there already", "name another file with --out")
    roster.save(out)
    _print_cards(loaded)
    console.print(f"\n{out}", markup=False)


def _print_cards(cards: Sequence[Card]) -> None:
    """Print each card's fingerprint."""
    for card in cards:
        console.print(f"{card.client_id:<12} {card.fingerprint}", markup=False, highlight=False)


# --- deploy --------------------------------------------------------------------------------------------------


@one_line_errors
def deploy(
    file: ExperimentFile,
    out: Annotated[Path, typer.Option(help="A new folder for the parties' folders.", show_default=False)],
    card: Annotated[
        list[Path] | None, typer.Option(help="A node's card; once for each.", show_default=False)
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name or address of the server; the first is the one that nodes call.", show_default=False
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="Port of the server.", min=1, max=65_535)] = 8000,
    days: Annotated[int, typer.Option(help="Days that the server's certificate holds.", min=1, max=825)] = 90,
    public_source: Annotated[
        bool,
        typer.Option(
            "--public-source", help="Nodes hold parts of data.source, which is public, not their own rows."
        ),
    ] = False,
    for_trial: Annotated[
        bool, typer.Option("--for-trial", help="Make all keys here, for 127.0.0.1: distributes no trust.")
    ] = False,
    renew: Annotated[
        bool, typer.Option("--renew", help="Only sign a new certificate for the server of an earlier --out.")
    ] = False,
    overrides: Overrides = None,
    debug: Debug = False,  # noqa: ARG001 - read by one_line_errors
) -> None:
    """Write what the server and each node need: agreement, certificates, settings, start scripts."""
    from fedlora_priv.config import Experiment
    from fedlora_priv.deploy import bundle
    from fedlora_priv.deploy.keys import Card

    if renew:
        console.print(f"{bundle.renew(out, host or [], days)}\nrestart the server with it", markup=False)
        return
    experiment = Experiment.load(file, overrides or [])
    from fedlora_priv.federation.provenance import versions

    if for_trial:
        if card or host:
            raise ConfigError("--for-trial makes all keys here, for 127.0.0.1", "leave out --card and --host")
        plan = bundle.Plan.on_one_machine(experiment, out, port, days, own_data=not public_source)
        agreement = bundle.deploy_trial(plan, versions(), lambda line: console.print(line, markup=False))
    else:
        plan = bundle.Plan(experiment, out, host or [], port, days=days, own_data=not public_source)
        cards = [Card.load(path) for path in card or []]
        _print_cards(cards)
        agreement = bundle.deploy(plan, cards, versions())
    console.print(f"\nagreement    {agreement.fingerprint}", markup=False, highlight=False)
    console.print(
        f"{out}/nodes/client-k goes to its node, {out}/server to the server; docs/deploying.md",
        markup=False,
        soft_wrap=True,
    )


# --- node and server -----------------------------------------------------------------------------------------


@node.command("check")
@one_line_errors
def node_check(
    file: NodeFile,
    offline: Annotated[bool, typer.Option("--offline", help="Do not call the server.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,  # noqa: ARG001 - read by one_line_errors
) -> None:
    """Look for whatever would keep this node from starting; costs nothing."""
    from fedlora_priv.deploy.check import check_node

    _print_findings(check_node(file, connect=not offline), as_json=as_json)


@node.command("start")
@one_line_errors
def node_start(file: NodeFile, debug: Debug = False) -> None:  # noqa: ARG001 - read by one_line_errors
    """Check this node, rehearse its steps with its own model, then become Flower's SuperNode."""
    from fedlora_priv.deploy.check import check_node
    from fedlora_priv.deploy.start import supernode

    launch = supernode(file)
    _print_findings(check_node(file), as_json=False)
    from fedlora_priv.federation.node import open_node_file

    open_node_file(file, rehearse=True, say=lambda line: console.print(line, markup=False)).close()
    launch.replace_this_process()


@server.command("check")
@one_line_errors
def server_check(
    file: ServerFile,
    as_json: AsJson = False,
    debug: Debug = False,  # noqa: ARG001 - read by one_line_errors
) -> None:
    """Look for whatever would keep the server from starting."""
    from fedlora_priv.deploy.check import check_server

    _print_findings(check_server(file), as_json=as_json)


@server.command("start")
@one_line_errors
def server_start(file: ServerFile, debug: Debug = False) -> None:  # noqa: ARG001 - read by one_line_errors
    """Check the server, then become Flower's SuperLink."""
    from fedlora_priv.deploy.check import check_server
    from fedlora_priv.deploy.start import superlink

    launch = superlink(file)
    _print_findings(check_server(file), as_json=False)
    launch.replace_this_process()


@server.command("admit")
@one_line_errors
def server_admit(file: ServerFile, debug: Debug = False) -> None:  # noqa: ARG001 - read by one_line_errors
    """Admit the nodes' keys at the running SuperLink, which turns nodes away until then."""
    from fedlora_priv.deploy.operate import admit

    _print_admitted(admit(file))


@server.command("run")
@one_line_errors
def server_run(file: ServerFile, debug: Debug = False) -> None:  # noqa: ARG001 - read by one_line_errors
    """Admit the nodes' keys, then run the federation at the running SuperLink, or go on with it."""
    from fedlora_priv.deploy import operate

    _print_admitted(operate.admit(file))
    operate.run(file, lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True))


def _print_admitted(new: int) -> None:
    """Say how many nodes' keys were admitted now."""
    said = "every node's key is admitted already" if not new else f"admitted {new} nodes' keys"
    console.print(said, markup=False, highlight=False)


def _print_findings(findings: Sequence[Finding], *, as_json: bool) -> None:
    """Print what was found. Raises the first thing that fails, whose exit code the command leaves with."""
    from fedlora_priv.deploy.check import require_all

    if as_json:
        console.print_json(json.dumps([finding.to_json() for finding in findings]))
    else:
        for finding in findings:
            line = f"{finding.status:<5} {finding.what:<15} {finding.detail}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    require_all(findings)
