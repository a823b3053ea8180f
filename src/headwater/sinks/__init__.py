"""Adapters that streams are written into."""
