"""Connections to databases: the only modules that import a client library."""
