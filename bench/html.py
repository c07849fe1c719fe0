"""The report as one HTML page: plots as inline SVG of our own, each with its numbers as a table beneath.

No script, nothing fetched, light or dark as the system is. Plots that a measurement has no numbers for are left out.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import accumulate

import msgspec

from triops.bench.report import latency, machine_line, remarks, rows
from triops.bench.stats import Interval, percentile, summarise
from triops.bench.turns import GATEWAY_PHASE, Record, Result

GOOD_MS = 100.0
"""From here on a person feels a wait: slower answers are no goodput."""
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM, BAR = 420, 250, 44, 14, 12, 40, 22
CURVE = 200
"""Points of one ECDF; more are not seen."""
PARTS = 10
"""Rows of a timeline's table."""
STYLE = """
:root{color-scheme:light dark;--ink:#1c1e21;--soft:#565d68;--line:#d9dce1;--page:#fff;
--s0:#2563eb;--s1:#c2560a;--s2:#15803d;--s3:#9333ea;--s4:#db2777;--s5:#0e7490}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8eb;--soft:#a7b0bc;--line:#353b44;--page:#15181c;
--s0:#6ea8fe;--s1:#ffa94d;--s2:#51cf66;--s3:#c79bff;--s4:#f783ac;--s5:#3bc9db}}
body{background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif;max-width:1240px;margin:16px auto;
padding:0 12px}
h1{font-size:22px}h2{margin:28px 0 8px;font-size:18px}code{overflow-wrap:anywhere}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}
th,td{padding:2px 10px 2px 0;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th:first-child,td:first-child,.wide>table.lead td:nth-child(2),.wide>table.lead th:nth-child(2){text-align:left}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(380px,100%),1fr));gap:24px}
figure{margin:0;min-width:0}figcaption{font-weight:600}ul{list-style:none;margin:0;padding:0;font-size:13px}
li{display:inline-block;margin-right:18px}li:before{content:"";display:inline-block;width:12px;height:12px;
border-radius:3px;background:var(--c);margin-right:6px;vertical-align:-1px}
summary{font-size:13px;color:var(--soft);cursor:pointer}
svg{width:100%;height:auto;display:block}text{fill:var(--soft);font-size:13px}.grid{stroke:var(--line)}
.curve{fill:none;stroke:var(--c);stroke-width:2}.dots{fill:none;stroke:var(--c);stroke-width:4;stroke-linecap:round;
opacity:.6}.spot,.bar{fill:var(--c)}.dash{stroke-dasharray:5 4}.spread{stroke:var(--ink);stroke-width:2}
.limit{stroke:var(--ink);stroke-dasharray:2 4}
"""
HEAD = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"/><meta name="viewport" content="width=device-width"/>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"/>
<title>triops bench</title><style>{STYLE}</style></head>
"""
Point = tuple[float, float]
Rows = Sequence[Sequence[str]]
"""Of a table; the first is its head."""
Bar = tuple[str, float, float, str]
"""Name, from, to, color."""
Colors = Mapping[str, str]
Groups = Mapping[str, Sequence[Record]]
"""Turns that ended well, by subject."""


class Scale(msgspec.Struct, frozen=True):
    """From values to places on the page."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = math.log(max(value, self.low)) if self.log else value
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """Round values inside, few enough to be read."""
        if self.log and self.high > 2 * self.low:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            few = (1, 2, 5) if self.high < 1000 * self.low else (1,)
            steps = range(1, 9) if self.high < 6 * self.low else few
            return [found for d in decades for s in steps if self.low <= (found := s * 10.0**d) <= self.high]
        step = 10 ** math.floor(math.log10((self.high - self.low) / 4))
        step *= next(factor for factor in (1, 2, 5, 10) if (self.high - self.low) / (step * factor) <= 6)
        return [step * n for n in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def page(command: str, machine: Mapping[str, str], results: Sequence[Result], records: Sequence[Record]) -> str:
    """The report, whole."""
    colors = {name: f"--c:var(--s{n % 6})" for n, name in enumerate(dict.fromkeys(r.subject for r in results))}
    groups: dict[str, dict[str, list[Record]]] = {}
    valid = [result for result in results if not result.invalid]
    plotted = {(result.scenario, result.subject) for result in valid}
    for record in records:
        if record.good and record.times and (record.scenario, record.subject) in plotted:
            groups.setdefault(record.scenario, {}).setdefault(record.subject, []).append(record)
    sections = [_section("Over all scenarios", [_overheads(valid, colors), _concurrency(groups, valid, colors)])]
    for scenario, by_subject in groups.items():
        found = [result for result in valid if result.scenario == scenario]
        sections.append(
            _section(scenario, [_ecdf(by_subject, colors), _timeline(by_subject, colors), _waterfall(found, colors)])
        )
    lead = f"<p><code>{escape(command)}</code><br/>{escape(machine_line(machine))}</p>"
    lead += _table(rows(results), "lead") + "".join(f"<p>{escape(line)}</p>" for line in remarks(results))
    return f"{HEAD}<body><h1>triops bench</h1>{lead}{''.join(sections)}</body></html>\n"


def _section(title: str, plots: Sequence[str]) -> str:
    body = "".join(plots)
    return f'<h2>{escape(title)}</h2><div class="plots">{body}</div>' if body else ""


def _table(cells: Rows, kind: str = "") -> str:
    tags = ["th", *["td"] * (len(cells) - 1)]
    lines = ("".join(f"<{tag}>{escape(c)}</{tag}>" for c in row) for tag, row in zip(tags, cells, strict=True))
    return f'<div class="wide"><table class="{kind}">{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def _figure(title: str, svg: str, legend: Mapping[str, str], numbers: Rows, height: float = HEIGHT) -> str:
    """With a legend of texts and their colors; `numbers` say the same as the picture."""
    keys = "".join(f'<li style="{color}">{escape(name)}</li>' for name, color in legend.items())
    described = "; ".join([*legend]) or "; ".join(" ".join(row) for row in numbers[1:])
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>{f'<ul>{keys}</ul>' if keys else ''}"
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img"><title>{escape(title)}</title>'
        f"<desc>{escape(described)}</desc>{svg}</svg>"
        f"<details><summary>The numbers</summary>{_table(numbers)}</details></figure>"
    )


def _axes(x: Scale, y: Scale, unit: str, *, at: Sequence[float] = ()) -> str:
    parts = [_text((x.start + x.end) / 2, y.start + 33, unit, "middle")]
    for tick in at or x.ticks():
        parts.append(_line([(x(tick), y.start), (x(tick), y.end)], "grid"))
        parts.append(_text(x(tick), y.start + 17, f"{tick:g}", "middle"))
    for tick in y.ticks():
        parts.append(_line([(x.start, y(tick)), (x.end, y(tick))], "grid"))
        parts.append(_text(x.start - 6, y(tick) + 4, f"{tick:g}", "end"))
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(points: Sequence[Point], kind: str, color: str = "") -> str:
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path class="{kind}" style="{color}" d="{path}"/>'


def _spot(x: float, y: float, color: str) -> str:
    return f'<circle class="spot" style="{color}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'


def _ms(values: Sequence[float], *, upright: bool = False) -> Scale:
    """A logarithmic scale for times, a little wider than they are."""
    ends = (HEIGHT - BOTTOM, TOP) if upright else (LEFT, WIDTH - RIGHT)
    return Scale(max(min(values), 1e-3) * 0.9, max(*values, 2e-3) * 1.1, *ends, log=True)


def _latencies(by_subject: Groups) -> dict[str, list[float]]:
    return {name: [latency(record) for record in records] for name, records in by_subject.items()}


def _ecdf(by_subject: Groups, colors: Colors) -> str:
    found = _latencies(by_subject)
    x, y = _ms([value for values in found.values() for value in values]), Scale(0, 100, HEIGHT - BOTTOM, TOP)
    parts, legend = [_axes(x, y, "ms")], dict[str, str]()
    numbers = [["subject", *(f"p{percent}" for percent in range(10, 100, 10)), "p95", "p99", "turns"]]
    for name, values in found.items():
        shares = [100 * n / CURVE for n in range(CURVE + 1)]
        parts.append(_line([(x(percentile(values, s)), y(s)) for s in shares], "curve", colors[name]))
        summary = summarise(values)
        marks = {p: at for p, at in ((50, summary.p50), (95, summary.p95), (99, summary.p99)) if at is not None}
        parts += [_spot(x(value), y(percent), colors[name]) for percent, value in marks.items()]
        legend[f"{name}: " + ", ".join(f"p{p} {v:.2f}" for p, v in marks.items())] = colors[name]
        spread = [f"{percentile(values, percent):.2f}" for percent in range(10, 100, 10)]
        spread += [f"{marks[p]:.2f}" if p in marks else "–" for p in (95, 99)]
        numbers.append([name, *spread, str(len(values))])
    return _figure("Share of turns that were over, in %", "".join(parts), legend, numbers)


def _timeline(by_subject: Groups, colors: Colors) -> str:
    """Each turn where it was sent: moods of the machine and pauses show."""
    begun = min(record.turn.sent for records in by_subject.values() for record in records)
    turns = {n: [((r.turn.sent - begun) / 1e9, latency(r)) for r in found] for n, found in by_subject.items()}
    x = Scale(0, max(1e-3, *(sent for found in turns.values() for sent, _ in found)), LEFT, WIDTH - RIGHT)
    y = _ms([wait for found in turns.values() for _, wait in found], upright=True)
    parts, numbers = [_axes(x, y, "seconds")], [["subject", "from s", "to s", "turns", "median ms", "longest"]]
    for name, found in turns.items():
        path = "".join(f"M{x(sent):.1f} {y(wait):.1f}h0" for sent, wait in found)
        parts.append(f'<path class="dots" style="{colors[name]}" d="{path}"/>')
        for part in range(PARTS):
            low, high = x.high * part / PARTS, x.high * (part + 1) / PARTS
            within = [wait for sent, wait in found if low <= sent < high or sent == high == x.high]
            times = [f"{percentile(within, 50):.2f}", f"{max(within):.2f}"] if within else ["–", "–"]
            numbers.append([name, f"{low:.1f}", f"{high:.1f}", str(len(within)), *times])
    return _figure("Latency of each turn over time, in ms", "".join(parts), {n: colors[n] for n in turns}, numbers)


def _waterfall(results: Sequence[Result], colors: Colors) -> str:
    """The phases one below the other, from the send to the final; medians, which do not quite add up."""
    bars: list[Bar] = []
    for result in results:
        p50 = {name: found.p50 for name, found in result.metrics.items()}
        if not {"model_request", "model", "total", "last_byte_to_final"} <= p50.keys():
            continue
        asked, total = p50["model_request"], p50["total"]
        last = total - p50["last_byte_to_final"]
        spans = {
            "ack": (0.0, p50.get("ack", 0.0)),
            "to the model": (0.0, asked),
            "model": (asked, asked + p50["model"]),
        }
        if "first_byte_to_delta" in p50:
            spans["byte → delta"] = (p50["first_delta"] - p50["first_byte_to_delta"], p50["first_delta"])
        spans |= {"last byte → final": (last, total)}
        inside = {name: ms for name, ms in p50.items() if name.startswith(GATEWAY_PHASE) and ms}
        ends = accumulate(inside.values())
        spans |= {name: (end - ms, end) for (name, ms), end in zip(inside.items(), ends, strict=True)}
        bars += [(f"{result.subject}: {name}", *span, colors[result.subject]) for name, span in spans.items()]
    return _bars("Where the time of a turn went, medians in ms", bars)


def _overheads(results: Sequence[Result], colors: Colors) -> str:
    """The bar is the median, the line its interval."""
    found = [(result, result.metrics["overhead"].p50) for result in results if "overhead" in result.metrics]
    bars = [(f"{result.scenario}, {result.subject}", 0.0, p50, colors[result.subject]) for result, p50 in found]
    spreads = [result.overhead_interval or Interval(p50, p50) for result, p50 in found]
    return _bars("Overhead over the model's own time: median in ms, 95 % interval", bars, spreads)


def _bars(title: str, bars: Sequence[Bar], spreads: Sequence[Interval] = ()) -> str:
    if not bars:
        return ""
    height, longest = TOP + BAR * len(bars) + BOTTOM, max(len(name) for name, *_ in bars)
    farthest = max(*(end for _, _, end, _ in bars), *(spread.high for spread in spreads), 1e-3)
    x = Scale(0, farthest * 1.25, min(7 * longest + 12, WIDTH / 2), WIDTH - RIGHT)
    parts = [_line([(x(t), TOP), (x(t), height - BOTTOM)], "grid") for t in x.ticks()]
    parts += [_text(x(t), height - BOTTOM + 17, f"{t:g}", "middle") for t in x.ticks()]
    numbers = [["", "low", "median", "high"] if spreads else ["", "from ms", "to ms", "ms"]]
    for place, (name, start, end, color) in enumerate(bars):
        top, right, cells = TOP + BAR * place, end, (start, end, end - start)
        box = f'x="{x(start):.1f}" y="{top}" width="{max(x(end) - x(start), 1):.1f}" height="16"'
        parts += [_text(x.start - 8, top + 13, name, "end"), f'<rect class="bar" style="{color}" {box} rx="2"/>']
        if spreads:
            low, high = spreads[place].low, spreads[place].high
            parts.append(_line([(x(low), top + 8), (x(high), top + 8)], "spread"))
            right, cells = max(end, high), (low, end, high)
        parts.append(_text(x(right) + 5, top + 13, f"{end - start:.2f}"))
        numbers.append([name, *(f"{cell:.2f}" for cell in cells)])
    return _figure(title, "".join(parts), {}, numbers, height)


def _concurrency(groups: Mapping[str, Groups], results: Sequence[Result], colors: Colors) -> str:
    """Latency by the number of turns at once, and the line beyond which an answer is too late to be goodput.

    Only of scenarios that differ in nothing but that number.
    """
    found: dict[str, dict[int, tuple[list[float], float]]] = {}
    for result in results:
        values = _latencies(groups.get(result.scenario, {})).get(result.subject)
        if result.at_once and values:
            found.setdefault(result.subject, {})[result.at_once] = (values, result.turns_per_second)
    if len(counts := sorted({count for points in found.values() for count in points})) < 2:
        return ""
    x = Scale(counts[0] * 0.9, counts[-1] * 1.1, LEFT, WIDTH - RIGHT, log=True)
    shown = [percentile(values, p) for points in found.values() for values, _ in points.values() for p in (50, 99)]
    y = _ms([*shown, GOOD_MS * 1.5], upright=True)
    parts, numbers = (
        [_axes(x, y, "turns at once", at=counts)],
        [["subject", "at once", "p50", "p99", "turns/s", "good/s"]],
    )
    for name, points in found.items():
        for percent, kind in ((50, "curve"), (99, "curve dash")):
            line = [(x(n), y(percentile(points[n][0], percent))) for n in sorted(points)]
            parts += [_line(line, kind, colors[name]), *(_spot(*point, colors[name]) for point in line)]
        for n, (values, rate) in sorted(points.items()):
            good = rate * sum(value <= GOOD_MS for value in values) / len(values)
            times = (f"{percentile(values, percent):.2f}" for percent in (50, 99))
            numbers.append([name, str(n), *times, f"{rate:.0f}", f"{good:.0f}"])
    parts.append(_line([(x.start, y(GOOD_MS)), (x.end, y(GOOD_MS))], "limit"))
    parts.append(_text(x.start + 6, y(GOOD_MS) - 5, f"goodput ends at {GOOD_MS:.0f} ms"))
    title = "Latency by turns at once, p50 and (dashed) p99 in ms"
    return _figure(title, "".join(parts), {name: colors[name] for name in found}, numbers)
