"""A sending as B.

Attack: client-2 sends client-3's message as its own, or its own as client-3's, in each phase.
Gain:   it is counted twice, has somebody else dropped, or has them blamed for what it sends.
Source: Bonawitz et al. 2017 assume authenticated channels; over a server that routes, only signatures give them.
Check:  `Roster.verify` over `statements.*` in each of the server's phases: the name is inside what is signed.
"""

from stage import Stage, refused

for phase in ("advertise", "share", "mask", "confirm", "reveal"):
    stage = Stage()
    inbox = stage.until(phase)
    own = stage.answer("client-2", phase, inbox["client-2"])
    stolen = stage.answer("client-3", phase, inbox["client-3"])
    refusal = f"the signature for '{phase}' does not verify"
    refused(
        f"{phase}: client-3's message as client-2's",
        lambda stage=stage, data=stolen: stage.server.receive("client-2", data),
        f"client-2: {refusal}",
    )
    refused(
        f"{phase}: client-2's message as client-3's",
        lambda stage=stage, data=own: stage.server.receive("client-3", data),
        f"client-3: {refusal}",
    )
stage = Stage()
stage.until("share")
refused("send as nobody on the roster", lambda: stage.server.receive("mallory", b""), "not on the roster")
