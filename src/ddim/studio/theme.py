"""The looks of the page: the documentation's colours and the system's fonts, and nothing from another server."""

from importlib import resources

from gradio.themes import Base
from gradio.themes.utils import colors, sizes

FONTS = ("-apple-system", "BlinkMacSystemFont", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
MONO = ("SFMono-Regular", "Consolas", "Menlo", "Liberation Mono", "monospace")
BLUE_GREY = colors.Color(
    "#f4f6f7",
    "#e4e9ec",
    "#cbd4d9",
    "#aab9c1",
    "#8298a3",
    "#637b88",
    "#546d78",
    "#465b65",
    "#3b4d56",
    "#2f3e45",
    "#22303a",
    name="blue_grey",
)
"""The primary colour of the documentation, which is its 600."""
GREY = colors.Color(
    "#fafafa", "#f3f4f5", "#e6e7e9", "#d3d5d8", "#9fa3a9", "#767b82", "#5a5f66", "#43474d", "#2b2e36", "#1e2129",
    "#171920", name="grey"
)  # fmt: skip
"""Greys; 900 is the background of the documentation in the dark."""


def theme() -> Base:
    """Returns the theme: flat, with small radii and one accent, in the light and in the dark."""
    made = Base(
        primary_hue=BLUE_GREY,
        secondary_hue=BLUE_GREY,
        neutral_hue=GREY,
        radius_size=sizes.radius_sm,
        font=list(FONTS),
        font_mono=list(MONO),
    )
    return made.set(
        body_background_fill="#ffffff",
        body_background_fill_dark="#1e2129",
        body_text_color="#24292e",
        body_text_color_dark="#e2e4e9",
        body_text_color_subdued="#5a5f66",
        body_text_color_subdued_dark="#a3a8b1",
        block_background_fill="#ffffff",
        block_background_fill_dark="#252932",
        block_border_color="#e1e4e6",
        block_border_color_dark="#363b46",
        block_label_background_fill="#ffffff",  # a picture may lie below a label
        block_label_background_fill_dark="#252932",
        block_label_border_width="0",
        block_label_text_color="#5a5f66",
        block_label_text_color_dark="#a3a8b1",
        block_title_text_color="#3d444b",
        block_title_text_color_dark="#c7cbd3",
        block_shadow="none",
        input_background_fill="#fafafa",
        input_background_fill_dark="#1e2129",
        input_border_color="#c9ced3",
        input_border_color_dark="#4a505c",
        input_placeholder_color="#6b7178",
        input_placeholder_color_dark="#9499a3",
        button_primary_background_fill="#465b65",
        button_primary_background_fill_hover="#3b4d56",
        button_primary_text_color="#ffffff",
        button_primary_background_fill_dark="#aab9c1",
        button_primary_background_fill_hover_dark="#cbd4d9",
        button_primary_text_color_dark="#171920",
        button_secondary_background_fill="#f3f4f5",
        button_secondary_background_fill_dark="#2f343f",
        link_text_color="#3b6a80",
        link_text_color_dark="#9cc4d6",
        slider_color="#546d78",
        slider_color_dark="#aab9c1",
    )


def style() -> str:
    """Returns the style sheet of the page."""
    return (resources.files("ddim.studio") / "style.css").read_text(encoding="utf-8")
