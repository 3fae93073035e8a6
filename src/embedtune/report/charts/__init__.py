"""Charts as inline SVG from plain numbers. All text in them is escaped, all colours are the page's CSS classes.

A chart is 360 units wide, about what it gets in pixels on a phone and in half of a wide page, so that its text is as
large as the page's.
"""

from embedtune.report.charts.bars import Bar, Interval, bar_chart, interval_chart
from embedtune.report.charts.curves import MOST_POINTS, dev_chart, loss_chart
from embedtune.report.charts.scatter import Dot, dial_chart, trials_chart
from embedtune.report.charts.series import BlendPoint, Series, blend_chart, recall_chart, size_chart

__all__ = [
    "MOST_POINTS",
    "Bar",
    "BlendPoint",
    "Dot",
    "Interval",
    "Series",
    "bar_chart",
    "blend_chart",
    "dev_chart",
    "dial_chart",
    "interval_chart",
    "loss_chart",
    "recall_chart",
    "size_chart",
    "trials_chart",
]
