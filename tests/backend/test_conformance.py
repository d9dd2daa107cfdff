"""The shipped backends pass the suite, through the door that third parties use."""

from turbort.testing import conformance

test_reference = conformance("reference")
test_null = conformance("null", sample="*-d1000")
