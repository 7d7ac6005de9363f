"""Start scripts: a plain shell script and a systemd unit for each party; both only call ``fedlora``.

What they start is decided by `fedlora_priv.deploy.start` from the party's own file, so nothing is said twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Role = Literal["node", "server"]

_SCRIPT = """\
#!/bin/sh
# Checks this {role}, then starts Flower's {program}. Everything it uses is said in {role}.toml.
set -eu
cd "$(dirname "$0")"
if [ -n "${{FEDLORA_VENV:-}}" ]; then PATH="$FEDLORA_VENV/bin:$PATH"; fi
umask 077
exec fedlora {role} start {role}.toml
"""

_UNIT = """\
# systemd unit: copy to /etc/systemd/system/, set the two lines marked SET, then
#   systemctl daemon-reload && systemctl enable --now fedlora-{role}
[Unit]
Description=fedlora-priv {role} of the federation {name}
Wants=network-online.target
After=network-online.target time-sync.target

[Service]
# SET: an account that may read this folder{rows} and nothing else
User=fedlora
# SET: where this folder is
WorkingDirectory=/srv/fedlora/{role}
Environment=FEDLORA_VENV=/opt/fedlora/venv
ExecStart=/bin/sh start.sh
Restart=on-failure
RestartSec=30
UMask=0077
NoNewPrivileges=yes
PrivateTmp=yes
PrivateDevices={devices}
ProtectSystem=strict
ProtectHome=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
ReadWritePaths=/srv/fedlora/{role}

[Install]
WantedBy=multi-user.target
"""


def write(folder: Path, role: Role, name: str) -> None:
    """Write start.sh and fedlora-<role>.service into a party's folder.

    Args:
        folder: the party's.
        role: which party it is.
        name: the experiment's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    program = "SuperNode" if role == "node" else "SuperLink"
    script = folder / "start.sh"
    script.write_text(_SCRIPT.format(role=role, program=program), encoding="utf-8")
    script.chmod(0o755)
    own = {"rows": " and the rows" if role == "node" else "", "devices": "no" if role == "node" else "yes"}
    unit = _UNIT.format(role=role, name=name, **own)
    (folder / f"fedlora-{role}.service").write_text(unit, encoding="utf-8")
