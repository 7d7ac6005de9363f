"""Malformed, truncated and oversized bytes.

Attack: in each phase, to each machine, the peer sends its message cut short, with a byte after it, of another
        version, or with a count that claims four thousand million items.
Gain:   an exception that nobody catches takes the process down; a size that is believed takes its memory.
Source: any parser of bytes from strangers; docs/fuzzing.md looks for more.
Check:  `codec.decode`: every refusal is a `RemoteProtocolError` that names the sender.
"""

import tracemalloc

from stage import VICTIM, Stage, in_vain, refused

HUGE = (2**32 - 1).to_bytes(4, "little")
COUNT_AT = {
    "advertise": 42,
    "share": 34,
    "mask": 7,
    "confirm": 7,
    "reveal": 2,
}  # where a request's list begins


def spoilt(data: bytes, count_at: int) -> list[tuple[str, bytes]]:
    """A message made bad in four ways."""
    return [
        ("cut short", data[:-1]),
        ("with a byte after it", data + b"\0"),
        ("of version 2", b"\x02" + data[1:]),
        ("with a count of 2^32 - 1", data[:count_at] + HUGE + data[count_at + 4 :]),
    ]


worst = 0
for phase, count_at in COUNT_AT.items():
    stage = Stage()
    inbox = stage.until(phase)
    snapshot = stage.clients[VICTIM].snapshot()
    answer = stage.answer(VICTIM, phase, inbox[VICTIM])
    for how, bad in spoilt(inbox[VICTIM], count_at):
        stage.clients[VICTIM] = stage.client(VICTIM, snapshot)
        tracemalloc.start()
        refused(
            f"{phase}: the server's request {how}",
            lambda stage=stage, phase=phase, data=bad: stage.answer(VICTIM, phase, data),
            "server: ",
        )
        worst = max(worst, tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    for how, bad in spoilt(answer, len(answer) - 68)[:3]:
        stage = Stage()
        stage.until(phase)
        refused(
            f"{phase}: the client's answer {how}",
            lambda stage=stage, data=bad: stage.server.receive(VICTIM, data),
            "client-1: ",
        )
in_vain("take memory by those claims", worst > 500_000, f"at most {worst // 1000} kB were allocated")
