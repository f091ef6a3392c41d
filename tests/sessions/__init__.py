"""Tests of the sessions service."""
