"""A lying revealer.

Attack: client-2 reveals shares that are not the ones dealt to it.
Gain:   one wrong share among `threshold` makes a wrong secret, and so a wrong sum, with no trace of who did it.
Source: Bonawitz et al. 2017 do not detect it; here dealers sign H(salt‖share) for each holder.
Check:  `SecAggServer._accept_reveal`: every share is compared with the hash its dealer signed.
"""

from dataclasses import replace

from stage import Stage, in_vain, refused

from protocols.secagg import statements
from protocols.secagg.codec import decode, encode
from protocols.secagg.messages import Reveal, RevealedShare

CHEAT = "client-2"
for attempt, lie, refusal in (
    ("a share of zeros", lambda first, held: [replace(first, share=bytes(64))], "not the one dealt to it"),
    ("another salt", lambda first, held: [replace(first, salt=bytes(16))], "not the one dealt to it"),
    (
        "the share of the other secret",
        lambda first, held: [RevealedShare(held.owner, held.master_share, held.master_salt)],
        "not the one dealt to it",
    ),
    (
        "client-1's share in client-3's name",
        lambda first, held: [replace(first, owner=2)],
        "not the one dealt to it",
    ),
    ("one share twice", lambda first, held: [first, first], "out of order"),
):
    stage = Stage()
    inbox = stage.until("reveal")
    held = stage.clients[CHEAT]._state.held[0]
    transcript = stage.clients[CHEAT].transcript or b""
    honest = decode(Reveal, stage.answer(CHEAT, "reveal", inbox[CHEAT]), CHEAT)
    message = replace(honest, shares=tuple(lie(honest.shares[0], held)))
    said = statements.reveal(transcript, CHEAT, message)
    message = replace(message, signature=stage.identities[CHEAT].sign(*said))
    data = encode(message)
    refused(
        f"reveal {attempt}, well signed",
        lambda stage=stage, data=data: stage.server.receive(CHEAT, data),
        f"client-2: it reveals {'a share that is ' if refusal.startswith('not') else 'shares '}{refusal}",
    )
    for name in [name for name in inbox if name != CHEAT]:
        stage.server.receive(name, stage.answer(name, "reveal", inbox[name]))
    stage.server.advance()
    in_vain("spoil the sum by that", not stage.sum_is_right(), "the other four shares give the exact sum")
