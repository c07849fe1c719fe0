"""`GET /metrics`: what Prometheus scrapes, in the text exposition format 0.0.4. Pure."""

from collections.abc import Iterator, Mapping
from itertools import accumulate

from triops.runtime.phases import BUCKETS, Histogram
from triops.runtime.runs.supervisor import Supervisor

TYPE = b"text/plain; version=0.0.4; charset=utf-8"


def exposition(runs: Supervisor) -> bytes:
    """The turns since the start of the process, and the runs that are open now."""
    times, now = runs.times, runs.statistics().runs
    lines = [
        *_histogram("triops_turn_phase_seconds", "Time of a turn in each phase.", "phase", times.phases),
        *_histogram("triops_turn_seconds", "From acceptance to terminal, by how it ended.", "state", times.turns),
        "# HELP triops_runs Runs that are accepted and not over.",
        "# TYPE triops_runs gauge",
        f'triops_runs{{state="queued"}} {now.queued}',
        f'triops_runs{{state="running"}} {now.running}',
    ]
    return "\n".join((*lines, "")).encode()


def _histogram(name: str, about: str, label: str, histograms: Mapping[str, Histogram]) -> Iterator[str]:
    yield f"# HELP {name} {about}"
    yield f"# TYPE {name} histogram"
    bounds = (*map(str, BUCKETS), "+Inf")
    for key, histogram in histograms.items():
        labels = f'{label}="{key}"'
        upto = list(accumulate(histogram.counts))
        for bound, count in zip(bounds, upto, strict=True):
            yield f'{name}_bucket{{{labels},le="{bound}"}} {count}'
        yield f"{name}_sum{{{labels}}} {histogram.sum}"
        yield f"{name}_count{{{labels}}} {upto[-1]}"
