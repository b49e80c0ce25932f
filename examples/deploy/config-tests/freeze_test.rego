package remit.rules_test

import data.remit.rules

test_frozen if count(rules.deny) == 1 with input as {"at": "2026-12-24T10:00:00Z", "args": {"name": "foo"}}

test_open if count(rules.deny) == 0 with input as {"at": "2026-11-24T10:00:00Z", "args": {"name": "foo"}}

test_payment if rules.ttl == "2m" with input as {"at": "2026-11-24T10:00:00Z", "args": {"name": "payment-gate"}}
