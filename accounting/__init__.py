"""Privacy accounting: what was released, what it costs, who may spend it, and how to check the claim.

File by file::

    what was released    events       frozen records, by kind in gaussian_events, distributed_events, trial_events;
                                      event_fields checks their fields
    what it costs        pricing      events -> epsilon(delta): PLD certifies, rdp screens; mechanisms is their
                                      common form, amplification and shares hold formulas of rdp
                         gdp          mu-GDP, and what an attacker's error rates can be
                         groups       the price of several rows of one person
    what it will cost    planning     epsilon target -> plan; calibration searches, on losses; what_if compares
    what was spent       ledger       durable and append-only; entries has its rows, chain their rules, anchor
                                      their signature
                         transfer     ledgers read and imported; merge joins several clients'
                         budget       the limit that refuses; standing says what is left
    what is claimed      report       report.json, by report.schema.json; contract is what its method lets leave,
                                      masking what it says of masks, rows what public data adds to it
    whether it is true   audit        sixteen verdicts on a case, each found by a module of checks
                         independent  the audit's own accountant: loss_grid, loss_sum, independent_rdp
                         private_audit, empirical   evidence: what steps did, what attacks achieved
    everywhere           errors, canonical (JSON), versions

Nothing is re-exported here, so that ``import accounting`` costs nothing.
"""
