"""What a federation sends, and how little: pure functions around `protocols`, before anything is trained or sent.

File by file::

    choices    what may be left out of which upload: the refusals that keep sums right and votes private
    scales     how coarse a value may be: public scales by channel from earlier sums, one number for noise shares
    download   what travels down: the largest coordinates, or those that have changed
    meter      bytes of a round by kind, in both directions, from its parameters alone
    budget     from a budget of bytes to density and bits
    flasc      INSECURE: FLASC as it was published, each client with a support of its own, for comparison
    errors     what is refused

Supports, tiers, votes, residuals and quantisers are in `protocols`, where other systems can have them too. Nothing here
knows torch, an engine or a ledger.
"""
