"""Tests of lynx_parallel.demo."""
