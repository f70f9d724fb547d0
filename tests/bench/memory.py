"""What the services have held at most in all the figures before: measured last."""

from collections.abc import Sequence

from tests.bench.registry import Run, Sample, figure, measures


@measures(
    figure("memory.delivery_service", "MB", must=300, aim=150, judged="value", direction="at most"),
    figure("memory.feedback_service", "MB", must=300, aim=150, judged="value", direction="at most"),
)
async def memory(run: Run) -> Sequence[Sample]:
    """Of the figures that ran; the watchers of watch.capacity apart."""
    peaks = run.stand.peak_bytes
    return [Sample(peaks[name] / 1e6) for name in ("delivery_service", "feedback_service")]
