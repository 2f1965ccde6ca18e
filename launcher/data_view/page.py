"""Makes a page of one file from the description of a run's data. The board's own modules draw it."""

from __future__ import annotations

import re
from html import escape
from importlib.resources import files

from .view import DataView

MODULES = ("dom.js", "data.js")
OF_MODULES = re.compile(r"(?m)^import .*;$|^export ")
MAIN = """
const view = JSON.parse(document.getElementById("view").textContent);
document.querySelector("main").append(h("section", { class: "card" }, ...dataParts(view)));
"""
PAGE = """<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <meta name="viewport" content="width=device-width, initial-scale=1">
    <meta name="color-scheme" content="light dark">
    <meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
    <title>{title}</title>
    <style>{style}</style>
  </head>
  <body>
    <main><h1>{title}</h1><noscript>This page needs JavaScript. `gemfleet data` shows the same.</noscript></main>
    <script type="application/json" id="view">{view}</script>
    <script type="module">{script}</script>
  </body>
</html>
"""


def page(view: DataView) -> str:
    """The page. It loads nothing from anywhere."""
    folder = files("gemfleet.launcher") / "api" / "dashboard"
    modules = [(folder / name).read_text(encoding="utf-8") for name in MODULES]
    script = "\n".join([*(OF_MODULES.sub("", text) for text in modules), MAIN])
    style = (folder / "app.css").read_text(encoding="utf-8")
    title = "Data: " + ", ".join(found.path for found in view.sets if found.use == "train")
    # Inside a script element, `<` could end it or begin a comment.
    content = view.model_dump_json().replace("<", "\\u003c")
    return PAGE.format(title=escape(title), style=style, view=content, script=script)
