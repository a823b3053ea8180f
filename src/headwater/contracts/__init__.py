"""Contracts: what a stream promises, where its versions lie, and what a new one breaks. Imports no Arrow."""
