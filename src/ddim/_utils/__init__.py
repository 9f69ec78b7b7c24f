"""Helpers that every part of the package may use: errors, error texts, atomic files, locks, quiet libraries."""
