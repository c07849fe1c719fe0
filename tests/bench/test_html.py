import re
from xml.etree import ElementTree

import pytest
from tests.bench.test_output import blocks
from tests.bench.test_turns import block

from triops.bench.html import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Scale, page
from triops.bench.turns import Block, results

PLOTS = [
    "Overhead over the model's own time: median in ms, 95 % interval",
    "Latency by turns at once, p50 and (dashed) p99 in ms",
    *[
        "Share of turns that were over, in %",
        "Latency of each turn over time, in ms",
        "Where the time of a turn went, medians in ms",
    ]
    * 2,
]


def made(found: list[Block], command: str = "") -> str:
    return page(command, {}, results(found), [record for block in found for record in block.records])


def captions(page: str) -> list[str]:
    return [found.text or "" for found in ElementTree.fromstring(page).iter("figcaption")]


def test_the_page_has_every_plot_and_fetches_nothing():
    page = made(blocks(), "bench --start '<b>'")
    assert captions(page) == PLOTS
    assert not re.search(r"https?:|src=|href=|@import|url\(|<script|nan", page)
    assert "prefers-color-scheme:dark" in page
    assert "bench --start &#x27;&lt;b&gt;&#x27;" in page


def test_each_plot_is_named_described_and_told_again_as_a_table():
    for figure in ElementTree.fromstring(made(blocks())).iter("figure"):
        assert figure.findtext("svg/title") == figure.findtext("figcaption")
        assert figure.findtext("svg/desc")
        rows = figure.findall("details//tr")
        assert len(rows) > 1
        assert {len(row) for row in rows} == {len(rows[0])}


def test_percentiles_stand_in_the_legend_and_goodput_in_the_table():
    page = made(blocks())
    assert "triops: p50 4.00<" in page, "of eight turns no p99 is told"
    (at_once,) = (f for f in ElementTree.fromstring(page).iter("figure") if f.findtext("figcaption") == PLOTS[1])
    cells = [[cell.text for cell in row] for row in at_once.findall("details//tr")]
    assert cells[0] == ["subject", "at once", "p50", "p99", "turns/s", "good/s"]
    assert [(row[0], row[1], row[4] == row[5]) for row in cells[1:]] == [
        (subject, count, True) for subject in ("triops", "floor") for count in ("1", "2")
    ]


def test_a_share_of_turns_lies_at_its_time_and_a_percentile_at_its_own():
    long = block("triops", [float(ms) for ms in range(1, 201)])
    (svg,) = (
        figure.find("svg")
        for figure in ElementTree.fromstring(made([long])).iter("figure")
        if figure.findtext("figcaption") == PLOTS[2]
    )
    assert svg is not None
    x, y = Scale(0.9, 220, LEFT, WIDTH - RIGHT, log=True), Scale(0, 100, HEIGHT - BOTTOM, TOP)
    (curve,) = (line.get("d") or "" for line in svg.iter("path") if line.get("class") == "curve")
    points = [tuple(map(float, point.split())) for point in curve[1:].split("L")]
    assert points[0] == pytest.approx((x(1), y(0)), abs=0.1)
    assert points[len(points) // 2] == pytest.approx((x(100.5), y(50)), abs=0.1)
    assert points[-1] == pytest.approx((x(200), y(100)), abs=0.1)
    spots = [(float(spot.get("cx") or 0), float(spot.get("cy") or 0)) for spot in svg.iter("circle")]
    assert spots == [pytest.approx((x(at), y(p)), abs=0.1) for p, at in ((50, 100.5), (95, 190.05), (99, 198.01))]


def test_medians_that_do_not_add_up_make_no_bar_that_ends_before_it_begins():
    (found, *_) = blocks()
    found.records[0].metrics.update(model_request=3.5, last_byte_to_final=2.0)
    figure = list(ElementTree.fromstring(made([found])).iter("figure"))[-1]
    assert figure.findtext("figcaption") == PLOTS[-1]
    assert [row[3].text for row in figure.findall("details//tr")[1:]] == ["1.00", "3.50", "0.50", "0.50", "2.00"]


def test_plots_without_numbers_are_left_out():
    assert captions(made([block("triops", [4.0, 5.0])])) == [PLOTS[0], *PLOTS[2:4]]
    failed = block("triops", [4.0])
    failed.records[0].turn.state = "error"
    assert captions(made([failed])) == []


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [
        (Scale(0, 10, 0, 100), [0, 2, 4, 6, 8, 10]),
        (Scale(1.5, 60, 0, 1, log=True), [2, 5, 10, 20, 50]),
        (Scale(2.5, 4.5, 0, 1, log=True), [2.5, 3, 3.5, 4, 4.5]),
        (Scale(2.5, 12, 0, 1, log=True), [3, 4, 5, 6, 7, 8, 10]),
    ],
)
def test_ticks_are_round_and_few(scale: Scale, ticks: list[float]):
    assert scale.ticks() == pytest.approx(ticks)


def test_phases_that_the_gateway_told_follow_one_another_in_the_waterfall():
    (found,) = blocks()[:1]
    for record in found.records:
        record.metrics.update(gateway_queue=0.25, gateway_tools=0.0, gateway_commit=0.5)
    rows = [[cell.text for cell in row] for row in ElementTree.fromstring(made([found])).iter("tr")]
    assert ["triops: gateway_queue", "0.00", "0.25", "0.25"] in rows
    assert ["triops: gateway_commit", "0.25", "0.75", "0.50"] in rows
    assert not any("gateway_tools" in (row[0] or "") for row in rows), "it took no time"
