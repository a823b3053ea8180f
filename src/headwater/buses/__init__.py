"""Adapters in which streams live."""
