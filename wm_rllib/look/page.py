"""The report: one HTML file that needs nothing but itself. Its Content-Security-Policy allows it to load nothing."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

from wm_rllib.look.verdict import RULES, Trust, Verdict

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
MARKS = {Trust.YES: "yes", Trust.WITH_CARE: "care", Trust.NO: "no", Trust.UNKNOWN: "unknown"}
WORDS = {Trust.YES: "yes", Trust.WITH_CARE: "with care", Trust.NO: "no", Trust.UNKNOWN: "not known"}


def text(value: Any) -> str:
    """Anything as text of a page."""
    return html.escape(str(value))


def section(title: str, *parts: str) -> str:
    """A headed part of the page; parts are HTML."""
    return f"<section><h2>{text(title)}</h2>{''.join(parts)}</section>"


def paragraph(words: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{text(words)}</p>"


def row_of(*parts: str) -> str:
    """Parts beside each other."""
    return f'<div class="row">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def image(uri: str, alt: str) -> str:
    """A picture in the page itself."""
    return f'<img src="{text(uri)}" alt="{text(alt)}">'


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table of plain values."""
    cells = "".join(f"<th>{text(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{text(value)}</td>" for value in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def folded(title: str, content: str) -> str:
    """A part that is shown when it is asked for."""
    return f"<details><summary>{text(title)}</summary>{content}</details>"


def verdict_box(verdict: Verdict) -> str:
    """The answer, its reasons, and the rules behind it."""
    findings = "".join(
        f'<li class="{MARKS[finding.trust]}"><b>{text(finding.name)}: {WORDS[finding.trust]}.</b> '
        f"{text(finding.words)}</li>"
        for finding in verdict.findings
    )
    rules = folded("How this was decided", "<ul>" + "".join(f"<li>{text(rule)}</li>" for rule in RULES) + "</ul>")
    return (
        f'<section class="verdict {MARKS[verdict.trust]}"><h2>{text(verdict.headline)}</h2>'
        f'<ul class="findings">{findings}</ul>{rules}</section>'
    )


def facts(values: Mapping[str, Any]) -> str:
    """Names and values in one line."""
    return (
        '<dl class="facts">'
        + "".join(f"<div><dt>{text(k)}</dt><dd>{text(v)}</dd></div>" for k, v in values.items())
        + "</dl>"
    )


def page(title: str, body: Iterable[str]) -> str:
    """The whole document."""
    style = resources.files("wm_rllib.look").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{style}</style></head>\n<body><main><h1>{text(title)}</h1>"
        f"{chr(10).join(body)}</main></body></html>\n"
    )
