"""Who is refused by real processes: a node with no admitted key, a server with code of its own, another experiment."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedlora_priv.config_federation import Dropout
from fedlora_priv.deploy import start
from fedlora_priv.deploy.keys import new_keys
from fedlora_priv.federation.agreement import Agreement
from tests.flower.deployment import tiny
from tests.flower.fleet import RUN, Fleet, fleet
from tests.flower.judging import failed, require_the_local_engines_sums

pytestmark = [pytest.mark.long, pytest.mark.waits]

EVIL = {
    "pyproject.toml": """\
[project]
name = "evil"
version = "0.1.0"
description = "Does at every node what whoever submits it wants."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "somebody"

[tool.flwr.app.components]
serverapp = "evil.server:app"
clientapp = "evil.client:app"
""",
    "evil/__init__.py": "",
    "evil/client.py": """\
import os
from pathlib import Path

from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

Path({trace!r}, "obeyed by " + os.environ["FLEET_PARTY"]).touch()
app = ClientApp()

@app.query("hello")
def hello(message, context):
    return Message(RecordDict(), reply_to=message)
""",
    "evil/server.py": """\
import time

from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    while len(nodes := list(grid.get_node_ids())) < 2:
        time.sleep(0.2)
    asked = [Message(RecordDict(), node, "query.hello") for node in nodes]
    replies = list(grid.send_and_receive(asked, timeout=200))
    print("evil:", sorted("error" if reply.has_error() else "obeyed" for reply in replies), flush=True)
""",
}


@pytest.fixture(scope="module")
def theirs(tiny_model: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A SuperLink of somebody who starts what Flower starts, not what `fedlora server start` does."""
    with fleet(tiny(tiny_model, tiny_data), tmp_path_factory.mktemp("refused") / "federation") as one:
        launch = start.superlink(one.server)
        one._launch("superlink", launch.arguments, {**launch.environment, "PATH": plain_path()})
        one.wait(lambda: one.call("node", "check", one.node(5)).returncode == 0, "the SuperLink answers")
        yield one


def plain_path() -> str:
    """Flower's own commands first."""
    import sys

    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def test_a_node_whose_key_nobody_admitted_is_turned_away_and_told_why(theirs: Fleet) -> None:
    assert theirs.call("server", "admit", theirs.server).stdout.strip() == "admitted 5 nodes' keys"
    again = theirs.call("server", "admit", theirs.server)
    assert (again.returncode, again.stdout.strip()) == (0, "every node's key is admitted already")
    key = theirs.home(3) / start.node_link(start.NodeSettings.load(theirs.node(3))).key.name
    key.unlink()
    new_keys(theirs.out / "stranger", "client-3")
    key.write_bytes((theirs.out / "stranger" / key.name).read_bytes())
    key.chmod(0o600)
    theirs.start_node(3)
    assert theirs.ended("client-3") != 0
    said = [line for line in theirs.log("client-3").splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert "has not admitted this node's key" in said[0]
    assert "Traceback" not in theirs.log("client-3")


def test_other_code_than_what_is_installed_is_not_run(theirs: Fleet) -> None:
    """One node is started by `fedlora`; another as Flower says, to see that the code would do what it is for."""
    app = theirs.out / "evil"
    for name, text in EVIL.items():
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).write_text(text.replace("{trace!r}", repr(str(theirs.out))))
    theirs.call("server", "admit", theirs.server)
    theirs.start_node(1)
    by_hand = start.supernode(theirs.node(2))
    plain = ["flower-supernode", *by_hand.arguments[3:]]
    theirs._launch("client-2", plain, {**by_hand.environment, "PATH": plain_path()})
    submit = start.at_server(theirs.server, "flwr", "run", str(app), start.CONNECTION, "--stream")
    theirs._launch("evil", submit.arguments, submit.environment)
    theirs.wait(lambda: "evil: [" in theirs.log("evil"), "the other app ends")
    assert (theirs.out / "obeyed by client-2").exists()
    assert not (theirs.out / "obeyed by client-1").exists()
    assert "evil: ['error', 'obeyed']" in theirs.log("evil")
    said = [line for line in theirs.log("client-1").splitlines() if "not the one of this federation" in line]
    assert said
    assert "nothing of it was run" in said[0]
    assert theirs.running["client-1"].poll() is None  # it goes on, and answers its own federation


def test_nodes_of_another_run_and_of_another_experiment_take_no_part_and_cost_nobody_anything(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, silent: Any
) -> None:
    """A whole run beside them: one is taken for nobody, one refuses, and the sum is exactly the others'."""
    experiment = tiny(
        tiny_model,
        tiny_data,
        secure_aggregation={"max_colluders": 0},  # else four of the five would have to be there
        engine={
            "join_timeout_s": 1.0
        },  # one is waited for in vain; the others are there before the run begins
    )
    with fleet(experiment, tmp_path / "fleet", known_randomness=True) as one:
        shutil.copytree(one.out, tmp_path / "twin")
        agreed = one.node(4).parent / "agreement"
        replace(Agreement.load(agreed), run=bytes(range(16))).save(agreed)
        agreed = one.node(5).parent / "agreement"
        privacy = experiment.privacy.model_copy(update={"epsilon": 4.0})
        other = experiment.model_copy(update={"privacy": privacy})
        replace(Agreement.load(agreed), experiment=other).save(agreed)

        one.start_superlink()
        assert one.call("server", "admit", one.server).returncode == 0
        for number in range(1, 6):
            one.start_node(number)
            name = f"client-{number}"
            one.wait(lambda name=name: "SuperNode ID:" in one.log(name), f"{name} is admitted")
        one.start_run()
        assert one.finished() == 0, one.tails()

        assert "not there after 1 s: client-4" in one.log(RUN)
        (entry,) = one.report()["rounds"]
        assert entry["survivors"] == ["client-1", "client-2", "client-3"]
        assert {lost["client_id"] for lost in entry["refused"]} == {"client-5"}, entry
        lost = [Dropout(round=1, client_id=name, phase="advertise") for name in ("client-4", "client-5")]
        require_the_local_engines_sums(one, tmp_path, silent, lost)
        assert not failed(one)
