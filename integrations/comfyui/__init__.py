"""What ComfyUI imports of a folder in custom_nodes: the nodes, and the names that it shows."""

from .ddim_comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
