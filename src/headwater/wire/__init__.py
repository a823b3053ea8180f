"""Bytes <-> Arrow, without I/O."""
