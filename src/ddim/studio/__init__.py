"""The page ``ddim studio``: edits, comparisons, trajectories and interpolations in a browser.

The modules beside ``page`` and its tabs are plain Python and need no Gradio.
"""
