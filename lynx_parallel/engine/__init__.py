"""Ranks and gangs: the Ray part."""
