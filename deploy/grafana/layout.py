"""A dashboard: its variables, and rows of panels."""

from collections.abc import Sequence

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.models.dashboard import (
    Dashboard,
    DashboardCursorSync,
    DashboardLinkType,
    VariableHide,
    VariableRefresh,
    VariableSort,
)

from deploy.grafana.panels import DATASOURCE, PanelBuilder

TAG = "energy-ood"
Row = tuple[str, Sequence[PanelBuilder]]
"""A title, and panels from left to right, then down."""


def one_of(
    name: str, label: str, query: str, sort: VariableSort = VariableSort.ALPHABETICAL_ASC
) -> build.QueryVariable:
    """Return a variable of which one value is chosen, the first at first."""
    return (
        build.QueryVariable(name)
        .label(label)
        .query(query)
        .datasource(DATASOURCE)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(sort)
    )


def any_of(name: str, label: str, query: str) -> build.QueryVariable:
    """Return a variable of which some values are chosen, or all."""
    return one_of(name, label, query).multi(True).include_all(True).all_value(".*")


def dashboard(
    uid: str, title: str, description: str, variables: Sequence[build.QueryVariable], rows: Sequence[Row]
) -> Dashboard:
    """Return a dashboard whose panels lie in rows, numbered from 1."""
    builder = (
        build.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .time("now-3h", "now")
        .timezone("browser")
        .refresh("30s")
        .readonly()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(build.DatasourceVariable("datasource").type("prometheus").hide(VariableHide.HIDE_VARIABLE))
        .link(
            build.DashboardLink("Others")
            .icon("dashboard")
            .type(DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .keep_time(True)
        )
    )
    for variable in variables:
        builder = builder.with_variable(variable)
    for row_title, panels in rows:
        builder = builder.with_row(build.Row(row_title))
        for panel in panels:
            builder = builder.with_panel(panel)
    made = builder.build()
    for number, placed in enumerate(made.panels or [], start=1):
        placed.id_val = number
    return made
