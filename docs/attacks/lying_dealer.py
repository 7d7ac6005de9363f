"""A lying dealer.

Attack: client-2 deals shares of something else than its secrets, so that its masks cannot be removed; or an escrow
        that does not open.
Gain:   a wrong sum that nobody notices, or an honest holder who seems to have revealed a wrong share.
Source: Feldman 1987 (verifiable sharing) in spirit; here a commitment to the secret and a hash of every share.
Check:  `Recovery._recover`, `Recovery.pair_masks`, `keys.open_escrow`: the dealer is named, the session aborts.
"""

from collections.abc import Callable
from dataclasses import replace

from stage import Stage, refused

from protocols.secagg import dealing, statements
from protocols.secagg.client_state import Advertised
from protocols.secagg.codec import decode, encode
from protocols.secagg.messages import SharesOut

CHEAT = "client-2"


def play(lie: Callable[[SharesOut], SharesOut], drops: bool, other_secrets: bool = False) -> None:
    """A session in which client-2 deals so, and then vanishes if it `drops`."""
    stage = Stage()
    inbox = stage.until("share")
    state = stage.clients[CHEAT]._state
    if other_secrets:  # what it deals, masks with and commits to is not what it advertised
        state = Advertised(state.parameters, state.seed, bytes(32), state.box_secret, state.advertisement)
        stage.clients[CHEAT]._state = state
    for name, request in inbox.items():
        answer = stage.answer(name, "share", request)
        if name == CHEAT:
            message = lie(decode(SharesOut, answer, name))
            said = statements.share(stage.clients[CHEAT].transcript or b"", CHEAT, message)
            answer = encode(replace(message, signature=stage.identities[CHEAT].sign(*said)))
        stage.server.receive(name, answer)
    inbox = stage.server.advance()
    for phase in ("mask", "confirm", "reveal"):
        for name in [name for name in inbox if not (drops and name == CHEAT)]:
            stage.server.receive(name, stage.answer(name, phase, inbox[name]))
        inbox = stage.server.advance()


refused(
    "commit to another seed",
    lambda: play(lambda m: replace(m, seed_commitment=bytes(32)), drops=False),
    "client-2: it dealt shares that do not match its seed",
)
refused(
    "commit to another master, and vanish",
    lambda: play(lambda m: replace(m, master_commitment=bytes(32)), drops=True),
    "client-2: it dealt shares that do not match its master",
)
refused(
    "encrypt nonsense in the escrow, and vanish",
    lambda: play(lambda m: replace(m, escrow=bytes(len(m.escrow))), drops=True),
    "client-2: its escrow does not open under its own master",
)
refused(
    "deal a master that is not behind the advertised key, and vanish",
    lambda: play(lambda m: m, drops=True, other_secrets=True),
    "client-2: the master it shared does not belong to its mask key",
)

honest_split = dealing._split


def off_the_polynomial(state: Advertised, holders: list[int], me: int, entropy: dealing.Entropy) -> dict:
    """Deal client-1 a seed share that lies on no polynomial with the others."""
    dealt = honest_split(state, holders, me, entropy)
    if me == 1:
        held = dealt[0]
        wrong = (held.owner, bytes(64), held.seed_salt, held.master_share, held.master_salt)
        dealt[0] = type(held)(*wrong)
    return dealt


dealing._split = off_the_polynomial
refused(
    "deal one share off the polynomial, with a fitting hash",
    lambda: play(lambda m: m, drops=False),
    "client-2: it dealt shares that do not match its seed",
)
dealing._split = honest_split
