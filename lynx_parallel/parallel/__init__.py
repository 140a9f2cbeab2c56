"""Splits one model over the ranks of a gang."""
