"""HTML that is escaped by construction, and the look of the report's page."""

import html


class Html(str):
    """Markup that is already escaped; any other string is text and gets escaped."""

    __slots__ = ()


def escape(value) -> Html:
    """Returns `value` as markup: unchanged if it is markup, else as escaped text."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def join(*children) -> Html:
    """Concatenates children, flattening sequences and dropping None."""
    parts = []
    for child in children:
        if child is None:
            continue
        nested = isinstance(child, list | tuple)
        parts.append(join(*child) if nested else escape(child))
    return Html("".join(parts))


def tag(element: str, *children, **attributes) -> Html:
    """Builds an element: `class_` is class, other underscores are hyphens."""
    opening = element
    for key, value in attributes.items():
        if value is not None:
            opening += f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
    if element in ("img", "input", "meta", "link", "br"):
        return Html(f"<{opening}>")
    return Html(f"<{opening}>{join(*children)}</{element}>")


def page(title: str, *body) -> Html:
    """Returns a whole standalone document, which fetches nothing."""
    head = join(
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Html(STYLE)),
    )
    content = tag("html", tag("head", head), tag("body", *body), lang="en")
    return Html(f"<!doctype html>\n{content}\n")


STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b2027; --muted: #5c6672;
  --line: #dde2e8; --grid: #e9edf1; --good: #13724a; --good-bg: #e2f4ea;
  --bad: #a8321f; --bad-bg: #fbe8e4; --neutral-bg: #eceff3;
  --c0: #1f5fd0; --c1: #d9700a; --c2: #12876a; --c3: #b0389a; --c4: #7a6a12;
  --c5: #c2293d; --c6: #0f86ac; --c7: #6b5bd2; --c8: #7b5a45; --c9: #6d7681;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #101419; --card: #181d24; --ink: #e6eaef; --muted: #98a3b0;
    --line: #2c343e; --grid: #252c35; --good: #62d49b; --good-bg: #14352a;
    --bad: #ff9a86; --bad-bg: #402019; --neutral-bg: #252c35;
    --c0: #6ea3ff; --c1: #ffa24a; --c2: #3fcfa4; --c3: #ee85d6; --c4: #d3bf4b;
    --c5: #ff7d8b; --c6: #52c6ea; --c7: #aa9dff; --c8: #cda389; --c9: #a9b3be;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans",
    Helvetica, Arial, sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: break-word;
}
main { max-width: 1120px; margin: 0 auto; padding: 24px 20px 64px; }
header p, .note { color: var(--muted); }
h1 { font-size: 15px; font-weight: 600; margin: 0; color: var(--muted); }
h2 { font-size: 20px; line-height: 1.3; margin: 36px 0 8px; }
h2 + .note { margin-top: -4px; }
h3 { font-size: 16px; margin: 0 0 2px; }
p { margin: 0 0 8px; max-width: 46em; }
.note { font-size: 14px; margin-bottom: 12px; }
.card {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 16px 18px; min-width: 0;
}
.verdict {
  margin-top: 10px; padding: 18px 22px; border-left: 6px solid var(--muted);
  display: flex; gap: 28px; align-items: center; justify-content: space-between;
}
.sample { flex: 0 0 240px; }
.sample img + img { margin-top: 2%; }
.verdict .sample p { font-size: 13px; margin-top: 6px; }
.quiet { color: var(--muted); }
.narrow { display: none; }
.verdict.better { border-left-color: var(--good); }
.verdict.worse { border-left-color: var(--bad); }
.verdict .headline {
  font-size: clamp(21px, 2.4vw, 27px); line-height: 1.25; font-weight: 650;
  margin: 8px 0 10px; max-width: none; text-wrap: balance; letter-spacing: -.01em;
}
.verdict p { margin-bottom: 3px; color: var(--muted); font-size: 14.5px; max-width: none; }
.verdict p.headline { color: var(--ink); }
.chip {
  display: inline-block; padding: 2px 10px; border-radius: 99px; font-size: 13px;
  font-weight: 600; background: var(--neutral-bg); color: var(--ink);
}
.chip.better { background: var(--good-bg); color: var(--good); }
.chip.worse { background: var(--bad-bg); color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 12px; margin: 12px 0; }
.tile { padding: 12px 16px; }
.tile b { display: block; font-size: 21px; line-height: 1.3; font-weight: 650; }
.tile span { display: block; font-size: 13px; line-height: 1.35; color: var(--muted); }
.pair { columns: 2; column-gap: 16px; }
.pair > * { break-inside: avoid; margin-bottom: 16px; }
.trio {
  display: grid; gap: 16px; grid-template-columns: repeat(3, minmax(0, 1fr));
}
figure { margin: 0; }
.trio figure { display: flex; flex-direction: column; justify-content: space-between; }
figcaption { margin-bottom: 10px; }
figcaption p { font-size: 14px; color: var(--muted); margin: 0; }
.legend {
  display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 13px; color: var(--muted);
  margin: 0 0 8px;
}
.legend svg { width: 14px; height: 14px; vertical-align: -2px; margin-right: 5px; }
svg { overflow: visible; }
svg.chart { display: block; width: 100%; height: auto; max-width: 560px; margin: 0 auto; }
svg text { fill: var(--muted); font-size: 12px; }
svg .axis { stroke: var(--line); } svg .grid { stroke: var(--grid); }
.dots { display: grid; grid-template-columns: minmax(120px, 270px) 1fr auto; }
.dots > * { border-top: 1px solid var(--grid); }
.dots .name { padding: 6px 14px 6px 0; font-size: 14px; line-height: 1.3;
  align-self: stretch; display: flex; align-items: center; }
.dots .name.main { font-weight: 650; }
.dots .value { padding: 0 0 0 18px; font-size: 13px; line-height: 18px; text-align: right;
  white-space: nowrap; display: flex; flex-direction: column; justify-content: center; }
.dots .value .soft { color: var(--muted); }
.track { position: relative; }
.track svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.dots .foot { width: 100%; }
.dots .foot { grid-column: 2; }
.dots .foot .axis { stroke: var(--muted); }
.mean { stroke: var(--card); stroke-width: 1.5; }
.hollow { fill: var(--card); }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: right; font-weight: 600; color: var(--muted); font-size: 13px;
  vertical-align: bottom; line-height: 1.3; }
th, td { padding: 8px 0 8px 18px; border-bottom: 1px solid var(--grid); }
td { text-align: right; vertical-align: top; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: normal; }
tbody tr:last-child td { border-bottom: 0; }
tr.main td { background: color-mix(in srgb, var(--c0) 7%, transparent); }
tr.main td:first-child { font-weight: 650; box-shadow: inset 3px 0 var(--c0);
  padding-left: 10px; }
tr.variant td:first-child { padding-left: 22px; color: var(--muted); }
td small { display: block; color: var(--muted); font-size: 12.5px; }
td .better { color: var(--good); font-weight: 600; }
td .worse { color: var(--bad); font-weight: 600; }
.scroll { overflow-x: auto; }
.heat { table-layout: fixed; }
.heat td, .heat th { padding: 4px 6px; text-align: center; font-size: 13px; }
.heat td.cell { border: 2px solid var(--card); border-radius: 6px; }
.heat th { overflow-wrap: break-word; }
.heat th:first-child { position: sticky; left: 0; background: var(--card);
  text-align: left; padding-left: 0; overflow-wrap: anywhere; }
.ablation td { white-space: normal; }
.plain td { white-space: normal; overflow-wrap: anywhere; padding: 5px 0 5px 14px; }
.plain td:first-child { padding-left: 0; }
.plain small { display: inline; margin-left: 6px; }
.plain tr:last-child td { border-bottom: 0; }
img { image-rendering: pixelated; display: block; height: auto; max-width: 100%; }
.tabs { position: absolute; opacity: 0; pointer-events: none; }
.tab-labels { display: flex; flex-wrap: wrap; gap: 6px; margin: 4px 0 14px; }
.tab-labels label {
  padding: 4px 12px; border-radius: 99px; font-size: 14px; cursor: pointer;
  border: 1px solid var(--line); color: var(--muted);
}
.gallery { display: grid; grid-template-columns: minmax(64px, auto) minmax(0, 1fr)
  minmax(0, 1fr); gap: 8px 18px; align-items: center; }
.gallery .class { font-size: 14px; max-width: 160px; }
.gallery .head { font-size: 13px; font-weight: 600; color: var(--muted); }
.gallery .synthetic { display: none; }
details { margin-top: 12px; } summary { cursor: pointer; font-weight: 600; }
details > :not(summary) { margin-top: 10px; }
code, pre { font: 13px/1.5 ui-monospace, "Liberation Mono", Menlo, monospace; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }
@media (max-width: 900px) { .trio { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
@media (max-width: 700px) {
  main { padding: 16px 12px 40px; }
  h2 { margin-top: 32px; }
  .card { padding: 14px; } .verdict { padding: 16px; }
  .pair { columns: 1; }
  svg.chart text { font-size: 15px; }
  .tiles, .trio { grid-template-columns: minmax(0, 1fr); }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px; }
  .tile { padding: 10px 12px; }
  .dots { grid-template-columns: minmax(0, 1fr) auto; }
  .dots .name { grid-column: 1 / -1; padding: 6px 0 0; }
  .dots .track, .dots .value { border-top: 0; }
  .dots .foot { grid-column: 1; }
  .verdict { display: block; }
  .sample { max-width: 300px; margin-top: 14px; }
  .narrow { display: inline; }
  .scroll:has(.results) { overflow: visible; }
  .results thead { display: none; }
  .results tr { display: block; padding: 10px 0; border-bottom: 1px solid var(--line); }
  .results tbody tr:last-child { border-bottom: 0; }
  .results td { display: flex; justify-content: space-between; gap: 16px; border: 0;
    padding: 2px 0; }
  .results td::before { content: attr(data-label); color: var(--muted); }
  .results td:first-child { display: block; font-weight: 600; padding-bottom: 4px; }
  .results td:first-child::before { content: none; }
  .results td.empty { display: none; }
  .results tr.main { background: color-mix(in srgb, var(--c0) 7%, transparent);
    margin: 0 -14px; padding: 10px 14px; box-shadow: inset 3px 0 var(--c0); }
  .results tr.main td { background: none; }
  .results tr.main td:first-child { box-shadow: none; padding-left: 0; }
  .results tr.variant td:first-child { padding-left: 0; }
  .gallery { grid-template-columns: minmax(0, 1fr); gap: 4px; }
  .gallery .head { display: none; }
  .gallery .class { margin-top: 10px; font-weight: 600; max-width: none; }
}
@media print { .card { break-inside: avoid; } }
"""
