"""Serve bundles over HTTP."""
