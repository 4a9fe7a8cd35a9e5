"""The style sheet of the report: inlined, no fonts or files from elsewhere, light and dark, wide and narrow."""

__all__ = ["CSS"]

CSS = """
:root { color-scheme: light dark; --ground: #f6f7f9; --card: #ffffff; --ink: #1b2733; --quiet: #5b6875; --line: #dfe4e9;
  --accent: #0072b2; --accent-soft: #0072b23d; --baseline: #c77700; --note: #fff6e0; --note-line: #e69f00; }
@media (prefers-color-scheme: dark) { :root { --ground: #12171c; --card: #1b2229; --ink: #e6ebf0; --quiet: #9aa7b4;
  --line: #303a44; --accent: #56b4e9; --accent-soft: #56b4e947; --baseline: #f0b040; --note: #2d2616; --note-line: #b98512; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 56px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 6px; }
h2 { font-size: 1.25rem; margin: 0 0 12px; }
h3 { font-size: 1.05rem; margin: 0 0 4px; }
p { margin: 0 0 10px; }
.quiet { color: var(--quiet); }
.small { font-size: .875rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 20px 22px; margin-top: 20px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); gap: 16px; margin-top: 20px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 16px 20px; }
.card .value { font-size: 2.3rem; font-weight: 650; line-height: 1.15; font-variant-numeric: tabular-nums; }
.scale { position: relative; height: 26px; margin: 12px 0 2px; }
.scale i { position: absolute; display: block; }
.scale .track { inset: 11px 0; height: 4px; border-radius: 2px; background: var(--line); }
.scale .range { top: 7px; height: 12px; border-radius: 6px; background: var(--accent-soft); }
.scale .mark { top: 2px; width: 4px; height: 22px; margin-left: -2px; border-radius: 2px; background: var(--accent); }
.scale .base { top: 5px; width: 4px; height: 16px; margin-left: -2px; border-radius: 2px; background: var(--baseline); }
.scale .chance { top: 5px; height: 16px; margin-left: -1px; border-left: 2px dotted var(--quiet); }
.ends { display: flex; justify-content: space-between; }
.key { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 5px; background: var(--accent); }
.key.base { background: var(--baseline); }
.key.chance { background: none; border-left: 2px dotted var(--quiet); border-radius: 0; width: 4px; }
.keys { display: flex; flex-wrap: wrap; gap: 4px 20px; margin-top: 12px; }
.note { background: var(--note); border-left: 4px solid var(--note-line); }
.scroll { overflow-x: auto; }
td:has(> .key) { position: relative; padding-left: 16px; }
td > .key { position: absolute; left: 0; top: 14px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: 7px 12px 7px 0; border-bottom: 1px solid var(--line); text-align: right; }
th { color: var(--quiet); font-weight: 550; font-size: .875rem; white-space: nowrap; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
th:last-child, td:last-child { padding-right: 0; }
tr:last-child td { border-bottom: none; }
table.pairs td { text-align: left; vertical-align: top; overflow-wrap: anywhere; }
table.pairs td:first-child { color: var(--quiet); width: 34%; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr)); gap: 20px; align-items: start; }
.columns.wide { grid-template-columns: repeat(auto-fit, minmax(min(460px, 100%), 1fr)); }
figure { margin: 0; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; background: #fff; border-radius: 8px;
  border: 1px solid var(--line); }
figcaption { color: var(--quiet); font-size: .875rem; margin-top: 6px; text-align: center; }
.scroll + p { margin-top: 14px; }
figure.wide { overflow-x: auto; }
figure.wide img { min-width: 430px; }
figure.large img { min-width: 720px; }
.tag { display: inline-block; padding: 0 7px; border-radius: 9px; background: var(--note); border: 1px solid var(--note-line);
  font-size: .8125rem; white-space: nowrap; }
table.lines td { vertical-align: top; white-space: nowrap; }
table.lines td:first-child { min-width: 120px; max-width: min(240px, 40vw); white-space: normal; overflow-wrap: anywhere; }
h3.encoder { margin: 18px 0 8px; }
.slide { padding-top: 18px; margin-top: 18px; border-top: 1px solid var(--line); }
.slide:first-of-type { border-top: none; margin-top: 0; padding-top: 0; }
@media (max-width: 560px) { main { padding: 16px 10px 36px; } section, .card { padding: 14px; } h1 { font-size: 1.5rem; }
  th, td { padding-right: 10px; font-size: .875rem; } table.pairs td:first-child { width: 40%; } }
@media print { body { background: #fff; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  main { max-width: none; padding: 0; } section { border: none; padding: 12px 0; } figure, tr, .card { break-inside: avoid; }
  h2, h3 { break-after: avoid; } .scroll, figure.wide { overflow: visible; }
  figure.wide img, figure.large img { min-width: 0; } table { font-size: .7rem; }
  th, table .small, .tag { font-size: .66rem; } th, td { padding-right: 6px; white-space: normal; }
  table.lines td:first-child { min-width: 0; max-width: 24vw; } }
"""
