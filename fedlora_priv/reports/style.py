"""How the HTML report looks: light and dark, on screen and on paper."""

STYLE = """\
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #17202b; --soft: #5a6675; --edge: #e1e6ec; --grid: #e9edf2;
  --primary: #2459c9; --secondary: #7a3fb5; --limit: #b4442c; --good: #2f8a5b; --warn: #b26a00;
  --bad: #c0261b;
  --up: #2459c9; --down: #a9c1ee; --in: #3f9c6d; --lost: #d9534a; --refused: #d99a2b; --out: #cfd6de;
  --warn-back: #fff6e3; --bad-back: #fdecea;
  --kind-values: #2459c9; --kind-votes: #7a3fb5; --kind-support: #3f9c6d; --kind-keys: #d99a2b;
  --kind-shares: #e3bf7d; --kind-framing: #9aa7b6;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #10151c; --card: #18202a; --ink: #e8edf3; --soft: #9aa7b6; --edge: #2a3542; --grid: #25303c;
    --primary: #7fa8ff; --secondary: #c79bf2; --limit: #ff9479; --good: #63c796; --warn: #f0b45a;
    --bad: #ff7d73;
    --up: #7fa8ff; --down: #3d5686; --in: #3f9c6d; --lost: #d9534a; --refused: #c58a24; --out: #364250;
    --warn-back: #2c2415; --bad-back: #341a18;
    --kind-values: #7fa8ff; --kind-votes: #c79bf2; --kind-support: #63c796; --kind-keys: #d99a2b;
    --kind-shares: #a5803f; --kind-framing: #667485;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);

  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: 36px 24px 56px; }
header p { margin: 0; color: var(--soft); }
h1 {
  margin: 2px 0 4px; font-size: 30px; line-height: 1.2; letter-spacing: -0.01em;
  overflow-wrap: anywhere;
}
h2 { margin: 38px 0 12px; font-size: 18px; }
h3 { margin: 0 0 2px; font-size: 15px; }
.eyebrow { font-size: 13px; letter-spacing: 0.06em; text-transform: uppercase; }
.banner {
  margin: 18px 0 0; padding: 11px 16px; border-left: 4px solid var(--warn);
  background: var(--warn-back); border-radius: 4px;
}
.banner.bad { border-color: var(--bad); background: var(--bad-back); }
.banner ul { margin: 4px 0 0; padding-left: 20px; }
.grid {
  display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr));
  margin-top: 22px;
}
.plots {
  display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr));
  margin-top: 16px;
}
.card {
  background: var(--card); border: 1px solid var(--edge); border-radius: 10px; padding: 16px 18px;
  min-width: 0;
}
.card .label { color: var(--soft); font-size: 13px; }
.card .value {
  font-size: 27px; font-weight: 650; line-height: 1.25; letter-spacing: -0.01em;
  font-variant-numeric: tabular-nums;
}
.card .value small { font-size: 17px; font-weight: 500; color: var(--soft); letter-spacing: 0; }
.card .detail { color: var(--soft); font-size: 13px; margin-top: 4px; }
.caption { color: var(--soft); font-size: 13px; margin: 0 0 8px; }
.key { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin: 0 5px 0 0; }
.key + span { margin-right: 12px; }
svg { display: block; width: 100%; height: auto; }
svg .grid { stroke: var(--grid); display: inline; }
svg text { font-size: 12px; fill: var(--soft); }
svg .end { text-anchor: end; }
svg .middle { text-anchor: middle; }
svg .note { font-weight: 600; paint-order: stroke; stroke: var(--card); stroke-width: 4px; stroke-linejoin: round; }
.line { fill: none; stroke-width: 2.2; stroke-linejoin: round; stroke-linecap: round; }
.primary { stroke: var(--primary); } .primary-dot { fill: var(--primary); }
.secondary { stroke: var(--secondary); } .secondary-dot { fill: var(--secondary); }
.faint { stroke: var(--secondary); stroke-width: 1; opacity: 0.35; }
.area { fill: var(--primary); opacity: 0.08; }
.level { stroke-width: 1.4; stroke-dasharray: 5 4; }
.level.limit { stroke: var(--limit); } svg .limit-text { fill: var(--limit); }
.level.quiet { stroke: var(--soft); } svg .quiet-text { fill: var(--soft); }
.bar-up { fill: var(--up); } .bar-down { fill: var(--down); }
.bar-values { fill: var(--kind-values); } .bar-votes { fill: var(--kind-votes); }
.bar-support { fill: var(--kind-support); } .bar-keys { fill: var(--kind-keys); }
.bar-shares { fill: var(--kind-shares); } .bar-framing { fill: var(--kind-framing); }
.cell-in { fill: var(--in); }
.cell-lost { fill: var(--lost); }
.cell-refused { fill: var(--refused); }
.cell-out { fill: var(--out); }
.mark { fill: none; stroke: #fff; stroke-width: 2; stroke-linecap: round; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td {
  text-align: left; padding: 7px 14px 7px 0; border-bottom: 1px solid var(--edge);
  vertical-align: top;
}
th { color: var(--soft); font-weight: 600; font-size: 13px; }
tr:last-child td { border-bottom: 0; }
td.number { white-space: nowrap; }
td.number, th.number { text-align: right; }
.bad-text { color: var(--bad); font-weight: 650; }
.good-text { color: var(--good); font-weight: 600; }
code {
  font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace;
  overflow-wrap: anywhere;
}
details summary { cursor: pointer; font-weight: 600; }
details[open] summary { margin-bottom: 8px; }
footer { margin-top: 34px; color: var(--soft); font-size: 13px; }
@media print {
  :root { --page: #fff; --card: #fff; --ink: #000; --soft: #444; --edge: #bbb; --grid: #ddd; }
  body { font-size: 11.5px; }
  main { max-width: none; padding: 0; }
  .card { break-inside: avoid; }
  .grid { grid-template-columns: repeat(4, 1fr); }
  .plots { grid-template-columns: 1fr 1fr; }
  .card .value { font-size: 19px; }
  h2 { break-after: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
