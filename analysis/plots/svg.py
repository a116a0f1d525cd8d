"""A figure as inline SVG: responsive, the same bytes every time, ids of its own, text as text."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

from clsprobe.analysis.plots.style import house_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# In SVG the reader's own machine draws the text, in the font of its interface; it is narrower than DejaVu Sans, in
# which the margins are measured, so that nothing is cut.
_SVG_FONTS = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,'Noto Sans',sans-serif"


def svg(figure: Figure, *, prefix: str) -> str:
    """The figure as inline SVG, byte-identical on every call: text as text, ids that begin with `prefix`, no request.

    The element stretches to its container and not beyond the figure's own width, which CSS reads as ``--natural``.
    """
    if not re.fullmatch(r"[A-Za-z][\w-]*", prefix):
        raise ValueError(f"svg: prefix {prefix!r} is no id; letters, digits, - and _ only, a letter first")
    buffer = io.BytesIO()
    with house_style():
        figure.savefig(buffer, format="svg", dpi=180, metadata={"Date": None})
    root = ET.fromstring(buffer.getvalue())  # the parser drops the prolog, the DOCTYPE and comments
    used = {name for element in root.iter() for value in element.attrib.values() for name in _references(value)}
    for parent in list(root.iter()):
        for child in list(parent):
            # A <style> inside inline SVG would rule the whole page; <metadata> holds only the program's name.
            if child.tag.endswith(("}style", "}metadata")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.text, element.tail = element.text if element.tag == "text" else None, None
        attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        element.attrib.clear()
        if attributes.get("id") not in used:
            attributes.pop("id", None)
        for name, value in attributes.items():
            if name == "id":
                value = f"{prefix}-{value}"
            elif name == "href":
                value = f"#{prefix}-{value[1:]}" if value.startswith("#") else _lighter(value)
            elif name == "style" and element.tag == "text":
                value = re.sub(r"font-family: [^;]*;? ?", "", value)
            elif name == "transform" and element.tag == "text" and value.startswith("rotate(-0 "):
                continue  # turned by nothing
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


def _references(value: str) -> list[str]:
    """The ids an attribute points to."""
    return re.findall(r"url\(#([^)]+)\)", value) + ([value[1:]] if value.startswith("#") else [])


def _lighter(image: str) -> str:
    """The same picture as a data URI with a palette of 128 colours: a quarter of the bytes for points on a blank.

    A colour bar has few colours already and would show steps.
    """
    from PIL import Image

    kind = "data:image/png;base64,"
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(image.removeprefix(kind)))) as picture:
        if picture.getcolors(256):
            return image
        picture.quantize(128, method=Image.Quantize.FASTOCTREE).save(buffer, "PNG", optimize=True)
    return kind + base64.b64encode(buffer.getvalue()).decode()
