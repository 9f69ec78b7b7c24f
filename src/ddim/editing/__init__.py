"""Editing with prompts: prompts and their tokens, attention control (prompt-to-prompt), and local blend."""
