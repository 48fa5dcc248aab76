"""Tests of Windows: run by pytest inside a Windows Python, under Wine or on Windows (``make test-wine``)."""
