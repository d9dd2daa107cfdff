"""The whole suite under pytest, in the plugin's own CI."""

from turbort.testing import conformance

test_ops = conformance("example")
