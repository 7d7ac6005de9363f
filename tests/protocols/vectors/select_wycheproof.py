"""Selects what `wycheproof.json` carries: ``python select_wycheproof.py WYCHEPROOF/testvectors_v1``.

Everything that is invalid or odd, and some of what is ordinary. Values are copied as they are; keys that can be
derived from others, other formats of the same key, and very long messages are left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COMMIT = "7a325932231bd7a724c791c8b0d65ea4d6d2f435"
LONGEST = 600  # hexadecimal digits of a message or an output

Case = dict[str, Any]


def cases(path: Path) -> Iterator[tuple[Case, Case]]:
    """Yield every case with the group it is in."""
    for group in json.loads(path.read_text(encoding="utf-8"))["testGroups"]:
        for case in group["tests"]:
            yield group, case


def picked(case: Case, *fields: str) -> Case:
    """Keep a case's number, result and flags, and some fields."""
    kept = {"tcId": case["tcId"], "result": case["result"], "flags": case.get("flags", [])}
    return kept | {field: case[field] for field in fields}


def first_of(selected: list[Case], key: str, count: int) -> list[Case]:
    """Keep the first cases of each kind."""
    seen: dict[str, int] = {}
    kept = []
    for case in selected:
        kind = str(case.get(key))
        seen[kind] = seen.get(kind, 0) + 1
        if seen[kind] <= count:
            kept.append(case)
    return kept


def x25519(folder: Path) -> list[Case]:
    """All but most of the many edge cases of multiplication."""
    every = [picked(case, "private", "public", "shared") for _, case in cases(folder / "x25519_test.json")]
    common = [case for case in every if set(case["flags"]) <= {"EdgeCaseMultiplication", "Twist"}]
    return [case for case in every if case not in common[60:]]


def ed25519(folder: Path) -> list[Case]:
    """All but long messages."""
    return [
        {"public": group["publicKey"]["pk"], **picked(case, "msg", "sig")}
        for group, case in cases(folder / "ed25519_test.json")
        if len(case["msg"]) <= LONGEST
    ]


def hkdf(folder: Path) -> list[Case]:
    """All but long outputs."""
    return [
        picked(case, "ikm", "salt", "info", "size", "okm")
        for _, case in cases(folder / "hkdf_sha256_test.json")
        if len(case["okm"]) <= LONGEST
    ]


def aes_gcm(folder: Path) -> list[Case]:
    """What our boxes use: 256-bit keys, 96-bit nonces, 128-bit tags."""
    return [
        picked(case, "key", "iv", "aad", "msg", "ct", "tag")
        for group, case in cases(folder / "aes_gcm_test.json")
        if (group["keySize"], group["ivSize"], group["tagSize"]) == (256, 96, 128)
        and max(len(case["msg"]), len(case["aad"])) <= LONGEST
    ]


def mlkem_keys(folder: Path) -> list[Case]:
    """Encapsulation keys that must be refused."""
    every = [case for _, case in cases(folder / "mlkem_768_encaps_test.json") if case["result"] == "invalid"]
    return [picked(case, "ek") for case in first_of(every, "comment", 12)]


def mlkem_decapsulation(folder: Path) -> list[Case]:
    """Two of each kind of ciphertext, and all that are marked."""
    every = [case for _, case in cases(folder / "mlkem_768_test.json")]
    marked = [case for case in every if case.get("flags")]
    plain = [case for case in every if not case.get("flags") and "seeds" not in case.get("comment", "")]
    return [picked(case, "seed", "c", "K") for case in (*marked, *first_of(plain, "comment", 2))]


def main(folder: Path) -> None:
    """Write the selection, one case a line."""
    sections = {
        "x25519": x25519(folder),
        "ed25519": ed25519(folder),
        "hkdf_sha256": hkdf(folder),
        "aes_256_gcm": aes_gcm(folder),
        "mlkem_768_keys": mlkem_keys(folder),
        "mlkem_768_decapsulation": mlkem_decapsulation(folder),
    }
    head = {
        "source": f"https://github.com/C2SP/wycheproof, testvectors_v1, commit {COMMIT}",
        "licence": "Apache-2.0, The Wycheproof authors",
        "selection": "tests/protocols/vectors/select_wycheproof.py",
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    for name, selected in sections.items():
        rows = ",\n".join(json.dumps(case, separators=(",", ":")) for case in selected)
        lines.append(f"{json.dumps(name)}: [\n{rows}\n]")
        print(name, len(selected))
    target = Path(__file__).with_name("wycheproof.json")
    target.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
