"""Whole commands whose driver and ranks are forks of a prepared process, see ``helpers.forked_command``."""
