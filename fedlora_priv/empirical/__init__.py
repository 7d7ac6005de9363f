"""Empirical audits: attack our own training, through the path that users take, and see whether the claim survives.

    canaries    public random rows, each in or out of one client's data by a secret fair coin
    attacks     scores: how much each canary looks as if it had been in
    one_run     `fedlora run` once more with canaries, and the lower bound on epsilon that the attacks give
    trials      many single steps of a trainer with and without one row: what one run cannot show
    membership  how well rows of a finished run are told from others by its released adapter

The statistics are `accounting.one_run`'s and `accounting.many_runs`', which need no torch.
"""
