"""The style sheet of the HTML report: light and dark, nothing loaded from outside."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --raised: #f6f7f9; --ink: #1a1f29; --muted: #5c6675;
  --line: #dde1e7; --accent: #2456a6; --good: #1d7a46; --bad: #b3363f;
  --c0: #2f63b5; --c1: #cf3f53; --c2: #24845a; --c3: #a87400;
  --c4: #7a4fb0; --c5: #0f8796; --c6: #a3562a; --c7: #6b7280;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171c; --raised: #1c2027; --ink: #e8ebf0; --muted: #9aa4b2;
    --line: #313843; --accent: #86b2ff; --good: #6fd39b; --bad: #ff8e95;
    --c0: #7aa9f5; --c1: #ff8391; --c2: #62c796; --c3: #e0b64a;
    --c4: #b995ea; --c5: #5bcbd9; --c6: #dd9c6e; --c7: #a4adba;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
main, header, footer { max-width: 62rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; }
.eyebrow { color: var(--muted); font-size: .875rem; margin: 0; }
h1 { font-size: 1.7rem; line-height: 1.25; font-weight: 650; margin: .35rem 0 .5rem;
  text-wrap: balance; letter-spacing: -.01em; }
.lead { font-size: 1.05rem; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; font-weight: 650; margin: 2.75rem 0 .25rem; }
h3 { font-size: 1rem; font-weight: 650; margin: 1.25rem 0 .25rem; }
p { margin: .35rem 0; }
.note, figcaption, footer { color: var(--muted); font-size: .875rem; }
.note { max-width: 46rem; }
a { color: var(--accent); }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); font-size: .875rem; }
th, td { text-align: right; padding: .34rem .5rem; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: .5rem; }
thead th { color: var(--muted); font-weight: 500; font-size: .8125rem;
  vertical-align: bottom; }
tbody th { font-weight: 500; }
tbody th small { display: block; color: var(--muted); font-weight: 400;
  font-size: .78rem; line-height: 1.3; white-space: normal; min-width: 11rem; }
tr.own { background: var(--raised); }
tr.own th, tr.own td { font-weight: 650; }
tr.own th:first-child { box-shadow: inset 3px 0 var(--accent); }
tfoot th, tfoot td { border-bottom: 0; font-weight: 600; }
td.best { color: var(--accent); font-weight: 650; }
td.absent { color: var(--muted); }
td.wrapped { text-align: left; white-space: normal; min-width: 12rem; }
td.narrow { white-space: normal; min-width: 7rem; line-height: 1.25; }
td.draw { padding-top: .15rem; padding-bottom: .15rem; }
td.draw svg { display: block; }
.good { color: var(--good); } .bad { color: var(--bad); }
.bar { fill: var(--accent); } .bar.minus { fill: var(--c1); }
.rule { stroke: var(--muted); stroke-width: 1; }
.rule.mean { stroke-dasharray: 2 2; }
.range { stroke: var(--muted); stroke-width: 2; stroke-linecap: round; }
.dot { fill: var(--muted); }
.own .range { stroke: var(--accent); stroke-width: 3; }
.own .dot { fill: var(--accent); }
.pair { display: grid; gap: 1.5rem 2rem; margin-top: .5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
figure { margin: .5rem 0 0; }
figure svg { width: 100%; height: auto; display: block; }
figure.wide { max-width: 42rem; }
figure.wide text { paint-order: stroke; stroke: var(--paper); stroke-width: 2.5px;
  stroke-linejoin: round; }
details { border-top: 1px solid var(--line); padding: .6rem 0; }
details:last-of-type { border-bottom: 1px solid var(--line); }
summary { cursor: pointer; font-weight: 550; }
summary .note { font-weight: 400; margin-left: .5rem; }
.targets thead th { white-space: normal; min-width: 4.5rem; line-height: 1.25; }
.settings td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.settings th { text-align: left; font-weight: 400; color: var(--muted); width: 40%; }
footer { margin-top: 3rem; padding-bottom: 3rem; }
@media print { details > * { display: block; } header { padding-top: 0; } }
"""
