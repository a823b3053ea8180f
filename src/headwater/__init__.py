"""Headwater liberates data: databases to event streams, and streams to the stores that need them."""
