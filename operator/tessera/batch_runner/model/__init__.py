"""Reads and downloads the files of models, for the Jobs that come before any engine."""
