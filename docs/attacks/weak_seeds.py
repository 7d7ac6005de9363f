"""Weak seeds.

Attack: the server tries all seeds that a mask could have been made from.
Gain:   Flower's SecAgg+ (flwr 1.41) seeds a Mersenne Twister with at most 28 effective bits: 2^28 tries take
        a pair's mask off. And 624 whole words of such a generator's output give all later ones.
Source: measured on Flower; Matsumoto and Nishimura 1998 warn that the generator is not for cryptography.
Check:  `SecAggClient.advertise` draws 32 + 32 + 96 bytes from `os.urandom`; a `Mask` is AES-256 in counter mode
        and takes a full key or none.
"""

from stage import VICTIM, Stage, in_vain, refused

from protocols.secagg.codec import encode
from protocols.secagg.guard import MemoryGuard
from protocols.secagg.mask import Mask
from protocols.secagg.messages import Proposal

SESSIONS = (
    64  # a fair bit shows one value 64 times with probability 2^-63: of 1280 bits, one with below 2^-52
)
stage = Stage()
proposal = encode(Proposal(stage.parameters))
zeros, ones = (1 << 1280) - 1, (1 << 1280) - 1  # the bits that were 0 each time, and 1 each time
for _ in range(SESSIONS):
    client = stage.client(VICTIM, guard=MemoryGuard())
    client.advertise(proposal)
    state = client._state
    secrets = int.from_bytes(state.seed + state.master + state.box_secret, "little")
    zeros, ones = zeros & ~secrets, ones & secrets
stuck = zeros.bit_count() + ones.bit_count()
in_vain(
    f"look for bits of a client's secrets that stay the same over {SESSIONS} sessions",
    stuck > 0,
    "there is none among the 1280: a mask key has 256 bits to guess",
)
for size in (0, 4, 16, 31):
    refused(
        f"have a mask made from {8 * size} bits",
        lambda size=size: Mask(bytes(size)),
        "a mask's key is 32 bytes",
    )
