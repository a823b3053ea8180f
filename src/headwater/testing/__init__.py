"""Conformance suites and faults, for our adapters and everybody else's."""
