"""Tests of lynx_parallel.stages."""
