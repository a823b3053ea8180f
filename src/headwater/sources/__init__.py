"""Adapters that read changes."""
