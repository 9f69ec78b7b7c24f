"""Editing by words: prompts and their tokens, attention control (prompt-to-prompt), local blend."""
