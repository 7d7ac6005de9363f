"""Secure aggregation and the encodings around it: bytes in, bytes out; no socket, no clock, no torch.

The data flow, file by file::

    sparsify   which coordinates travel: a support everybody agrees on
    tiers      supports of several densities, nested, so that their sums stay exact
    voting     a support that the clients vote on, in a masked exchange of its own
    private    the declaration that a vector is private by itself, which votes and feedback demand
    feedback   what compression left out, kept for the next round
    quantise   real vector <-> integers modulo 2^b, unbiased, proved not to overflow
    secagg     the integers are masked, summed by a server that sees only the sum, and unmasked
    packing    b-bit integers <-> bytes
    prg        the keystream behind masks and stochastic rounding
    errors     everything that can go wrong, as one tree

Nothing is re-exported here, so that ``import protocols`` costs nothing.
"""
