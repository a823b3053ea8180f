"""Contracts: the public, versioned schema of a stream. Imports no Arrow, so that a web process stays light."""
