"""The kinds of panels that the dashboards are made of, each with a unit and a description."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphThresholdsStyleMode,
    HeatmapCellLayout,
    LegendDisplayMode,
    LegendPlacement,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DynamicConfigValue,
    FieldColorModeId,
    Panel,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

PanelBuilder: TypeAlias = Builder[Panel]
DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
GREEN, YELLOW, RED, GREY = "green", "yellow", "red", "#8e8e8e"


@dataclass(frozen=True)
class Query:
    """A PromQL expression, and what its series are called; `dashed` for what others are compared with."""

    expression: str
    legend: str = ""
    dashed: bool = False


@dataclass(frozen=True)
class Steps:
    """Where a value turns from green to yellow, if it does, and to red."""

    red: float
    yellow: float | None = None

    def build(self) -> build.ThresholdsConfig:
        """Return them as Grafana has them."""
        limits = [(None, GREEN), (self.yellow, YELLOW), (self.red, RED)]
        steps = [Threshold(value, colour) for value, colour in limits if colour == GREEN or value is not None]
        return build.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


NO_STEPS = build.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps([Threshold(None, GREEN)])


def number(
    title: str, description: str, query: str, *, unit: str = "short", steps: Steps | None = None, span: int = 3
) -> PanelBuilder:
    """Return a panel that shows one figure, the last one, coloured by `steps`."""
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .with_target(_target(Query(query)).instant())
        .unit(unit)
        .no_value("–")  # noqa: RUF001
        .thresholds(steps.build() if steps else NO_STEPS)
        .color_mode(BigValueColorMode.VALUE)
        .graph_mode(BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .span(span)
        .height(4)
    )


def lines(
    title: str,
    description: str,
    queries: Sequence[Query],
    *,
    unit: str = "short",
    steps: Steps | None = None,
    least: float | None = 0,
    span: int = 12,
) -> PanelBuilder:
    """Return a panel of lines over time; `steps` are drawn as dashed lines."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .unit(unit)
        .line_width(1)
        .fill_opacity(5)
        .show_points(VisibilityMode.NEVER)
        .thresholds(steps.build() if steps else NO_STEPS)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
        .span(span)
        .height(8)
    )
    if least is not None:
        panel = panel.min(least)
    if steps:
        panel = panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED))
    for at, query in enumerate(queries):
        panel = panel.with_target(_target(query, at).range())
        if query.dashed:
            panel = panel.override_by_query(_ref_id(at), _DASHED)
    return panel


_DASHED = [
    DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [8, 6]}),
    DynamicConfigValue("custom.fillOpacity", 0),
    DynamicConfigValue("color", {"mode": FieldColorModeId.FIXED, "fixedColor": GREY}),
]


def heat_map(title: str, description: str, buckets: str, *, unit: str = "short", span: int = 12) -> PanelBuilder:
    """Return a panel of a histogram over time; `buckets` is summed by `le`."""
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .with_target(_target(Query(buckets, "{{le}}")).range().format(PromQueryFormat.HEATMAP))
        .unit(unit)
        .calculate(False)
        .rows_frame(heatmap.RowsHeatmapOptions().layout(HeatmapCellLayout.AUTO))
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .cell_values(heatmap.CellValues().unit("short"))
        .color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64))
        .show_legend()
        .show_y_histogram()
        .span(span)
        .height(10)
    )


def states(
    title: str, description: str, query: Query, texts: Mapping[int, tuple[str, str]], *, span: int = 12
) -> PanelBuilder:
    """Return a panel of states over time; `texts` gives each value a text and a colour."""
    options = {
        str(value): ValueMappingResult(text, colour, index=at) for at, (value, (text, colour)) in _numbered(texts)
    }
    return (
        statetimeline.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .with_target(_target(query).range())
        .unit("short")
        .mappings([ValueMap(options)])
        .thresholds(NO_STEPS)
        .color_scheme(build.FieldColor().mode(FieldColorModeId.THRESHOLDS))
        .show_value(VisibilityMode.AUTO)
        .row_height(0.8)
        .span(span)
        .height(6)
    )


def facts(title: str, description: str, queries: Sequence[Query], *, span: int = 12) -> PanelBuilder:
    """Return a table of the labels of series whose value says nothing."""
    panel = (
        table.Panel().title(title).description(description).datasource(DATASOURCE).unit("short").span(span).height(6)
    )
    panel = panel.thresholds(NO_STEPS)
    for at, query in enumerate(queries):
        panel = panel.with_target(_target(query, at).instant().format(PromQueryFormat.TABLE))
    hidden = ["Time", "Value", "__name__", "job"]
    return panel.override_by_regexp(f"^({'|'.join(hidden)})$", [DynamicConfigValue("custom.hidden", True)])


def _numbered(texts: Mapping[int, tuple[str, str]]) -> enumerate[tuple[int, tuple[str, str]]]:
    return enumerate(texts.items())


def _ref_id(at: int) -> str:
    return chr(ord("A") + at)


def _target(query: Query, at: int = 0) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery()
        .expr(query.expression)
        .legend_format(query.legend or "__auto")
        .ref_id(_ref_id(at))
        .datasource(DATASOURCE)
    )
