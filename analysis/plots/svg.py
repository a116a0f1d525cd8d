"""A figure as inline SVG: responsive, deterministic, with unique ids, and text as text."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

from clsprobe.analysis.plots.style import house_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The reader's browser draws the text, in its interface font. It is narrower than DejaVu Sans, in which the margins are
# measured, so nothing is cut off.
_SVG_FONTS = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,'Noto Sans',sans-serif"


def render_svg(figure: Figure, *, prefix: str) -> str:
    """The figure as inline SVG, byte-identical on every call: text as text, ids that begin with `prefix`, no requests.

    The element fills its container up to the figure's own width, which CSS reads as ``--natural``. Raises ValueError
    for a prefix that cannot begin an id.
    """
    if not re.fullmatch(r"[A-Za-z][\w-]*", prefix):
        raise ValueError(f"svg: prefix {prefix!r} is no id; letters, digits, - and _ only, a letter first")
    buffer = io.BytesIO()
    with house_style():
        figure.savefig(buffer, format="svg", dpi=180, metadata={"Date": None})
    root = ET.fromstring(buffer.getvalue())  # the parser drops the prolog, the DOCTYPE and comments
    values = [value for element in root.iter() for value in element.attrib.values()]
    referenced = {name for value in values for name in _find_references(value)}
    for parent in list(root.iter()):
        for child in list(parent):
            # A <style> inside inline SVG would apply to the whole page; <metadata> holds only the program's name.
            if child.tag.endswith(("}style", "}metadata")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.text, element.tail = element.text if element.tag == "text" else None, None
        attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        element.attrib.clear()
        if attributes.get("id") not in referenced:
            attributes.pop("id", None)
        for name, value in attributes.items():
            if name == "id":
                value = f"{prefix}-{value}"
            elif name == "href":
                value = f"#{prefix}-{value[1:]}" if value.startswith("#") else _quantize_png(value)
            elif name == "style" and element.tag == "text":
                value = re.sub(r"font-family: [^;]*;? ?", "", value)
            elif name == "transform" and element.tag == "text" and value.startswith("rotate(-0 "):
                continue  # a rotation by zero
            element.set(name, re.sub(r"url\(#", f"url(#{prefix}-", value))
    width = figure.get_figwidth() * 72
    del root.attrib["width"], root.attrib["height"]
    root.set("xmlns", "http://www.w3.org/2000/svg")
    root.set("xml:space", "preserve")  # two spaces in a label stay two
    root.set("role", "img")
    root.set("aria-label", str(figure.get_label() or "figure"))
    root.set(
        "style",
        f"--natural:{width:.0f}pt;display:block;width:100%;max-width:var(--natural);height:auto;overflow:visible;"
        f"font-family:{_SVG_FONTS};stroke-linejoin:round;stroke-linecap:butt",
    )
    return ET.tostring(root, encoding="unicode")


def _find_references(value: str) -> list[str]:
    """The ids that an attribute's value refers to."""
    return re.findall(r"url\(#([^)]+)\)", value) + ([value[1:]] if value.startswith("#") else [])


def _quantize_png(uri: str) -> str:
    """The picture of a data URI with a palette of 128 colours, a quarter of the bytes for a scatter.

    A picture of up to 256 colours stays as it is: a colour bar would show steps.
    """
    from PIL import Image

    prefix = "data:image/png;base64,"
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(prefix)))) as picture:
        if picture.getcolors(256):
            return uri
        picture.quantize(128, method=Image.Quantize.FASTOCTREE).save(buffer, "PNG", optimize=True)
    return prefix + base64.b64encode(buffer.getvalue()).decode()
