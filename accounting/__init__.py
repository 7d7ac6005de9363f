"""Privacy accounting: what was released, what it costs, who may spend it, and how to check the claim.

`events` says what was released, `pricing` what that costs, `planning` what it will cost, `ledger` keeps it
durably, `budget` refuses to overspend, `report` states the claims, and `audit` derives them again.
"""
