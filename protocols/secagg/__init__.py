"""Secure aggregation: a server sums vectors it cannot see. Start at `local` or at `session`.

File by file::

    agreed before     session       what a server proposes and a client accepts; parameters chooses the counts
                      identity      long-term keys, pinned in a roster
    on the wire       messages      one dataclass each; codec: as bytes; limits: how long they can be;
                                    sizes: how many bytes a session takes
                      transcript    what everyone signs; statements: what each signature says
    cryptography      keys          key agreement, derivation, boxes; shamir: secret sharing
                      graph         who masks with whom; mask: seeds -> masks, added in place
    the client        client        its state machine; client_state: what it remembers; checks: what it verifies;
                                    dealing: what it computes; guard: what it must never forget
    the server        server        its state machine on server_machine; server_state, server_checks; recovery:
                                    from revealed shares to masks
    around them       interface     both machines from outside; snapshot: their state as bytes
                      local         a whole session in one process
                      dummy         INSECURE: the machines without cryptography, for tests of what embeds them
"""
