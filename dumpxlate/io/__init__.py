"""Bytes in and out: sources, sinks, and sources made of others."""
