"""The conformance suite: what a backend must satisfy, for `turbort check` and for pytest.

from turbort.testing import conformance

test_ops = conformance("my-backend")
"""

from turbort.testing.case import Case
from turbort.testing.door import conformance
from turbort.testing.ledger import Ledger, LedgerError
from turbort.testing.result import Outcome, Result, counts
from turbort.testing.suite import Suite

__all__ = ["Case", "Ledger", "LedgerError", "Outcome", "Result", "Suite", "conformance", "counts"]
