"""Tests of progc/search/proxies."""
