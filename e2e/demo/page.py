# SPDX-License-Identifier: Apache-2.0
"""The demo's report as one self-contained HTML page, with the topology as inline SVG. Knows nothing of the lab."""

from collections.abc import Sequence
from html import escape

from e2e.demo.report import Box, Figure, Report, Step

STYLE = """
:root { --ink: #1c2733; --dim: #64748b; --line: #d8dee6; --good: #16794c; --bad: #b42318;
  --bar: #4a7fc1; --soft: #f5f7fa }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e2e8f0; --dim: #94a3b8; --line: #334155; --good: #4ade80; --bad: #f87171;
    --bar: #60a5fa; --soft: #1e293b }
  body { background: #0f172a }
}
body { color: var(--ink); font: 16px/1.5 system-ui, sans-serif; margin: 2.5rem auto; max-width: 60rem;
  padding: 0 1.5rem }
h1 { font-size: 1.7rem; margin: 0 } h2 { font-size: 1.1rem; margin: 0 }
.dim { color: var(--dim) } .good { color: var(--good) } .bad { color: var(--bad) }
section { border-top: 1px solid var(--line); margin-top: 1.5rem; padding-top: 1.2rem }
section header { align-items: baseline; display: flex; gap: .6rem }
section header .dim { margin-left: auto; font-size: .85rem }
p { margin: .35rem 0 } ul { margin: .4rem 0; padding-left: 1.2rem }
pre { background: var(--soft); border-radius: 6px; font: .82rem/1.5 ui-monospace, monospace; margin: .6rem 0;
  overflow-x: auto; padding: .6rem .8rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: .88rem; margin: .6rem 0 }
th { color: var(--dim); font-weight: 500; text-align: left }
th, td { padding: .15rem 1.4rem .15rem 0; white-space: nowrap }
td { font-family: ui-monospace, monospace; font-size: .82rem }
.bar { background: var(--bar); border-radius: 2px; height: .7rem; min-width: 1px }
svg { display: block; height: auto; margin: 1.5rem 0; width: 100% }
svg text { fill: var(--ink); font: 13px system-ui, sans-serif } svg .small { fill: var(--dim); font-size: 11px }
svg rect { fill: var(--soft); stroke: var(--line) } svg .pod { fill: none; stroke: var(--bar) }
svg line { stroke: var(--dim); stroke-width: 1.5 }
"""

BOX_WIDTH, GAP, POD_HEIGHT, LINE_HEIGHT, MARGIN = 270, 25, 44, 16, 12


def html(report: Report) -> str:
    """The page."""
    verdict = f"{len(report.failed)} of {len(report.steps)} steps failed" if report.failed else "every step succeeded"
    steps = "".join(_step(number, step) for number, step in enumerate(report.steps, 1))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(report.title)}</title>'
        '<meta name="viewport" content="width=device-width">'
        f"<style>{STYLE}</style><h1>{escape(report.title)}</h1>"
        f'<p class="dim">{escape(report.subtitle)}<br>{escape(report.circumstances)}</p>'
        f'<p class="{"bad" if report.failed else "good"}">{verdict}, in {report.took_s:.0f} s</p>'
        f"{_picture(report.boxes)}{steps}</html>\n"
    )


def _step(number: int, step: Step) -> str:
    mark = '<span class="bad">✗</span>' if step.failure else '<span class="good">✓</span>'
    did = f"<pre>{escape(chr(10).join(step.did))}</pre>" if step.did else ""
    seen = "".join(f"<li>{escape(line)}</li>" for line in step.seen)
    took = f'<span class="dim">{step.took_s:.1f} s</span>'
    return (
        f"<section><header>{mark}<h2>{number}. {escape(step.title)}</h2>{took}</header>"
        f"<p>{escape(step.claim)}</p>{did}{''.join(map(_table, step.figures))}"
        + (f"<ul>{seen}</ul>" if seen else "")
        + (f'<p class="bad">{escape(step.failure)}</p>' if step.failure else "")
        + "</section>"
    )


def _table(figure: Figure) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in figure.columns)
    return (
        f'<div class="scroll"><table><tr>{head}</tr>{"".join(_row(figure, row) for row in figure.rows)}</table></div>'
    )


def _row(figure: Figure, row: Sequence[str]) -> str:
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
    if figure.bar_of:
        cells += f'<td><div class="bar" style="width:{260 * figure.share(row):.0f}px"></div></td>'
    return f"<tr>{cells}</tr>"


def _picture(boxes: Sequence[Box]) -> str:
    """The switch as a line, and a box below it for each node and client, with their pods inside."""
    if not boxes:
        return ""
    width = len(boxes) * (BOX_WIDTH + GAP) + GAP
    heights = [_box_height(box) for box in boxes]
    parts = [f'<line x1="{GAP}" y1="30" x2="{width - GAP}" y2="30"/><text x="{GAP}" y="20">the switch</text>']
    for index, (box, height) in enumerate(zip(boxes, heights, strict=True)):
        parts.append(_box(box, GAP + index * (BOX_WIDTH + GAP), height))
    return f'<svg viewBox="0 0 {width} {max(heights) + 85}" role="img" aria-label="Topology">{"".join(parts)}</svg>'


def _box_height(box: Box) -> int:
    return 2 * MARGIN + LINE_HEIGHT * (1 + len(box.lines)) + len(box.pods) * (POD_HEIGHT + 8)


def _box(box: Box, left: int, height: int) -> str:
    top, middle = 70, left + BOX_WIDTH // 2
    parts = [f'<line x1="{middle}" y1="30" x2="{middle}" y2="{top}"/>']
    parts.append(f'<rect x="{left}" y="{top}" width="{BOX_WIDTH}" height="{height}" rx="8"/>')
    y = top + MARGIN + LINE_HEIGHT - 4
    parts.append(f'<text x="{left + MARGIN}" y="{y}" font-weight="600">{escape(box.name)}</text>')
    for line in box.lines:
        y += LINE_HEIGHT
        parts.append(f'<text class="small" x="{left + MARGIN}" y="{y}">{escape(line)}</text>')
    y += MARGIN
    for name, address in box.pods:
        width = BOX_WIDTH - 2 * MARGIN
        parts.append(
            f'<rect class="pod" x="{left + MARGIN}" y="{y}" width="{width}" height="{POD_HEIGHT}" rx="5"/>'
            f'<text x="{left + 2 * MARGIN}" y="{y + 18}">{escape(name)}</text>'
            f'<text class="small" x="{left + 2 * MARGIN}" y="{y + 34}">{escape(address)}</text>'
        )
        y += POD_HEIGHT + 8
    return "".join(parts)
