"""A failed session, run again without one client.

Attack: the server lets a session fail after masking, and repeats it without client-5, calling it the same round,
        or a new one.
Gain:   everybody masks the same vector twice; the two sums differ by client-5's vector.
Source: plain SecAgg leaves retries to the orchestrator.
Check:  `Guard.claim_round` (one masked vector per round and exchange, ever) and `ClientPolicy.exact_round` (the
        client counts rounds, not the server).
"""

from dataclasses import replace

from stage import VICTIM, Stage, refused

first = Stage()
first.until("reveal")  # every client has sent its masked vector; the server reports a failure

again = Stage(n=4, after=first, session_id=bytes(32))
asked = again.until("mask")
refused(
    "sum the same round without client-5", lambda: again.answer(VICTIM, "mask", asked[VICTIM]), "already sent"
)

renumbered = Stage(n=4, after=first, session_id=bytes([1]) * 32, round=2)
policy = replace(renumbered.policy, exact_round=(1, 0))  # the client's vector is its update of round 1
renumbered.clients[VICTIM] = renumbered.client(VICTIM, policy=policy)
refused("call the repetition round 2", lambda: renumbered.until("share"), "another round or exchange")

as_exchange = Stage(n=4, after=first, session_id=bytes([2]) * 32, exchange=1)
as_exchange.clients[VICTIM] = as_exchange.client(VICTIM, policy=policy)
refused("call it a second exchange", lambda: as_exchange.until("share"), "another round or exchange")
