"""Configs: each file's docstring says what it reproduces, where and with which command."""
