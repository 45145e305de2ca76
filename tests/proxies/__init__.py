"""Tests of progc/proxies."""
